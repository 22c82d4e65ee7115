from __future__ import annotations

import gc
import json
import os
import re
import struct
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lod_scenes import camera, plane_forest, surfels
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sr3d
from sr3d import Gaussians, Sr3dError
from sr3d.io import check_forest, read_forest, write_forest
from sr3d.lod import Forest, Level
from sr3d.lod.forest import Source


def small(levels: int = 3, size: int = 34, seed: int = 0) -> Forest:
    """Levels with features and SH of degree 1; the first has two blocks."""
    forest = plane_forest(levels, 2, size=size, features=3, bumps=1.0, seed=seed)
    g = torch.Generator().manual_seed(seed)
    made = []
    for level in forest.levels:
        sh = torch.cat([level.gaussians.sh, 0.2 * torch.randn(len(level), 3, 3, generator=g)], dim=1)
        made.append(replace(level, gaussians=replace(level.gaussians, sh=sh)))
    return Forest(levels=tuple(made))


def more(forest: Forest) -> Forest:
    """One further level: children of ten rows of the last one."""
    level = forest.levels[-1]
    native = level.lod.native[:10].double() / 2
    children = surfels(level.gaussians.means[:10].double() + level.origin, native, torch.Generator(), features=3)
    sh = torch.cat([children.sh, torch.zeros(10, 3, 3, dtype=torch.float64)], dim=1)
    return forest.append(replace(children, sh=sh), forest.starts[-2] + torch.arange(10))


def frames(forest: Forest) -> list[torch.Tensor]:
    out = []
    for factor in (1, 1.7, 3, 4):
        drawn = sr3d.render(forest, camera(factor, size=34), features=True, ids=True)
        out += [drawn.rgb, drawn.depth, drawn.features, drawn.ids]
    return out


def tensors(level: Level) -> dict[str, torch.Tensor]:
    parts = [level.gaussians, level.lod, level.blocks, level.split]
    found = {f"{type(p).__name__}.{k}": v for p in parts for k, v in vars(p).items() if isinstance(v, torch.Tensor)}
    return found | {"parents": level.parents, "origin": level.origin}


def same(a: Forest, b: Forest) -> bool:
    pairs = [(tensors(x), tensors(y)) for x, y in zip(a.levels, b.levels)]
    numbers = [[level.number for level in forest.levels] for forest in (a, b)]
    return numbers[0] == numbers[1] and all(torch.equal(x[k], y[k]) for x, y in pairs for k in x | y)


