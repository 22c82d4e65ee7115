"""ScanNet scenes in the exported folder layout → `Scene`.

color/0.jpg  pose/0.txt (OpenCV camera to world)  intrinsic/intrinsic_color.txt
depth/0.png (millimetres) and label/0.png are read where they exist.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sr3d.errors import Sr3dError
from sr3d.io.frames import Frame, choose, load_frames, rigid_inverse
from sr3d.io.images import list_images
from sr3d.scene import Scene

_INTRINSICS = "intrinsic/intrinsic_color.txt"


def is_scannet(folder: str | Path) -> bool:
    """Whether a folder has color/, pose/ and the colour intrinsics."""
    folder = Path(folder)
    return all([(folder / "color").is_dir(), (folder / "pose").is_dir(), (folder / _INTRINSICS).is_file()])


def load_scannet(folder: str | Path, views: Sequence[int] | None = None) -> Scene:
    """Read an exported ScanNet scene. Frames whose tracking failed (pose of infinities) are left out with one warning.

    Args:
        folder: The scene.
        views: Frames to decode, counted among those with a pose; all if None.

    Raises:
        Sr3dError: See `sr3d.load_scene`.
    """
    folder = Path(folder)
    K = _matrix(folder / _INTRINSICS)[:3, :3]
    images = list_images(folder / "color")
    if not images:
        raise Sr3dError(folder / "color", "images", "none", "PNG or JPEG images")
    poses = {image: _matrix(folder / "pose" / f"{image.stem}.txt") for image in images}
    tracked = [image for image in images if np.isfinite(poses[image]).all()]
    lost = [image.name for image in images if not np.isfinite(poses[image]).all()]
    if lost:
        message = f"{folder}: {len(lost)} of {len(images)} frames have no finite pose and are left out: "
        warnings.warn(message + ", ".join(lost[:3]), stacklevel=2)
    if not tracked:
        raise Sr3dError(folder / "pose", "poses", "none finite", "at least one finite pose")
    chosen = [tracked[i] for i in choose(folder, len(tracked), views)]
    frames = [
        Frame(
            image=image,
            world_to_cam=rigid_inverse(poses[image]),
            K=K,
            depth=_beside(folder, "depth", image),
            labels=_beside(folder, "label", image),
        )
        for image in chosen
    ]
    return load_frames(folder, frames, None, folder.resolve().name)


def _beside(folder: Path, kind: str, image: Path) -> Path | None:
    file = folder / kind / f"{image.stem}.png"
    return file if file.is_file() else None


def _matrix(path: Path) -> NDArray[np.float64]:
    try:
        matrix = np.array([line.split() for line in path.read_text().splitlines() if line.strip()], dtype=np.float64)
    except (OSError, ValueError) as error:
        raise Sr3dError(path, "file", f"{type(error).__name__}: {error}", "4x4 numbers") from error
    if matrix.shape != (4, 4):
        raise Sr3dError(path, "matrix", f"shape {matrix.shape}", "4x4 numbers")
    return matrix
