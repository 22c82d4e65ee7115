"""From a list of frames, as every capture format describes them, to a `Scene`."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.io.images import read_depth, read_image, read_integers
from sr3d.scene import Scene

# OpenCV's order k1 k2 p1 p2 k3.
NO_DISTORTION = (0.0, 0.0, 0.0, 0.0, 0.0)
# Sensors whose depth and colour differ by a few rows only (ScanNet: 640x480 and 1296x968) still match.
_ASPECT_TOLERANCE = 0.01


@dataclass(kw_only=True)
class Frame:
    """One posed image on disk.

    Attributes:
        image: Colour file.
        world_to_cam: OpenCV axes, float64. [4, 4]
        K: Pixels of the stored image, pixel centres at +0.5, float64. [3, 3]
        size: Width and height that K belongs to; None if the format does not say.
        distortion: k1 k2 p1 p2 k3 of OpenCV's model; of its fisheye model k1 k2 k3 k4.
        fisheye: Which of these models it is.
        depth: Depth file or None.
        depth_unit: World units per step of an integer depth file.
        depth_end: Depths of this or more, in world units, mean unknown (7-Scenes stores 65535 there).
        depth_K: Intrinsics of the depth camera, in pixels of the depth file, where they differ from the colour
            camera's; both cameras are taken to have one centre and one direction. [3, 3]
        labels: Label file or None.
    """

    image: Path
    world_to_cam: NDArray[np.float64]
    K: NDArray[np.float64]
    size: tuple[int, int] | None = None
    distortion: tuple[float, ...] = NO_DISTORTION
    fisheye: bool = False
    depth: Path | None = None
    depth_unit: float = 0.001
    depth_end: float = math.inf
    depth_K: NDArray[np.float64] | None = None
    labels: Path | None = None

    @property
    def distorted(self) -> bool:
        """Whether the image has to be resampled."""
        return self.fisheye or any(self.distortion)


@dataclass(kw_only=True)
class Decoded:
    """The pixels of one frame as a pinhole camera would have recorded them.

    Attributes:
        image: RGB in [0, 1]. [H, W, 3]
        depth: z-depth in world units, 0 where unknown. [H, W]
        labels: [H, W]
        K: Pixels of this image. [3, 3]
    """

    image: NDArray[np.float32]
    depth: NDArray[np.float32] | None
    labels: NDArray[np.int64] | None
    K: NDArray[np.float64]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.shape[1], self.image.shape[0]


def present(source: Path, files: Sequence[Path]) -> list[int]:
    """Indices of the files that exist; one warning names the others.

    Raises:
        Sr3dError: No files at all, none exists, or some are missing and fewer than two remain.
    """
    if not files:
        raise Sr3dError(source, "frames", "an empty list", "at least one frame")
    # os.path.isfile is False, where Path.is_file raises, for names that no file system takes.
    found = [i for i, file in enumerate(files) if os.path.isfile(file)]
    missing = [str(file) for file in files if not os.path.isfile(file)]
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        if len(found) < 2:
            raise Sr3dError(source, "images", f"{len(missing)} of {len(files)} missing: {some}", "at least two images")
        message = f"{source}: {len(missing)} of {len(files)} frames have no image file and are left out: {some}"
        warnings.warn(message, UserWarning, stacklevel=2)
    return found


def choose(source: Path, count: int, views: Sequence[int] | None) -> list[int]:
    """The chosen of `count` frames, all if `views` is None.

    Raises:
        Sr3dError: No view is chosen, or an index is out of range.
    """
    if views is None:
        return list(range(count))
    if not views:
        raise Sr3dError(source, "views", "an empty list", "at least one view")
    for i in views:
        if not -count <= i < count:
            raise Sr3dError(source, "views", i, f"0 to {count - 1} ({count} frames with an image)")
    return [i % count for i in views]


def rigid_inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of a [4, 4] matrix that is about rigid; of any other matrix something that `Cameras.check` refuses.

    Files round rotations to a few digits. The true inverse, unlike the transpose, turns back into what they say.
    """
    R, t = matrix[:3, :3], matrix[:3, 3]
    rigid = np.isfinite(matrix).all() and np.abs(R @ R.T - np.eye(3)).max() < 0.1
    inverse = np.linalg.inv(R) if rigid else R.T
    out = matrix.copy()
    out[:3, :3], out[:3, 3] = inverse, -inverse @ t
    return out


