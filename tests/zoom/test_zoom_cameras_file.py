"""`cameras.json` of a zoom: written and read back, and every kind of damage."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sr3d import Cameras, Scene, Sr3dError
from sr3d.zoom.cameras import ZoomCameras, read_cameras, write_cameras


@pytest.fixture
def shown(table: Scene, target: tuple[float, float]) -> ZoomCameras:
    """Levels 0 to 2 of a network of factor 4."""
    first = table.posed().index([0])
    levels = {level: first.zoomed(4.0**level, target) for level in range(3)}
    return ZoomCameras(levels=levels, center=target, prompt="a table — \N{SUBSCRIPT TWO}, “quoted”\n")


def test_cameras_survive_the_file(shown: ZoomCameras, tmp_path: Path) -> None:
    path = tmp_path / "cameras.json"
    write_cameras(path, shown)
    found = read_cameras(path)
    assert (found.center, found.prompt, list(found.levels)) == (shown.center, shown.prompt, [0, 1, 2])
    for level, camera in shown.levels.items():
        again = found.levels[level]
        assert (again.width, again.height, len(again)) == (24, 24, 1)
        # Doubles hold every float32 exactly.
        assert again.K.dtype == torch.float64 and torch.equal(again.K, camera.K.double())
        assert torch.equal(again.world_to_cam, camera.world_to_cam.double())
    # Numbers as anybody reads them: OpenCV axes, K in pixels.
    content = json.loads(path.read_text(encoding="utf-8"))
    K = content["frames"][2]["K"]
    assert K[0][0] == pytest.approx(16 * float(shown.levels[0].K[0, 0, 0])) and K[2] == [0, 0, 1]


def test_cameras_of_double_precision_keep_it(tmp_path: Path) -> None:
    pose = torch.eye(4, dtype=torch.float64)[None]
    pose[0, 0, 3] = math.pi * 1e6
    K = torch.tensor([[[30.0 + 1e-12, 0, 8], [0, 30, 6], [0, 0, 1]]], dtype=torch.float64)
    camera = Cameras(world_to_cam=pose, K=K, width=16, height=12)
    write_cameras(tmp_path / "a.json", ZoomCameras(levels={7: camera}, center=(1 / 3, 2.5)))
    found = read_cameras(tmp_path / "a.json")
    assert torch.equal(found.levels[7].world_to_cam, pose) and torch.equal(found.levels[7].K, K)
    assert found.center == (1 / 3, 2.5) and found.prompt == ""


def damaged(content: dict[str, Any], where: str, value: Any) -> None:
    """Put a value at a place such as "frames.1.K"; a number stands for an item of a list."""
    *way, last = (int(part) if part.isdigit() else part for part in where.split("."))
    inner: Any = content
    for part in way:
        inner = inner[part]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value


ROW = [0.0, 0.0, 1.0]
HUGE = 10**400


@pytest.mark.parametrize(
    ("where", "value", "named"),
    [
        ("center", ..., "center"),
        ("center", [1.0], "center"),
        ("center", "1, 2", "center"),
        ("center", [1.0, True], "center"),
        ("center.0", math.nan, "center"),
        ("center.1", math.inf, "center"),
        ("center.1", HUGE, "center"),
        ("prompt", None, "center, prompt"),
        ("prompt", ["a"], "center, prompt"),
        ("frames", ..., "frames"),
        ("frames", [], "frames"),
        ("frames", {"level": 0}, "frames"),
        ("frames.1", 7, r"frames\[1\]"),
        ("frames.1.level", ..., r"frames\[1\]"),
        ("frames.1.level", 1.5, r"frames\[1\]"),
        ("frames.1.level", True, r"frames\[1\]"),
        ("frames.1.level", -1, r"frames\[1\]"),
        ("frames.1.level", 0, r"frames\[1\]\.level: found 0; expected levels of 0 or more, each once"),
        ("frames.1.width", "24", r"frames\[1\]"),
        ("frames.1.width", 0, r"frames\[1\] width, height: found 0x24; expected 1 to 65536"),
        ("frames.1.height", -24, r"frames\[1\]"),
        ("frames.1.height", 10**9, r"frames\[1\]"),
        ("frames.2.K", [ROW, ROW], r"frames\[2\]"),
        ("frames.2.K.1", [0.0, 1.0], r"frames\[2\]"),
        ("frames.2.K.1.1", None, r"frames\[2\]"),
        ("frames.2.K.0.0", math.nan, r"frames\[2\]"),
        ("frames.2.K.0.0", -30.0, r"K of frames\[2\]"),
        ("frames.2.K.0.0", HUGE, r"frames\[2\]"),
        ("frames.0.world_to_cam", ..., r"frames\[0\]"),
        ("frames.0.world_to_cam.3", ROW, r"frames\[0\]"),
        ("frames.0.world_to_cam.0.3", math.inf, r"frames\[0\]"),
        ("frames.0.world_to_cam.0", [2.0, 0.0, 0.0, 0.0], r"pose of frames\[0\]"),
        ("frames.0.world_to_cam.3", [0.0, 0.0, 0.0, 2.0], r"pose of frames\[0\]"),
    ],
    ids=lambda value: "huge" if value == HUGE else None,
)
def test_damage_is_one_error(where: str, value: Any, named: str, shown: ZoomCameras, tmp_path: Path) -> None:
    path = tmp_path / "cameras.json"
    write_cameras(path, shown)
    content = json.loads(path.read_text(encoding="utf-8"))
    damaged(content, where, value)
    path.write_text(json.dumps(content))
    with pytest.raises(Sr3dError, match=rf"cameras\.json: [^:]*{named}") as error:
        read_cameras(path)
    assert len(str(error.value)) < 600 and "expected" in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff\xfe{}", b'"a"', b"[" * 200_000, b"1" * 5000])
def test_what_is_no_object_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "cameras.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Sr3dError, match=r"cameras\.json: file: found"):
        read_cameras(path)
