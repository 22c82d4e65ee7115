"""ScanNet scenes in the exported folder layout → `Scene`.

color/0.jpg  pose/0.txt (OpenCV camera to world)  intrinsic/intrinsic_color.txt
depth/0.png (millimetres), intrinsic/intrinsic_depth.txt, and label-filt/0.png or label/0.png are read where they exist.
Intrinsics are taken as the files have them, as most code for this data does; whether they count pixel centres at +0 or
+0.5 is not said there, and half a pixel is less than its poses are off.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from sr3d.errors import Sr3dError
from sr3d.io.frames import Frame, choose, load_frames, rigid_inverse
from sr3d.io.images import image_size, list_images
from sr3d.scene import Scene

_INTRINSICS = "intrinsic/intrinsic_color.txt"
_DEPTH_INTRINSICS = "intrinsic/intrinsic_depth.txt"
_LABELS = ("label-filt", "label")
# The principal points of ScanNet's cameras lie within 3 % of the image's middle.
_OFF_CENTRE = 0.1


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

    def refuse(name: str, error: Sr3dError) -> None:
        raise error

    frames = scannet_frames(folder, refuse)
    tracked = [frame for frame in frames if np.isfinite(frame.world_to_cam).all()]
    lost = [frame.image.name for frame in frames if not np.isfinite(frame.world_to_cam).all()]
    if lost:
        message = f"{folder}: {len(lost)} of {len(frames)} frames have no finite pose and are left out: "
        warnings.warn(message + ", ".join(lost[:3]), stacklevel=2)
    if not tracked:
        raise Sr3dError(folder / "pose", "poses", "none finite", "at least one finite pose")
    chosen = [tracked[i] for i in choose(folder, len(tracked), views)]
    return load_frames(folder, chosen, None, folder.resolve().name)


def scannet_frames(folder: Path, on_error: Callable[[str, Sr3dError], None]) -> list[Frame]:
    """The frames of an exported scene in natural order of their names; no image is decoded.

    Where tracking failed the pose is all NaN. Depth and labels are None where a frame has none.

    Args:
        folder: The scene.
        on_error: Called with the name of an image whose pose file is missing or damaged; that frame is left out.

    Raises:
        Sr3dError: There are no images, or intrinsics are missing, damaged, or of another resolution.
    """
    K = _matrix(folder / _INTRINSICS)[:3, :3]
    images = list_images(folder / "color")
    if not images:
        raise Sr3dError(folder / "color", "images", "none", "PNG or JPEG images")
    check_centre(K, first_size(images), folder / _INTRINSICS)
    depths = {image: _beside(folder, "depth", image) for image in images}
    there = [depth for depth in depths.values() if depth is not None]
    depth_K = None
    if there and (folder / _DEPTH_INTRINSICS).is_file():
        depth_K = _matrix(folder / _DEPTH_INTRINSICS)[:3, :3]
        check_centre(depth_K, first_size(there), folder / _DEPTH_INTRINSICS)
    labels = next((name for name in _LABELS if (folder / name).is_dir()), _LABELS[0])
    frames = []
    for image in images:
        try:
            pose = _matrix(folder / "pose" / f"{image.stem}.txt")
        except Sr3dError as error:
            on_error(image.name, error)
            continue
        frames.append(
            Frame(
                image=image,
                world_to_cam=rigid_inverse(pose) if np.isfinite(pose).all() else np.full((4, 4), np.nan),
                K=K,
                depth=depths[image],
                depth_K=depth_K,
                labels=_beside(folder, labels, image),
            )
        )
    return frames


def first_size(images: Iterable[Path]) -> tuple[int, int] | None:
    """Width and height of the first image that can be read; None if none can."""
    for image in images:
        try:
            return image_size(image)
        except Sr3dError:
            continue
    return None


def check_centre(K: Float64[np.ndarray, "3 3"], size: tuple[int, int] | None, source: Path) -> None:
    """Raise for intrinsics of another resolution: all of ScanNet's cameras have their principal point near the middle.

    Args:
        K: Pixels of `size`, pixel centres at +0.5.
        size: Width and height; None if no image of the camera can be read.
        source: File named in the error.

    Raises:
        Sr3dError: The principal point is further than a tenth of the side from the middle.
    """
    if size is not None and not np.abs(K[:2, 2] / size - 0.5).max() < _OFF_CENTRE:
        expected = f"about the middle of images of {size[0]}x{size[1]}: intrinsics of another resolution?"
        raise Sr3dError(source, "principal point", f"{K[0, 2]:.1f}, {K[1, 2]:.1f}", expected)


def _matrix(path: Path) -> NDArray[np.float64]:
    try:
        matrix = np.array([line.split() for line in path.read_text().splitlines() if line.strip()], dtype=np.float64)
    except (OSError, ValueError) as error:
        raise Sr3dError(path, "file", f"{type(error).__name__}: {error}", "4x4 numbers") from error
    if matrix.shape != (4, 4):
        raise Sr3dError(path, "matrix", f"shape {matrix.shape}", "4x4 numbers")
    return matrix


def _beside(folder: Path, kind: str, image: Path) -> Path | None:
    file = folder / kind / f"{image.stem}.png"
    return file if file.is_file() else None
