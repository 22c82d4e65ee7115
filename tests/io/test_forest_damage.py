from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from lod_scenes import camera
from safetensors.torch import load_file, save_file

import sr3d
from sr3d import Sr3dError
from sr3d.io import check_forest, read_forest

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