def stored(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.iterdir()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("forest") / "good.sr3d"
    write_forest(small(), path)
    return path


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy to spoil."""
    path = tmp_path / "a.sr3d"
    path.mkdir()
    for file in saved.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


# --- writing and reading


def test_round_trip_draws_the_same_bits(saved):
    forest, back = small(), read_forest(saved)
    assert same(forest, back) and isinstance(back.source, Source) and str(back.source) == str(saved) == back.name
    assert all(torch.equal(a, b) for a, b in zip(frames(forest), frames(back)))
    assert [level.lod.level.tolist()[:1] for level in back.levels] == [[0], [1], [2]]
    check_forest(back)


def test_forest_of_gaussians_without_features(tmp_path):
    flat = small().gaussians()
    forest = Forest.from_gaussians(replace(flat, features=None), small().parents)
    back = write_forest(forest, tmp_path / "a.sr3d")
    assert same(forest, back) and back.levels[0].gaussians.features is None
    check_forest(back)


def test_anybody_can_read_the_files(saved):
    """With the safetensors library alone, as docs/format.md shows."""
    document = json.loads((saved / "forest.json").read_text())
    assert (document["format"], document["version"], len(document["levels"])) == ("sr3d.forest", 1, 3)
    for said, level in zip(document["levels"], small().levels):
        tables = load_file(saved / said["file"])
        assert torch.equal(tables["means"], level.gaussians.means) and torch.equal(tables["parents"], level.parents)
        assert said["origin"] == level.origin.tolist() and said["file_bytes"] == (saved / said["file"]).stat().st_size
        with safe_open(saved / said["file"], "pt") as file:
            assert len(file.keys()) == 19


def test_example_of_the_documentation(saved, tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1].replace("name.sr3d", str(saved))
    code += f"\nnp.savez({str(tmp_path / 'found.npz')!r}, means=means, finer=finer)\n"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    found = np.load(tmp_path / "found.npz")
    everything = small().gaussians(torch.float64)
    assert torch.equal(torch.from_numpy(found["means"]), everything.means)
    assert torch.equal(torch.from_numpy(found["finer"]), everything.lod.finer)
    assert done.stdout.startswith(f"{len(everything)} Gaussians in 3 levels")


def test_appending_writes_one_file(folder):
    before = stored(folder)
    forest = more(read_forest(folder))
    assert forest.source is not None and len(forest.levels) == 4
    back = write_forest(forest, folder)
    after = stored(folder)
    assert sorted(after.keys() - before.keys()) == ["level-003.safetensors"]
    assert [name for name in before if before[name] != after[name]] == ["forest.json"]
    assert same(back, more(small()))
    check_forest(back)
    again = write_forest(more(back), folder)
    assert len(again.levels) == 5 and stored(folder)["level-003.safetensors"] == after["level-003.safetensors"]


def test_writing_what_is_there_already_changes_nothing(folder):
    before = stored(folder)
    Forest.load(folder).save(folder)
    assert stored(folder) == before


def test_undoing_keeps_the_first_levels(folder):
    before, forest = stored(folder), read_forest(folder)
    back = write_forest(replace(forest, levels=forest.levels[:1]), folder)
    assert len(back.levels) == 1 and sorted(stored(folder)) == ["forest.json", "level-000.safetensors"]
    assert stored(folder)["level-000.safetensors"] == before["level-000.safetensors"]
    check_forest(forest)  # what was open stays open


def test_another_forest_takes_the_place_of_the_old_one(folder):
    old, other = read_forest(folder), small(2, seed=1)
    pictures = frames(old)
    assert same(write_forest(other, folder), other)
    assert len(stored(folder)) == 3
    assert all(torch.equal(a, b) for a, b in zip(pictures, frames(old)))


def test_folders_that_are_no_forest_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(Sr3dError, match="something that is no forest"):
            write_forest(small(1), path)
    (tmp_path / "empty").mkdir()
    assert len(write_forest(small(1), tmp_path / "empty")) == 34 * 34
    with pytest.raises(Sr3dError, match="an existing folder"):
        write_forest(small(1), tmp_path / "none" / "a.sr3d")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file", "notes.txt"]


def test_two_writers_do_not_lose_a_level(folder):
    mine, yours = more(read_forest(folder)), more(read_forest(folder))
    write_forest(mine, folder)
    before = stored(folder)
    with pytest.raises(Sr3dError, match="changed by somebody else"):
        write_forest(yours, folder)
    assert stored(folder) == before
    write_forest(yours, folder.with_name("b.sr3d"))


def test_what_cannot_be_read_is_not_written(folder):
    before = stored(folder)
    forest = read_forest(folder)
    level = forest.levels[1]
    blocks = replace(level.blocks, reach=level.blocks.reach * torch.nan)
    bad = replace(forest, levels=(forest.levels[0], replace(level, blocks=blocks)))
    with pytest.raises(Sr3dError, match="block_reach"):
        write_forest(bad, folder)
    with pytest.raises(Sr3dError, match="split_blocks"):
        write_forest(replace(forest, levels=(level, forest.levels[0])), folder)
    assert stored(folder) == before


@pytest.mark.parametrize("step", range(1, 8))
def test_killed_half_way(folder, step, monkeypatch):
    """The process dies at its n-th change of a name in the folder, or in the middle of the file before that."""
    other, last, left = small(2, seed=1), small(1), [step]

    def deadly(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)
            return function(*args, **kwargs)

        return call

    def cut(tensors, path):
        save_file(tensors, path)
        if left[0] == 1:
            os.truncate(path, 100)
            os._exit(9)

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink"):
            patch.setattr(os, name, deadly(getattr(os, name)))
        patch.setattr("sr3d.io.forest_write.save_file", cut)
        child = os.fork()  # nothing that is run here needs threads
        if child == 0:
            try:
                write_forest(other, folder)
            finally:
                os._exit(0 if left[0] > 0 else 8)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    back = read_forest(folder)
    check_forest(back)
    assert same(back, small()) or (step > 3 and same(back, other))
    assert status == 9 or (step == 7 and status == 0)
    write_forest(last, folder)  # and what was left over goes away
    assert len(stored(folder)) == 2 and "forest.json" in stored(folder)


# --- mapping


def resident(folder: Path) -> int:
    """Bytes of the level files that are in this process's memory."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = str(folder) in line
        elif ours and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no /proc")
def test_only_what_a_frame_needs_is_read(tmp_path):
    n, g = 200_000, torch.Generator().manual_seed(0)
    centers = torch.rand(n, 3, generator=g, dtype=torch.float64) * torch.tensor([8, 8, 0.1]) + torch.tensor([-4, -4, 4])
    native = torch.full((n,), 0.01, dtype=torch.float64)
    write_forest(Forest.from_gaussians(surfels(centers, native, g, features=16)), tmp_path / "big.sr3d")
    file = os.open(tmp_path / "big.sr3d" / "level-000.safetensors", os.O_RDONLY)
    size = os.fstat(file).st_size
    assert size > 28e6
    # Out of the system's cache, of which it would map large pieces around every touched page.
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)
    began = time.perf_counter()
    forest = read_forest(tmp_path / "big.sr3d")
    took = time.perf_counter() - began
    opened = resident(tmp_path)
    sr3d.render(forest, camera(64, target=(3.5, 3.5, 4.05)), features=True)
    drawn = resident(tmp_path)
    print(f"{size / 1e6:.1f} MB, opened in {1000 * took:.1f} ms, {opened / size:.3%}, after a frame {drawn / size:.2%}")
    assert opened < 0.01 * size and 0 < drawn < 0.15 * size
    check_forest(forest)
    assert resident(tmp_path) > 0.9 * size


