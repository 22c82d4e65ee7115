from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from forest_files import small

from sr3d.io import write_forest


@dataclass
class Capture:
    """A tiny capture on disk, and what is true of it (OpenCV world-to-camera, float64)."""

    folder: Path
    document: dict
    world_to_cam: np.ndarray
    K: np.ndarray
    images: np.ndarray  # [V, H, W, 3] uint8 RGB
    depths: np.ndarray  # [V, H, W] millimetres

    @property
    def json(self) -> Path:
        return self.folder / "transforms.json"

    def save(self) -> None:
        self.json.write_text(json.dumps(self.document))


def look_at(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """OpenCV world-to-camera of a camera at `position`, world z up."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, -rotation @ position
    return pose


@pytest.fixture
def capture(tmp_path: Path) -> Callable[..., Capture]:
    """Writes a nerfstudio capture of a few random images; the poses and intrinsics differ per frame."""

    def write(views: int = 3, width: int = 20, height: int = 12, depth: bool = True) -> Capture:
        rng = np.random.default_rng(7)
        folder = tmp_path / "room"
        for sub in ("images", "depth", "labels"):
            (folder / sub).mkdir(parents=True)
        images = rng.integers(0, 256, (views, height, width, 3), dtype=np.uint8)
        depths = rng.integers(0, 5000, (views, height, width), dtype=np.uint16)
        poses = np.stack(
            [look_at(np.array([2.0, 0.3 * i, 1.0 + 0.1 * i]), np.array([0, 0.2, 0.3])) for i in range(views)]
        )
        K = np.stack([np.array([[18 + i, 0, 9.3], [0, 17 + i, 6.4], [0, 0, 1.0]]) for i in range(views)])
        frames = []
        for i in range(views):
            cv2.imwrite(str(folder / f"images/{i}.png"), images[i, ..., ::-1])
            cv2.imwrite(str(folder / f"depth/{i}.png"), depths[i])
            c2w = np.linalg.inv(poses[i])
            c2w[:, 1:3] *= -1  # OpenGL: y up, z backwards
            frame = {"file_path": f"images/{i}.png", "transform_matrix": c2w.tolist(), "w": width, "h": height}
            frame |= {"fl_x": K[i, 0, 0], "fl_y": K[i, 1, 1], "cx": K[i, 0, 2], "cy": K[i, 1, 2]}
            frames.append(frame | ({"depth_file_path": f"depth/{i}.png"} if depth else {}))
        out = Capture(folder, {"camera_model": "OPENCV", "frames": frames}, poses, K, images, depths)
        out.save()
        return out

    return write


DISTORTION = {"k1": -0.2, "k2": 0.05, "p1": 0.004, "p2": -0.003}


def pattern(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A smooth colour of every viewing ray (x, y, 1). [..., 3]"""
    return np.stack([0.5 + 0.4 * np.sin(2 * x), 0.5 + 0.4 * np.sin(2 * y), 0.5 + 0.4 * np.cos(2 * (x + y))], -1)


def distort(x: np.ndarray, y: np.ndarray, k1: float, k2: float, p1: float, p2: float) -> tuple[np.ndarray, np.ndarray]:
    """Brown's lens, as OpenCV and COLMAP define it."""
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2 * r2
    return (
        x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
        y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
    )


@pytest.fixture
def lens() -> dict[str, float]:
    return DISTORTION


@pytest.fixture
def distorted() -> Callable[[np.ndarray, int, int], np.ndarray]:
    """The image of `pattern` through that lens, 16-bit BGR; pixel centres at +0.5."""

    def make(K: np.ndarray, width: int, height: int) -> np.ndarray:
        v, u = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
        xd, yd = (u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]
        x, y = xd.copy(), yd.copy()
        for _ in range(100):  # fixed-point inverse of the lens
            fx, fy = distort(x, y, **DISTORTION)
            x, y = x + (xd - fx), y + (yd - fy)
        return (pattern(x, y)[..., ::-1] * 65535).round().astype(np.uint16)

    return make


@pytest.fixture
def pattern_error() -> Callable[[np.ndarray, np.ndarray], float]:
    """Largest difference between an undistorted image and the pattern that a pinhole camera K sees."""

    def measure(image: np.ndarray, K: np.ndarray) -> float:
        height, width = image.shape[:2]
        v, u = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
        return float(np.abs(image - pattern((u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1])).max())

    return measure


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A forest on disk, to read only."""
    path = tmp_path_factory.mktemp("forest") / "good.sr3d"
    write_forest(small(), path)
    return path


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    path = tmp_path / "a.sr3d"
    path.mkdir()
    for file in saved.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path
