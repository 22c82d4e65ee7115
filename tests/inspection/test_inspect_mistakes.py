"""Every usual mistake, made in the files, fails and is named; the fix, done to the files, passes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sr3d.datasets.world import World
from sr3d.inspection import Report, Violation, inspect
from sr3d.inspection.diagnose import check_depth
from sr3d.inspection.mistakes import Convention

GL = np.diag([1.0, -1, -1, 1])
OPENGL = Convention(field="transform_matrix", cam_to_world=True, opengl=True, unit="depth_unit_scale_factor")


def errors(report: Report, where: str = "") -> list[Violation]:
    return [v for v in report.violations if v.severity == "error" and where in v.where]


def poses(f: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for frame in content["frames"]:
            frame["transform_matrix"] = f(np.array(frame["transform_matrix"])).tolist()

    return change


def follow(fix: str) -> Callable[[np.ndarray], np.ndarray]:
    """Do what the text of a fix says to one matrix."""

    def apply(matrix: np.ndarray) -> np.ndarray:
        out = np.linalg.inv(matrix) if fix.startswith("invert transform_matrix") else matrix
        columns = re.search(r"change its columns to (-?\d), (-?\d), (-?\d)", fix)
        if columns:
            chosen = [int(text) for text in columns.groups()]
            out = np.column_stack([*(np.sign(k) * out[:, abs(k) - 1] for k in chosen), out[:, 3]])
        negated = re.search(r"negate (x|y|z) of the camera position", fix)
        if negated:
            out = out.copy()
            out["xyz".index(negated[1]), 3] *= -1
        if "negating every x" in fix:
            out = np.diag([-1.0, 1, 1, 1]) @ out
        return out

    return apply


def test_right_data_passes(capture: Callable[..., Path], tmp_path: Path) -> None:
    report = inspect(capture(), tmp_path / "pictures")
    assert report.usable and report.violations == []
    assert report.facts["reprojection"].startswith("passes: 9") or report.facts["reprojection"].startswith(
        "passes: 100"
    )
    assert report.facts["views"] == "6" and report.facts["image size"] == "160x120"
    assert "ids" in report.facts["labels"] and "100 % of the pixels" in report.facts["depth coverage"]
    for picture in report.pictures:
        with Image.open(picture) as image:
            assert min(image.size) > 200
    assert [p.name for p in report.pictures] == ["views.png", "cameras.png"]


@pytest.mark.parametrize("depth", [True, False], ids=["depth", "matches"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m @ GL, "camera axes right, down, forward (OpenCV's)"),
        (lambda m: np.linalg.inv(m), "is world-to-camera with camera axes right, up, backward (OpenGL's)"),
        (lambda m: np.linalg.inv(m @ GL), "is world-to-camera with camera axes right, down, forward (OpenCV's)"),
        (lambda m: m @ np.array([[0, -1, 0, 0], [0, 0, 1, 0], [-1, 0, 0, 0], [0, 0, 0, 1.0]]).T, "camera axes"),
        (lambda m: np.diag([1, -1, 1, 1]) @ m @ np.diag([1, -1, 1, 1]), "camera axes"),
        (lambda m: m * np.array([[1, 1, 1, -1]] + [[1] * 4] * 3), "x of the camera position has the other sign"),
    ],
    ids=["opencv", "inverse", "inverse opencv", "permuted", "left-handed", "x"],
)
def test_wrong_poses(
    capture: Callable[..., Path], tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], said: str, depth: bool
) -> None:
    def strip(content: dict[str, Any]) -> None:
        for frame in content["frames"] if not depth else []:
            del frame["depth_file_path"]

    def spoil(content: dict[str, Any]) -> None:
        poses(change)(content)
        strip(content)

    report = inspect(capture(spoil), tmp_path / "pictures")
    (error,) = errors(report, "cameras")
    assert said in error.found and not report.usable

    def repair(content: dict[str, Any]) -> None:
        spoil(content)
        poses(follow(error.fix))(content)

    again = inspect(capture(repair, "repaired"), tmp_path / "pictures")
    assert again.usable, again.violations


@pytest.mark.parametrize(("side", "axis"), [("camera", 0), ("camera", 1), ("camera", 2), ("world", 1)])
def test_one_flipped_axis(capture: Callable[..., Path], tmp_path: Path, axis: int, side: str) -> None:
    flip = np.eye(4)
    flip[axis, axis] = -1
    report = inspect(capture(poses(lambda m: m @ flip if side == "camera" else flip @ m)), tmp_path / "pictures")
    assert any("mirrors: determinant -1 (6 frames)" in v.found for v in errors(report))
    # A world that is mirrored as a whole still agrees with itself.
    assert bool(errors(report, "cameras and depth")) == (side == "camera")
    assert ("FAILS" in report.facts["reprojection"]) == (side == "camera")


@pytest.mark.parametrize(
    ("keys", "factor", "said"),
    [
        (("depth_unit_scale_factor",), 1000, "multiply depth_unit_scale_factor by 0.001"),
        (("depth_unit_scale_factor",), 1 / 1000, "multiply depth_unit_scale_factor by 1000"),
        (("depth_unit_scale_factor",), 5, "multiply depth_unit_scale_factor by 0.2"),
        (("depth_unit_scale_factor",), 3.1, "multiply depth_unit_scale_factor by 0.32"),
        (("fl_x", "fl_y", "cx", "cy"), 2, "K belongs to another resolution: multiplied by 0.5"),
        (("fl_x", "fl_y", "cx", "cy"), 0.5, "K belongs to another resolution: multiplied by 2"),
    ],
)
def test_wrong_scale(
    capture: Callable[..., Path], tmp_path: Path, keys: tuple[str, ...], factor: float, said: str
) -> None:
    def change(content: dict[str, Any]) -> None:
        for key in keys:
            content[key] = content.get(key, 0.001) * factor

    (error,) = errors(inspect(capture(change), tmp_path / "pictures"), "cameras and depth")
    assert error.fix.startswith(said)


def test_distance_along_the_ray(capture: Callable[..., Path], room: Any, tmp_path: Path) -> None:
    rays = room.posed().pixel_rays().norm(dim=-1)

    def change(content: dict[str, Any]) -> None:
        for i, frame in enumerate(content["frames"]):
            np.save(tmp_path / f"{i}.npy", (room.depths[i] * rays[i]).numpy())
            frame["depth_file_path"] = str(tmp_path / f"{i}.npy")

    (error,) = errors(inspect(capture(change), tmp_path / "pictures"), "cameras and depth")
    assert "distances along the ray, not z-depths" in error.found and "length of its ray" in error.fix


@pytest.mark.parametrize("depth", [True, False], ids=["depth", "matches"])
def test_one_wrong_pose_is_named(capture: Callable[..., Path], tmp_path: Path, depth: bool) -> None:
    def change(content: dict[str, Any]) -> None:
        for frame in content["frames"] if not depth else []:
            del frame["depth_file_path"]
        pose = np.array(content["frames"][2]["transform_matrix"])
        turn = np.array(
            [[np.cos(0.2), 0, np.sin(0.2), 0], [0, 1, 0, 0], [-np.sin(0.2), 0, np.cos(0.2), 0], [0, 0, 0, 1]]
        )
        content["frames"][2]["transform_matrix"] = (pose @ turn).tolist()

    (error,) = errors(inspect(capture(change), tmp_path / "pictures"))
    assert error.where == "2.png" and "disagrees with the neighbouring views" in error.found


@pytest.mark.parametrize("kind", ["room", "table"])
@pytest.mark.parametrize("baseline", [0.08, 0.3])
def test_right_worlds_pass(kind: Any, baseline: float) -> None:
    world = World.generate(11, kind)
    check = check_depth(world.render(world.sample_cameras(5, 96, 72, baseline=baseline), samples=1), OPENGL)
    same, error, color, _ = check.given.typical()
    assert check.passed and check.doubtful == [] and check.alone == [] and not check.still
    assert same > 0.98 and error < 0.006 and color > 0.85


def test_cameras_that_do_not_move(room: Any) -> None:
    check = check_depth(room.views([0, 0, 0]), OPENGL)
    assert check.still and check.mistake is None


@pytest.mark.parametrize(("name", "least"), [("redkitchen", 0.96), ("redkitchen-clip", 0.98), ("shelf", 0.93)])
def test_real_rgbd_captures(scenes: Path, tmp_path: Path, name: str, least: float) -> None:
    report = inspect(scenes / name, tmp_path)
    assert report.violations == []
    found = re.match(r"passes: (\d+) % of the depth", report.facts["reprojection"])
    assert found and int(found[1]) >= 100 * least


@pytest.mark.parametrize(("name", "most"), [("castle4", 0.25), ("apple", 0.4), ("scannet4", 2.2)])
def test_real_captures_without_depth(scenes: Path, tmp_path: Path, name: str, most: float) -> None:
    report = inspect(scenes / name, tmp_path)
    assert report.usable
    found = re.match(r"passes: median ([\d.]+) px", report.facts["epipolar check"])
    assert found and float(found[1]) < most