def test_files_are_closed_and_memory_is_freed(folder):
    def handles() -> int:
        return sum(str(folder) in os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd"))

    gc.collect()
    assert handles() == 0
    forest = read_forest(folder)
    means = forest.levels[0].gaussians.means
    assert handles() >= 3
    gone = weakref.ref(forest.source)
    del forest
    assert gone() is None and handles() <= 1  # the mapping of the tensor that is left
    assert torch.isfinite(means).all()
    del means
    assert handles() == 0


def test_tensors_can_be_written_to_without_changing_the_file(folder):
    before, forest = stored(folder), read_forest(folder)
    forest.levels[0].gaussians.means.zero_()
    assert stored(folder) == before and read_forest(folder).levels[0].gaussians.means.abs().sum() > 0


@pytest.mark.parametrize("change", ["truncated", "emptied", "written", "grown"])
def test_changes_while_open_are_noticed(folder, change):
    forest = read_forest(folder)
    file = folder / "level-001.safetensors"
    if change == "written":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    else:
        os.truncate(file, {"truncated": 5000, "emptied": 0, "grown": file.stat().st_size + 1}[change])
    for use in (lambda: sr3d.render(forest, camera()), lambda: check_forest(forest), lambda: forest.source.check()):
        with pytest.raises(Sr3dError, match=r"level-001\.safetensors: file: found changed while it was open"):
            use()


def test_checking_for_changes_takes_no_time(saved):
    forest = read_forest(saved)
    began = time.perf_counter()
    for _ in range(1000):
        forest.source.check()
    assert time.perf_counter() - began < 1  # 1 ms per frame; it takes a few microseconds


# --- damaged files


def document(change):
    """A change of forest.json."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / "forest.json").read_text())
        out = change(content)
        text = out if isinstance(out, str) else json.dumps(content if out is None else out)
        (folder / "forest.json").write_text(text)

    return apply


def entry(index: int, **values):
    return document(lambda content: content["levels"][index].update(values))


def header(change):
    """A change of the header of level 1; its length follows."""

    def apply(folder: Path) -> None:
        file = folder / "level-001.safetensors"
        data = file.read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        content = json.loads(data[8 : 8 + length])
        out = change(content)
        text = out if isinstance(out, bytes) else json.dumps(content).encode()
        text = text.ljust(-(-len(text) // 8) * 8)
        _store(folder, struct.pack("<Q", len(text)) + text + data[8 + length :])

    return apply


def table(**changes):
    """A change of tensors of level 1, in a file that the library writes."""

    def apply(folder: Path) -> None:
        content = load_file(folder / "level-001.safetensors")
        for name, change in changes.items():
            content[name] = change(content[name].clone())
        save_file({k: v for k, v in content.items() if v is not None}, folder / "new")
        data = (folder / "new").read_bytes()
        (folder / "new").unlink()
        _store(folder, data)

    return apply


def _store(folder: Path, data: bytes) -> None:
    (folder / "level-001.safetensors").write_bytes(data)
    entry(1, file_bytes=len(data))(folder)


def put(index, value):
    def change(values: torch.Tensor) -> torch.Tensor:
        values[index] = value
        return values

    return change


def _length(value: int):
    def apply(folder: Path) -> None:
        file = folder / "level-001.safetensors"
        file.write_bytes(struct.pack("<Q", value) + file.read_bytes()[8:])

    return apply


def _shift(header: dict, name: str, by: int) -> None:
    header[name]["data_offsets"] = [offset + by for offset in header[name]["data_offsets"]]


def _swap(content: dict) -> None:
    """Two tensors in each other's place, so that parents begin at a multiple of 4 only."""
    at = 0
    for name in sorted(content, key=lambda name: (name != "opacities", content[name]["data_offsets"])):
        begin, end = content[name]["data_offsets"]
        content[name]["data_offsets"] = [at, at + end - begin]
        at += end - begin
    opacities = content["opacities"]
    assert opacities["data_offsets"][1] % 8 == 4 or opacities["data_offsets"][1] % 8 == 0


def _linked(folder: Path) -> None:
    (folder / "level-001.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "level-001.safetensors").symlink_to(folder.parent / "outside.safetensors")


def _pipe(folder: Path) -> None:
    (folder / "level-001.safetensors").unlink()
    os.mkfifo(folder / "level-001.safetensors")


def _gone(name: str):
    return lambda folder: (folder / name).unlink()


def _drop(content: dict, name: str) -> None:
    del content[name]


BAD = {
    "no json": (_gone("forest.json"), "file"),
    "no level": (_gone("level-001.safetensors"), "file"),
    "no object": (document(lambda d: "[1, 2]"), "file"),
    "no json inside": (document(lambda d: "hello"), "file"),
    "empty json": (document(lambda d: ""), "file"),
    "deep json": (document(lambda d: "[" * 100000), "file"),
    "a key twice": (document(lambda d: '{"format": 1, "format": 1}'), "file"),
    "NaN in json": (entry(0, origin=[0, 0, float("nan")]), "file"),
    "no UTF-8": (lambda folder: (folder / "forest.json").write_bytes(b"\xff\xfe{}"), "file"),
    "endless json": (lambda folder: os.truncate(folder / "forest.json", 1 << 25), "size"),
    "another format": (document(lambda d: d.update(format="gltf")), "format"),
    "a later version": (document(lambda d: d.update(version=2)), "version"),
    "version true": (document(lambda d: d.update(version=True)), "version"),
    "no levels": (document(lambda d: d.update(levels=[])), "levels"),
    "levels no list": (document(lambda d: d.update(levels={"0": 1})), "levels"),
    "a level no object": (document(lambda d: d["levels"].append(3)), "levels[3]"),
    "a key missing": (document(lambda d: _drop(d["levels"][1], "number")), "levels[1].number"),
    "one file twice": (entry(1, file="level-000.safetensors"), "levels[1].file"),
    "a file above": (entry(1, file="../level-001.safetensors"), "levels[1].file"),
    "an absolute file": (entry(1, file="/etc/level-001.safetensors"), "levels[1].file"),
    "a file with zero": (entry(1, file="level-001\0.safetensors"), "levels[1].file"),
    "a file of dots": (entry(1, file=".."), "levels[1].file"),
    "a file no string": (entry(1, file=3), "levels[1].file"),
    "a link outside": (_linked, "file"),
    "a pipe": (_pipe, "file"),
    "origin of text": (entry(1, origin=["0", 0, 0]), "levels[1].origin"),
    "origin of two": (entry(1, origin=[0, 0]), "levels[1].origin"),
    "origin beyond floats": (entry(1, origin=[0, 0, 10**400]), "levels[1].origin"),
    "origin infinite": (document(lambda d: json.dumps(d).replace("[", "[1e999, ", 2)), "levels[0]"),
    "count negative": (entry(1, count=-1), "levels[1].count"),
    "count zero": (entry(1, count=0, blocks=0), "levels[1].count"),
    "count a fraction": (entry(1, count=10.5), "levels[1].count"),
    "count true": (entry(1, count=True), "levels[1].count"),
    "count too large": (entry(1, count=2**61, blocks=2**51), "levels[1].file_bytes"),
    "count beyond 64 bits": (entry(1, count=2**64), "levels[1].count"),
    "blocks for other rows": (entry(0, blocks=1), "levels[0].blocks"),
    "levels out of order": (document(lambda d: d["levels"].reverse()), "levels[0].split_rows"),
    "a number left out": (entry(2, number=3), "levels[2].number"),
    "a number below the first": (entry(0, number=2), "levels[1].number"),
    "more split rows than rows": (entry(1, split_rows=10**6), "levels[1].split_rows"),
    "more split blocks than blocks": (entry(1, split_blocks=3), "levels[1].split_blocks"),
    "no split blocks": (entry(1, split_blocks=0), "levels[1].split_blocks"),
    "other SH": (entry(1, sh=1), "levels[1].sh"),
    "SH of no degree": (document(lambda d: [e.update(sh=5) for e in d["levels"]] and None), "levels[0].sh"),
    "other features": (entry(1, features=4), "levels[1].features"),
    "another size": (entry(1, file_bytes=10**6), "size"),
    "cut off": (lambda f: os.truncate(f / "level-001.safetensors", 20000), "size"),
    "header beyond the file": (_length(2**40), "header"),
    "header of all bits": (_length(2**64 - 1), "header"),
    "header empty": (_length(0), "header"),
    "header no JSON": (header(lambda h: b"{hello"), "header"),
    "header a list": (header(lambda h: b"[]"), "header"),
    "tensor missing": (header(lambda h: _drop(h, "quats")), "tensors"),
    "tensor too many": (header(lambda h: h.update(more=h["means"])), "tensors"),
    "tensor not written": (table(native=lambda t: None), "levels[1].file_bytes"),
    "tensor no object": (header(lambda h: h.update(quats=3)), "tensor quats"),
    "another dtype": (table(means=lambda t: t.double()[:1].float().half()), None),
    "dtype lied about": (header(lambda h: h["means"].update(dtype="I32")), "tensor means"),
    "another shape": (header(lambda h: h["means"].update(shape=[3, len(h)])), "tensor means"),
    "offsets no numbers": (header(lambda h: h["means"].update(data_offsets=["0", "1"])), "tensor means"),
    "offsets beyond the file": (header(lambda h: _shift(h, "means", 10**12)), "tensor means"),
    "offsets negative": (header(lambda h: _shift(h, "parents", -8)), "tensor parents"),
    "offsets swapped": (header(lambda h: h["means"]["data_offsets"].reverse()), "tensor means"),
    "overlap": (header(lambda h: _shift(h, "means", 4)), "tensors"),
    "misaligned": (header(lambda h: _shift(h, "means", 2)), "tensor means"),
    "bytes behind": (lambda f: _store(f, (f / "level-001.safetensors").read_bytes() + b"1234"), "tensors"),
    "NaN bounds": (table(block_lower=put((0, 1), torch.nan)), "block_lower"),
    "infinite bounds": (table(block_upper=put((0, 1), torch.inf)), "block_upper"),
    "bounds the wrong way": (table(block_upper=put((0, 1), -1e9)), "block_upper"),
    "reach negative": (table(block_reach=put(0, -1.0)), "block_reach"),
    "reach NaN": (table(block_reach=put(0, torch.nan)), "block_reach"),
    "finest NaN": (table(block_finest=put(0, torch.nan)), "block_finest"),
    "coarsest NaN": (table(block_coarsest=put(0, torch.nan)), "block_coarsest"),
    "split finest NaN": (table(split_finest=put(0, torch.nan)), "split_finest"),
    "split blocks of this level": (table(split_blocks=put(-1, 2)), "split_blocks"),
    "split blocks negative": (table(split_blocks=put(0, -1)), "split_blocks"),
    "split blocks out of order": (table(split_blocks=lambda t: t.flip(0)), "split_blocks"),
}


@pytest.mark.parametrize("case", BAD)
def test_damage_gives_one_clear_error(folder, case):
    spoil, field = BAD[case]
    assert read_forest(folder).levels[1].split.blocks.tolist() == [0, 1]
    spoil(folder)
    with pytest.raises(Sr3dError, match=r"a\.sr3d") as caught:
        read_forest(folder)
    assert len(str(caught.value)) < 450 and "\n" not in str(caught.value)
    if field is not None:
        assert caught.value.field.startswith(field) if case == "origin infinite" else caught.value.field == field


def test_missing_folder(tmp_path):
    with pytest.raises(Sr3dError, match="no such folder"):
        read_forest(tmp_path / "none.sr3d")
    (tmp_path / "file").write_text("")
    with pytest.raises(Sr3dError, match="found a file"):
        read_forest(tmp_path / "file")


ROWS = {
    "dangling parent": (table(parents=put(3, 10**9)), "level 1: parents"),
    "parent of -2": (table(parents=put(3, -2)), "level 1: parents"),
    "own parent": (table(parents=put(3, 34 * 34 + 3)), "level 1: parents"),
    "parent in a later level": (table(parents=put(3, 34 * 34 * 3)), "level 1: parents"),
    "coarser of nobody": (table(coarser=put(3, 5.0)), "level 1: coarser"),
    "coarser NaN": (table(coarser=put(3, torch.nan)), "level 1: coarser"),
    "native zero": (table(native=put(0, 0.0)), "level 1: split_finer"),
    "finer above native": (table(finer=put(-1, 1e9)), "lod.finer"),
    "split rows out of order": (table(split_parents=lambda t: t.flip(0)), "level 1: split_parents"),
    "split finer of nobody": (table(split_finer=put(2, 0.07)), "level 1: split_finer"),
    "NaN mean": (table(means=put((4, 1), torch.nan)), "level 1: means"),
    "infinite quaternion": (table(quats=put((4, 1), torch.inf)), "level 1: quats"),
    "zero quaternion": (table(quats=put(4, 0.0)), "level 1: quats"),
    "negative scale": (table(scales=put((4, 1), -1.0)), "level 1: scales"),
    "opacity above one": (table(opacities=put(4, 1.5)), "level 1: opacities"),
    "NaN colour": (table(sh=put((4, 1, 1), torch.nan)), "level 1: sh"),
    "NaN feature": (table(features=put((4, 1), torch.nan)), "level 1: features"),
    "mean outside": (table(means=put((4, 1), 1e5)), "level 1: block_upper"),
    "reach too small": (table(block_reach=put(0, 0.0)), "level 1: block_reach"),
    "coarsest too small": (table(block_coarsest=put(0, 1e-9)), "level 1: block_coarsest"),
    "finest too large": (table(block_finest=put(0, 1e9)), "level 1: block_finest"),
    "split finest too large": (table(split_finest=put(0, 1e9)), "level 0: split_finest"),
}


@pytest.mark.parametrize("case", ROWS)
def test_bad_rows_open_and_draw_but_do_not_pass_the_check(folder, case):
    spoil, field = ROWS[case]
    spoil(folder)
    forest = read_forest(folder)
    for factor in (1, 2):
        try:
            sr3d.render(forest, camera(factor, size=34), features=True)
        except Sr3dError as error:
            assert "a.sr3d" in error.source
    with pytest.raises(Sr3dError, match=r"a\.sr3d") as caught:
        check_forest(forest)
    assert caught.value.field == field


def test_gaussians_of_a_mapped_forest_can_be_used(saved):
    back = read_forest(saved).gaussians()
    assert isinstance(back, Gaussians) and torch.equal(back.means, small().gaussians().means)
    moved = read_forest(saved).to("cpu")
    assert moved.source is None and same(moved, small())


def test_a_full_disk(tmp_path):
    """In a process whose files may not grow beyond 20 kB."""
    code = (
        "import resource, signal, sys; from sr3d import Gaussians, Sr3dError; from sr3d.lod import Forest\n"
        "forest = Forest.load(sys.argv[1]).to('cpu')\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "try: forest.save(sys.argv[2])\n"
        "except Sr3dError as error: print('refused', error)\n"
    )
    big = plane_forest(1, size=64)
    big.save(tmp_path / "big.sr3d")
    command = [sys.executable, "-c", code, str(tmp_path / "big.sr3d"), str(tmp_path / "copy.sr3d")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.startswith("refused"), done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["big.sr3d"]
