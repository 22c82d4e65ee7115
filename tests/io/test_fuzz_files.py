"""Damaged files give one clear error or something that can be drawn: thousands of them, always the same ones."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import SPECIAL, Change, examples, number, places, raw, several, text, values
from hypothesis import given
from hypothesis import strategies as st
from lod_scenes import camera, plane_forest, surfels
from plyfile import PlyData, PlyElement

import sr3d
from sr3d import Sr3dError
from sr3d.gaussians import Gaussians, Lod
from sr3d.io import check_forest, read_forest, read_ply, write_forest
from sr3d.io.ply import read_points
from sr3d.lod import Forest

# --- forests


@pytest.fixture(scope="module")
def forests(tmp_path_factory) -> dict[int, Path]:
    """A small forest, and one whose first level has two blocks."""
    root = tmp_path_factory.mktemp("fuzz")
    for size in (8, 34):
        forest = plane_forest(3, 2, size=size, features=2, bumps=1.0)
        write_forest(forest, root / f"{size}.sr3d")
    return {size: root / f"{size}.sr3d" for size in (8, 34)}


def spoiled(source: Path, name: str, change: Change) -> Path:
    """A copy of a forest with one file changed."""
    out = source.with_name("bad.sr3d")
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(source, out)
    (out / name).write_bytes(change((out / name).read_bytes()))
    return out


def honest(folder: Path) -> None:
    """Let forest.json give the sizes of the files as they are, so that the files themselves are looked at."""
    content = json.loads((folder / "forest.json").read_text())
    for level in content["levels"]:
        level["file_bytes"] = (folder / level["file"]).stat().st_size
    (folder / "forest.json").write_text(json.dumps(content))


def use(folder: Path) -> bool:
    """Open, draw, append to and check; whether it opened. Nothing but `Sr3dError` may come out, no warning either."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            forest = read_forest(folder)
        except Sr3dError as error:
            assert len(str(error)) < 600 and "\n" not in str(error)
            return False
        for step in (draw_forest, append, check_forest):
            try:
                step(forest)
            except Sr3dError as error:
                assert len(str(error)) < 600
        return True


def draw_forest(forest: Forest) -> None:
    for factor in (1, 3):
        drawn = sr3d.render(forest, camera(factor, size=16), features=True, ids=True)
        assert drawn.rgb.shape == (1, 16, 16, 3) and ((drawn.ids >= -1) & (drawn.ids < len(forest))).all()


def append(forest: Forest) -> None:
    level = forest.levels[-1]
    native = level.lod.native[:3].double() / 2
    children = surfels(torch.rand(3, 3).double(), native, torch.Generator(), features=2)
    assert len(forest.append(children, forest.starts[-2] + torch.arange(3))) == len(forest) + 3


def test_the_forests_themselves_are_good(forests):
    for path in forests.values():
        forest = read_forest(path)
        check_forest(forest)
        draw_forest(forest)
        append(forest)


@examples(700)
@given(change=several(text, 3))
def test_forest_json(forests, change):
    use(spoiled(forests[8], "forest.json", change))


@examples(300)
@given(change=several(st.one_of(*raw), 3), level=st.integers(0, 2), fair=st.booleans())
def test_level_file(forests, change, level, fair):
    bad = spoiled(forests[8], f"level-00{level}.safetensors", change)
    if fair:
        honest(bad)
    use(bad)