def load_frames(source: Path, frames: Sequence[Frame], points: torch.Tensor | None, name: str) -> Scene:
    """Decode, undistort and check frames.

    Lens distortion is removed here: the image is resampled under a new K that leaves no empty border. Depth and labels
    follow with nearest-neighbour sampling.

    Args:
        source: File or folder named in errors.
        frames: In the order of the scene's views.
        points: Sparse points, world frame. [P, 3]
        name: Name of the scene.

    Raises:
        Sr3dError: A file is damaged or missing, sizes disagree, or a camera is impossible.
    """
    decoded: list[Decoded] = []
    for frame in frames:
        decoded.append(decode_frame(source, frame))
        if decoded[-1].size != decoded[0].size:
            wanted = f"{decoded[0].size[0]}x{decoded[0].size[1]} as {frames[0].image.name}: one size in a scene"
            found = f"{decoded[-1].size[0]}x{decoded[-1].size[1]}"
            raise Sr3dError(source, f"size of {frame.image.name}", found, wanted)

    width, height = decoded[0].size
    cameras = Cameras(
        world_to_cam=torch.from_numpy(np.stack([frame.world_to_cam for frame in frames])),
        K=torch.from_numpy(np.stack([d.K for d in decoded])),
        width=width,
        height=height,
    )
    cameras.check(source, [frame.image.name for frame in frames])
    cameras = replace(cameras, world_to_cam=snap(cameras.world_to_cam)).to(torch.float32)
    return Scene(
        images=torch.from_numpy(np.stack([d.image for d in decoded])),
        cameras=cameras,
        depths=_stack_depths([d.depth for d in decoded], (height, width)),
        labels=_stack_labels(source, [d.labels for d in decoded]),
        points=points,
        paths=[frame.image for frame in frames],
        name=name,
    )


def decode_frame(source: Path, frame: Frame) -> Decoded:
    """The pixels of one frame, without lens distortion; depth and labels at the size of the image.

    Raises:
        Sr3dError: A file is damaged or missing, sizes disagree, or the lens cannot be undone.
    """
    image = read_image(frame.image)
    size = (image.shape[1], image.shape[0])
    if frame.size is not None and frame.size != size:
        wanted = f"{frame.size[0]}x{frame.size[1]} (its w, h): fix w and h, or scale K with the image"
        raise Sr3dError(source, f"size of {frame.image.name}", f"{size[0]}x{size[1]}", wanted)
    depth, label = decode_maps(frame, size)
    if not frame.distorted:
        return Decoded(image=image, depth=depth, labels=label, K=frame.K)
    K, maps = _undistortion(source, frame, size)
    return Decoded(
        image=np.clip(cv2.remap(image, *maps, cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REPLICATE), 0, 1),
        depth=None if depth is None else _remap_nearest(depth, maps),
        labels=None if label is None else _remap_nearest(label, maps),
        K=K,
    )


def decode_maps(frame: Frame, size: tuple[int, int]) -> tuple[NDArray[np.float32] | None, NDArray[np.int64] | None]:
    """Depth (world units) and labels of a frame at the pixels of its stored image of `size` (width, height).

    Raises:
        Sr3dError: A file is damaged or missing, or has another aspect ratio than the image.
    """
    depth = None
    if frame.depth is not None:
        values = read_depth(frame.depth, frame.depth_unit)
        depth = _fit(frame.depth, np.where(values < frame.depth_end, values, np.float32(0)), frame, size)
    labels = None if frame.labels is None else _fit(frame.labels, read_integers(frame.labels), frame, size)
    return depth, labels


def _fit(path: Path, values: NDArray, frame: Frame, size: tuple[int, int]) -> NDArray:
    """A depth or label map at the pixels of its colour image, by nearest neighbour."""
    height, width = values.shape
    if path == frame.depth and frame.depth_K is not None:
        return reproject(values, frame.depth_K, frame.K, size)
    if (width, height) == size:
        return values
    if abs(width / height / (size[0] / size[1]) - 1) > _ASPECT_TOLERANCE:
        raise Sr3dError(path, "size", f"{width}x{height}", f"the aspect ratio of the image, {size[0]}x{size[1]}")
    rows = ((np.arange(size[1]) + 0.5) * height / size[1]).astype(np.int64)
    columns = ((np.arange(size[0]) + 0.5) * width / size[0]).astype(np.int64)
    return values[rows[:, None], columns]


