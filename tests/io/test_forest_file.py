from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forest_files import frames, more, same, small, stored
from lod_scenes import camera, plane_forest, surfels
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sr3d
from sr3d import Gaussians, Sr3dError
from sr3d.io import check_forest, read_forest, write_forest
from sr3d.lod import Forest
from sr3d.lod.forest import Source


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