@examples(700)
@given(change=several(text, 3), level=st.integers(0, 2), fair=st.booleans())
def test_level_header(forests, change, level, fair):
    """The header lies; its length is right half of the time."""

    def inside(data: bytes) -> bytes:
        length = struct.unpack("<Q", data[:8])[0]
        new = change(data[8 : 8 + length])
        new = new.ljust(-(-len(new) // 8) * 8) if fair else new
        return (struct.pack("<Q", len(new)) if fair else data[:8]) + new + data[8 + length :]

    bad = spoiled(forests[8], f"level-00{level}.safetensors", inside)
    honest(bad)
    use(bad)


@pytest.mark.parametrize("size", [8, 34])
def test_level_values(forests, size):
    opened = []

    unread = ["means", "quats", "scales", "opacities", "sh", "features", "native", "coarser", "finer", "parents"]
    unread += ["split_parents", "split_finer"]

    @examples(300 if size == 8 else 150)
    @given(change=several(values, 4), level=st.integers(0, 2), names=st.lists(st.sampled_from(unread), max_size=2))
    def run(change: Change, level: int, names: list[str]) -> None:
        """Anywhere in the tensors, or in some of those that opening does not look at."""

        def inside(data: bytes) -> bytes:
            start = struct.unpack("<Q", data[:8])[0] + 8
            spans = json.loads(data[8:start])
            for begin, end in [spans[name]["data_offsets"] for name in names] or [(0, len(data) - start)]:
                begin, end = start + begin, start + end
                data = data[:begin] + change(data[begin:end])[: end - begin].ljust(end - begin, b"\0") + data[end:]
            return data

        opened.append(use(spoiled(forests[size], f"level-00{level}.safetensors", inside)))

    run()
    assert sum(opened) > 0.4 * len(opened)  # else nothing but opening has been tested


# --- ply


def plys() -> dict[str, bytes]:
    """The same Gaussians in every kind of file."""
    g = torch.Generator().manual_seed(0)
    n = 6
    native = torch.full((n,), 0.1)
    sample = Gaussians(
        means=torch.rand(n, 3, generator=g) + torch.tensor([-0.5, -0.5, 2]),
        quats=torch.randn(n, 4, generator=g),
        scales=torch.rand(n, 3, generator=g) * 0.1,
        opacities=torch.rand(n, generator=g),
        sh=torch.randn(n, 4, 3, generator=g),
        features=torch.randn(n, 2, generator=g),
        lod=Lod.roots(native),
    )
    return {"binary": _ply(sample, "<"), "big-endian": _ply(sample, ">"), "text": _ply(sample, "text")}


def _ply(sample: Gaussians, kind: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        sample.save(Path(folder) / "a.ply")
        rows = np.array(PlyData.read(str(Path(folder) / "a.ply"))["vertex"].data)
    faces = np.array([([0, 1, 2], 7)], dtype=[("vertex_indices", "i4", (3,)), ("flag", "u1")])
    parts = [PlyElement.describe(rows, "vertex"), PlyElement.describe(faces, "face")]
    stream = io.BytesIO()
    PlyData(parts, text=kind == "text", byte_order="=" if kind == "text" else kind).write(stream)
    return stream.getvalue()


PLYS = plys()


def use_ply(path: Path) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (read_points, read_ply):
            try:
                result = read(path)
            except Sr3dError as error:
                assert len(str(error)) < 900
                result = None
        if result is None:
            return False
        with torch.no_grad():
            sr3d.render(result, camera(size=16), features=result.features is not None)
        if result.lod is not None and len(result):
            try:
                check_forest(Forest.from_gaussians(result))
            except Sr3dError as error:
                assert len(str(error)) < 600
        return True


@pytest.mark.parametrize("kind", PLYS)
def test_ply(tmp_path, kind):
    (tmp_path / "a.ply").write_bytes(PLYS[kind])
    assert use_ply(tmp_path / "a.ply")
    header, middle, body = PLYS[kind].partition(b"end_header\n")
    numbers = st.builds(number, places, st.sampled_from(SPECIAL), st.just("<f" if kind == "binary" else ">f"))
    inside = st.one_of(*raw, numbers) if kind != "text" else text

    @examples(500)
    @given(head=st.one_of(st.none(), several(text, 3)), rest=st.one_of(st.none(), several(inside, 3)))
    def run(head: Change | None, rest: Change | None) -> None:
        data = (head(header) if head else header) + middle + (rest(body) if rest else body)
        (tmp_path / "a.ply").write_bytes(data)
        use_ply(tmp_path / "a.ply")

    run()


HEADERS = {
    "wide": (b"element vertex", b"element  vertex"),
    "tab": (b"element vertex", b"element\tvertex"),
    "thousands of digits": (b"vertex 6", b"vertex " + b"9" * 5000),
    "thousands of zeros": (b"vertex 6", b"vertex " + b"0" * 5000 + b"6"),
    "another element first": (b"element vertex", b"element foo 0\nelement vertex"),
    "comment": (b"element vertex", b"comment element vertex 3\nelement vertex"),
    "vertices twice": (b"element face 1", b"element vertex 1"),
    "line ends": (b"\n", b"\r"),
    "no ASCII": (b"element vertex", b"comment \xff\nelement vertex"),
    "lists": (b"property float nx", b"property  list uint float nx"),
    "rows of nothing": (b"element vertex 6", b"element foo 6\nelement vertex 6"),
}


@pytest.mark.parametrize("kind", PLYS)
@pytest.mark.parametrize("case", HEADERS)
def test_unusual_ply_headers(tmp_path, kind, case):
    old, new = HEADERS[case]
    header, middle, body = PLYS[kind].partition(b"end_header\n")
    (tmp_path / "a.ply").write_bytes(header.replace(old, new) + middle + body)
    assert use_ply(tmp_path / "a.ply") or case not in ("wide", "tab", "another element first", "comment")


# --- memory


def test_lies_about_sizes_allocate_nothing(forests, tmp_path):
    """Every number of forest.json, of a header and of ply headers, one after the other, with 200 MB to spare."""
    for kind, data in PLYS.items():
        (tmp_path / f"{kind}.ply").write_bytes(data)
    script = f"""
        import resource, sys
        from pathlib import Path
        sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
        import damage
        import test_fuzz_files as fuzz
        forest, plys = Path({str(forests[8])!r}), Path({str(tmp_path)!r})
        assert fuzz.use(forest)
        assert all([fuzz.use_ply(file) for file in plys.glob("*.ply")])
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000,) * 2)
        lies = ["1000000000", "4294967295", str(2**40), str(2**61), str(2**63 - 1), "9" * 30]
        cases = 0
        for value in lies:
            for k in range(60):
                fuzz.use(fuzz.spoiled(forest, "forest.json", damage.lie(k / 60, value)))
            for k in range(50):
                def inside(data):
                    length = int.from_bytes(data[:8], "little")
                    head = damage.lie(k / 50, value)(data[8 : 8 + length])
                    head = head.ljust(-(-len(head) // 8) * 8)
                    return len(head).to_bytes(8, "little") + head + data[8 + length :]
                bad = fuzz.spoiled(forest, "level-001.safetensors", inside)
                fuzz.honest(bad)
                fuzz.use(bad)
            for kind, data in fuzz.PLYS.items():
                head, middle, body = data.partition(b"end_header")
                for k in range(12):
                    for dtype in (b"list uint int", b"list uchar float"):
                        lying = damage.lie(k / 12, value)(head.replace(b"list uchar int", dtype)) + middle + body
                        (plys / "lie").write_bytes(lying)
                        fuzz.use_ply(plys / "lie")
                        cases += 1
        print(cases)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], check=False, timeout=120, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