def reproject(values: NDArray, values_K: NDArray[np.float64], K: NDArray[np.float64], size: tuple[int, int]) -> NDArray:
    """What a map of one camera shows in the pixels of another one with the same centre and axes; 0 outside it.

    Args:
        values: [h, w], taken from the nearest pixel.
        values_K: Intrinsics of that camera, pixels of `values`, pixel centres at +0.5. [3, 3]
        K: Intrinsics of the other camera. [3, 3]
        size: Its width and height.

    Returns:
        [height, width], type of `values`.
    """
    for name, matrix in (("K of depth", values_K), ("K of colour", K)):
        if not np.isfinite(matrix).all() or min(matrix[0, 0], matrix[1, 1], matrix[2, 2]) <= 0:
            raise Sr3dError("sr3d.io.frames.reproject", name, matrix.tolist(), "finite, fx and fy > 0, last row 0 0 1")
    v, u = np.meshgrid(np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5, indexing="ij")
    there = np.stack([u, v, np.ones_like(u)], axis=-1) @ (values_K @ np.linalg.inv(K)).T
    columns, rows = (np.floor(there[..., i] / there[..., 2]).astype(np.int64) for i in (0, 1))
    inside = (columns >= 0) & (rows >= 0) & (columns < values.shape[1]) & (rows < values.shape[0])
    return np.where(inside, values[np.where(inside, rows, 0), np.where(inside, columns, 0)], 0).astype(values.dtype)


def _undistortion(
    source: Path, frame: Frame, size: tuple[int, int]
) -> tuple[NDArray[np.float64], tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """K of the undistorted image, and where each of its pixels comes from. OpenCV's pixel centres are at +0."""
    distortion = np.array(frame.distortion, dtype=np.float64)
    if not (np.isfinite(distortion).all() and np.isfinite(frame.K).all() and frame.K[0, 0] > 0 and frame.K[1, 1] > 0):
        raise Sr3dError(source, f"K and distortion of {frame.image.name}", distortion.tolist(), "finite, fx and fy > 0")
    half = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    if frame.fisheye:
        K, maps = _fisheye_maps(frame.K - half, distortion[:4], size)
    else:
        K, _ = cv2.getOptimalNewCameraMatrix(frame.K - half, distortion, size, alpha=0)
        maps = cv2.initUndistortRectifyMap(frame.K - half, distortion, None, K, size, cv2.CV_32FC1)
    # A polynomial turns back on itself beyond some radius; inside the frame that can be no lens.
    folds = (np.diff(maps[0], axis=1) <= 0).any() or (np.diff(maps[1], axis=0) <= 0).any()
    outside = any(m.min() < -1 or m.max() > n for m, n in zip(maps, size))
    if not np.isfinite(K).all() or folds or outside:
        raise Sr3dError(source, f"distortion of {frame.image.name}", distortion.tolist(), "a lens that can be undone")
    return K + half, maps


def _fisheye_maps(
    K: NDArray[np.float64], distortion: NDArray[np.float64], size: tuple[int, int]
) -> tuple[NDArray[np.float64], tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """K of the largest pinhole image without empty border (balance 0), and where its pixels come from."""
    eye = np.eye(3)
    new_K = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(K, distortion, size, eye, balance=0.0)
    return new_K, cv2.fisheye.initUndistortRectifyMap(K, distortion, eye, new_K, size, cv2.CV_32FC1)


def _remap_nearest(values: NDArray, maps: tuple[NDArray[np.float32], NDArray[np.float32]]) -> NDArray:
    """Nearest neighbour by hand: `cv2.remap` has no 64-bit integers."""
    columns = np.clip(np.rint(maps[0]), 0, values.shape[1] - 1).astype(np.int64)
    rows = np.clip(np.rint(maps[1]), 0, values.shape[0] - 1).astype(np.int64)
    return values[rows, columns]


def snap(poses: torch.Tensor) -> torch.Tensor:
    """The nearest rigid poses with the same camera centres: files round rotations to a few digits."""
    # In numpy, whose calls cost a fifth of torch's: clips are snapped whenever they are read.
    out = poses.numpy().copy()
    rotation = out[:, :3, :3]
    centres = -np.linalg.solve(rotation, out[:, :3, 3:])
    U, _, Vt = np.linalg.svd(rotation)
    out[:, :3, :3] = U @ Vt
    out[:, :3, 3:] = -out[:, :3, :3] @ centres
    return torch.from_numpy(out)


def _stack_depths(depths: Sequence[NDArray | None], shape: tuple[int, int]) -> torch.Tensor | None:
    """Frames without a depth map are unknown everywhere."""
    if all(depth is None for depth in depths):
        return None
    filled = [np.zeros(shape, dtype=np.float32) if depth is None else depth for depth in depths]
    return torch.from_numpy(np.stack(filled))


def _stack_labels(source: Path, labels: Sequence[NDArray | None]) -> torch.Tensor | None:
    known = [label for label in labels if label is not None]
    if not known:
        return None
    if len(known) < len(labels):
        raise Sr3dError(source, "labels", f"for {len(known)} of {len(labels)} frames", "for every frame or for none")
    return torch.from_numpy(np.stack(known))
