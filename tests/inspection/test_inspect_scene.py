"""Single wrong values in a scene folder: every one is reported, with a fix."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sr3d import Sr3dError
from sr3d.cli import main
from sr3d.inspection import Report, inspect
from sr3d.inspection.shots import spread


def found(report: Report, severity: str) -> list[str]:
    return [f"{v.where}: {v.found}" for v in report.violations if v.severity == severity]


def frames(f: Callable[[dict[str, Any], int], None]) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for i, frame in enumerate(content["frames"]):
            f(frame, i)

    return change


def edit_pose(number: int, f: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        pose = np.array(content["frames"][number]["transform_matrix"])
        content["frames"][number]["transform_matrix"] = f(pose).tolist()

    return change


def scaled(pose: np.ndarray, factor: float) -> np.ndarray:
    out = pose.copy()
    out[:3, :3] *= factor
    return out


def without(key: str, number: int) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["frames"][number].pop(key)


@pytest.mark.parametrize(
    ("change", "severity", "text"),
    [
        (edit_pose(1, lambda m: m * np.nan), "error", "transform_matrix of 1.png: NaN or inf (1 frames)"),
        (edit_pose(1, lambda m: scaled(m, 2.0)), "error", "1.png: the rotation of transform_matrix is scaled by 2"),
        (edit_pose(1, lambda m: m + 0.2 * np.eye(4)), "error", "1.png: transform_matrix holds no rotation (1 frames"),
        (lambda c: c["frames"][1].update(transform_matrix=c["frames"][0]["transform_matrix"]), "warning",
         "0.png, 1.png: exactly one pose for several frames"),
        (lambda c: c["frames"][1].update(file_path=c["frames"][0]["file_path"]), "error",
         "one and the same image with different poses"),
        (lambda c: c["frames"].append(c["frames"][0]), "warning", "one and the same image several times"),
        (lambda c: c["frames"].append(c["frames"][0] | {"file_path": "gone.png"}), "warning",
         "gone.png: no image file (1 of 7 frames)"),
        (without("depth_file_path", 3), "warning", "3.png: no depth map (1 of 6 views)"),
        (without("label_file_path", 3), "error", "3.png: no labels (1 of 6 views)"),
        (lambda c: c["frames"][4].update(w=320, h=240), "error", "size of 4.png: 160x120"),
        (lambda c: c.update(cx=20.0), "error", "the principal point 20, 60 is far from the middle of 160x120"),
        (lambda c: c.update(fl_y=0.5 * c["fl_y"]), "warning", "fx and fy differ by more than a quarter"),
        (lambda c: c.update(fl_x=0.86, fl_y=1.15, cx=0.5, cy=0.5), "error", "normalised units, not pixels of 160x120"),
        (frames(lambda f, i: f.update(transform_matrix=[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])),
         "error", "poses: all cameras are at one place"),
    ],
)  # fmt: skip
def test_wrong_entries(
    capture: Callable[..., Path], tmp_path: Path, change: Callable[[dict[str, Any]], None], severity: str, text: str
) -> None:
    report = inspect(capture(change), tmp_path / "pictures")
    assert any(text in line for line in found(report, severity)), report.violations
    assert severity == "warning" or not report.usable


def as_image(path: str, change: Callable[[np.ndarray], np.ndarray], to: Path) -> str:
    Image.fromarray(change(np.asarray(Image.open(path)))).save(to)
    return str(to)


def saturated(depth: np.ndarray) -> np.ndarray:
    out = depth.copy()
    out[:20] = 65535
    return out


def framed(image: np.ndarray) -> np.ndarray:
    out = image.copy()
    out[:, :12] = 0
    return out


@pytest.mark.parametrize(
    ("key", "change", "severity", "text"),
    [
        ("depth_file_path", saturated, "error", "depth of 65535 counts (6 frames)"),
        ("depth_file_path", lambda d: np.full_like(d, 1), "error", "depth is the same everywhere (6 frames)"),
        ("depth_file_path", np.zeros_like, "error", "depth: every inspected map is empty"),
        ("depth_file_path", lambda d: np.where(np.arange(160) < 8, d, 0).astype(np.uint16), "warning",
         "depth for less than 10 % of the pixels (6 frames)"),
        ("depth_file_path", lambda d: (d // 30).astype(np.uint8), "warning", "no depth above 255 counts (6 frames)"),
        ("file_path", lambda i: np.full_like(i, 128), "warning", "blank images (6)"),
        ("file_path", lambda i: np.maximum(i, np.where(np.arange(160) < 80, 255, 0)[:, None]).astype(np.uint8),
         "warning", "over 30 % of the pixels are white (6 frames)"),
        ("file_path", framed, "warning", "images: a black border in every view: 12 px left"),
        ("label_file_path", np.zeros_like, "warning", "labels: only the id 0"),
    ],
)  # fmt: skip
def test_wrong_pixels(
    capture: Callable[..., Path],
    tmp_path: Path,
    key: str,
    change: Callable[[np.ndarray], np.ndarray],
    severity: str,
    text: str,
) -> None:
    folder = capture(frames(lambda f, i: f.update({key: as_image(f[key], change, tmp_path / f"changed{i}.png")})))
    report = inspect(folder, tmp_path / "pictures")
    assert any(text in line for line in found(report, severity)), report.violations


def test_one_image_size_and_damaged_files(capture: Callable[..., Path], tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        large = Image.open(content["frames"][0]["file_path"]).resize((320, 240))
        large.save(tmp_path / "large.png")
        (tmp_path / "cut.png").write_bytes(Path(content["frames"][1]["file_path"]).read_bytes()[:900])
        content["frames"][0].update(file_path=str(tmp_path / "large.png"), w=320, h=240)
        content["frames"][1].update(file_path=str(tmp_path / "cut.png"))

    errors = found(inspect(capture(change), tmp_path / "pictures"), "error")
    assert any("large.png: 2 image sizes in one scene" in e for e in errors)
    assert any(e.startswith("cut.png, image:") for e in errors)


@pytest.mark.parametrize(("turned", "severity"), [(False, "warning"), (True, "error")])
def test_exif_orientation(capture: Callable[..., Path], tmp_path: Path, turned: bool, severity: str) -> None:
    """A viewer turns these images; K may belong to either."""

    def change(content: dict[str, Any]) -> None:
        exif = Image.Exif()
        exif[274] = 6
        for i, frame in enumerate(content["frames"]):
            Image.open(frame["file_path"]).save(tmp_path / f"{i}.jpg", exif=exif, quality=97)
            frame["file_path"] = str(tmp_path / f"{i}.jpg")
        if turned:
            content |= {"cx": content["cy"], "cy": content["cx"]}
            content.update(cx=60.0, cy=80.0)

    report = inspect(capture(change), tmp_path / "pictures")
    assert any("EXIF" in line for line in found(report, severity))


def test_plain_images_have_no_poses(files: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    for i, frame in enumerate(files["frames"]):
        shutil.copy(frame["file_path"], folder / f"{i}.png")
    assert main(["inspect", str(folder), "-o", str(tmp_path / "pictures")]) == 1
    out = capsys.readouterr().out
    assert "error poses: none: plain images" in out and "COLMAP" in out and "do not train on it" in out
    assert (tmp_path / "pictures" / "views.png").is_file()


def test_exit_status(capture: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = str(tmp_path / "pictures")
    assert main(["inspect", str(capture()), "-o", pictures]) == 0
    assert "0 errors, 0 warnings: fit to train on" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    for path, text in (
        (tmp_path / "nowhere", "no such file or folder"),
        (tmp_path / "empty", "content: found nothing"),
    ):
        assert main(["inspect", str(path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and text in error and error.count("\n") == 1


def test_nothing_can_be_decoded(capture: Callable[..., Path], tmp_path: Path) -> None:
    folder = capture(lambda content: content.update(w=320, h=240))
    with pytest.raises(Sr3dError, match=r"frames: found none can be decoded: .*size of 0\.png"):
        inspect(folder, tmp_path / "pictures")
    (folder / "transforms.json").write_text(json.dumps({"frames": []}))
    with pytest.raises(Sr3dError, match="frames: found none usable"):
        inspect(folder, tmp_path / "pictures")
    assert not (tmp_path / "pictures").exists()


def test_default_folder_of_pictures(
    capture: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = inspect(capture())
    assert report.pictures == [Path("outputs/inspect/capture/views.png"), Path("outputs/inspect/capture/cameras.png")]


def test_other_formats(files: dict[str, Any], tmp_path: Path) -> None:
    """ScanNet's layout: camera-to-world in OpenCV axes; the fix of a wrong pose speaks of its files."""
    folder = tmp_path / "scene0000_00"
    for name in ("color", "pose", "depth", "intrinsic"):
        (folder / name).mkdir(parents=True)
    K = np.eye(4)
    K[:2, :3] = [[files["fl_x"], 0, files["cx"] - 0.5], [0, files["fl_y"], files["cy"] - 0.5]]
    np.savetxt(folder / "intrinsic/intrinsic_color.txt", K)
    for i, frame in enumerate(files["frames"]):
        Image.open(frame["file_path"]).save(folder / f"color/{i}.jpg", quality=97)
        shutil.copy(frame["depth_file_path"], folder / f"depth/{i}.png")
        np.savetxt(folder / f"pose/{i}.txt", np.array(frame["transform_matrix"]) * [1, -1, -1, 1])
    report = inspect(folder, tmp_path / "pictures")
    assert report.violations == [] and "ScanNet" in report.kind
    for i, frame in enumerate(files["frames"]):
        np.savetxt(folder / f"pose/{i}.txt", frame["transform_matrix"])
    (error,) = inspect(folder, tmp_path / "pictures").violations
    assert "pose/*.txt has camera axes right, up, backward (OpenGL's)" in error.found
    assert error.fix == "change its columns to 1, -2, -3"


@pytest.mark.parametrize("count", [1, 49, 50, 51, 103, 400, 5000])
def test_frames_of_a_long_recording(count: int) -> None:
    chosen = spread(count, 50)
    assert len(chosen) <= 50 and sorted(set(chosen)) == chosen and chosen[0] >= 0 and chosen[-1] < count
    assert len(chosen) == count if count <= 50 else len(chosen) > 25
    if count > 150:
        assert np.median(torch.tensor(chosen).diff().numpy()) <= 4 and chosen[-1] > 0.98 * count
