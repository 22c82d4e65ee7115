"""One clip: posed views of one place, as the files of one sample of a shard (`docs/shards.md`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Float64, Int, Shaped

from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.scene import Scene

ImageFormat = Literal["jpg", "png"]

MAX_COUNT = 65535
MAX_SIDE = 1 << 16
MAX_UNIT = 1e9
# RGB as the pixels lie in the file: K and poses belong to those, whatever an EXIF orientation says.
AS_STORED = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
JPEG_QUALITY = 95
_GRID = 16  # depth samples per side that overlap is measured with
_SAME_DEPTH = 0.1  # relative difference up to which two views are taken to see one surface


@dataclass(kw_only=True)
class View:
    """One view, encoded: as many of these as a clip has stay in memory while it is packed.

    Attributes:
        image: A whole JPEG or PNG file, 8-bit RGB.
        suffix: "jpg" or "png".
        size: Width and height in pixels.
        world_to_cam: Rigid, OpenCV axes. [4, 4]
        K: Pixels of `size`, pixel centres at +0.5. [3, 3]
        frame: Name of the frame in the data set.
        depth: A 16-bit PNG of z-depth in counts, 0 where unknown, or None.
        depth_unit: World units per count.
        samples: z-depth in world units at the centres of a 16 × 16 grid, 0 where unknown, or None. [16, 16]
        labels: PNG of ids as the data set numbers them (classes or instances), or None.
        semantics: PNG of indices into the clip's `classes`; 0 is "unknown". Or None.
    """

    image: bytes
    suffix: ImageFormat
    size: tuple[int, int]
    world_to_cam: Float64[np.ndarray, "4 4"]
    K: Float64[np.ndarray, "3 3"]
    frame: str
    depth: bytes | None = None
    depth_unit: float = 0.001
    samples: Float[np.ndarray, "g g"] | None = None
    labels: bytes | None = None
    semantics: bytes | None = None


@dataclass(kw_only=True)
class Clip:
    """Views of one place, of one image size, in the order of the recording.

    Attributes:
        name: Unique in its data set.
        scene: The place: clips of one scene must stay on one side of a split.
        views: At least one; depth, labels and semantics of all of them or of none.
        metric: World units are metres; else their scale is arbitrary.
        classes: Names of the semantic ids, from 1 on. Empty if there are none.
        points: Sparse points, world frame. [P, 3]
        gaussians: Coarse Gaussians, world frame.
        text: A description.
    """

    name: str
    scene: str
    views: list[View]
    metric: bool = False
    classes: list[str] = field(default_factory=list)
    points: Float[np.ndarray, "p 3"] | None = None
    gaussians: Gaussians | None = None
    text: str | None = None


def encode_image(image: Shaped[np.ndarray, "h w 3"], suffix: ImageFormat) -> bytes:
    """An RGB image, uint8 or float in [0, 1], as PNG or as JPEG (quality 95, colour at full resolution)."""
    if image.dtype != np.uint8:
        image = (image * 255).round().clip(0, 255).astype(np.uint8)
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
    return _file(np.ascontiguousarray(image[..., ::-1]), suffix, options if suffix == "jpg" else [])


def image_dimensions(data: npt.NDArray[np.uint8]) -> tuple[int, int] | None:
    """Width and height from the header of a PNG or JPEG file, not decoded; None if there are none."""
    head = data[:24].tobytes()
    if head.startswith(b"\x89PNG") and len(head) == 24:
        return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    at = 2
    # A JPEG is a list of segments, each with its length; the frame header among them has the size.
    while head.startswith(b"\xff\xd8") and at + 9 <= len(data) and data[at] == 0xFF:
        marker, segment = int(data[at + 1]), data[at + 2 : at + 9].tobytes()
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(segment[5:7], "big"), int.from_bytes(segment[3:5], "big")
        at += 1 if marker == 0xFF else 2 + max(2, int.from_bytes(segment[:2], "big"))
    return None


def encode_depth(depth: Float[np.ndarray, "h w"], unit: float | None, where: str) -> tuple[bytes, float]:
    """z-depth as 16-bit PNG, and its world units per count.

    Args:
        depth: World units, 0 where unknown.
        unit: World units per count; largest depth / 65535 if None. Depth beyond 65535 counts is stored as unknown.
        where: Clip or file named in errors.

    Raises:
        Sr3dError: Depth is negative or not finite.
    """
    if not np.isfinite(depth).all() or depth.min() < 0:
        raise Sr3dError(where, "depth", "negative, NaN or inf", "finite z-depths, 0 where unknown")
    unit = unit or float(depth.max()) / MAX_COUNT or 1.0
    if not 0 < unit < MAX_UNIT:
        raise Sr3dError(where, "depth unit", f"{unit:g} world units per count", f"above 0, below {MAX_UNIT:g}")
    counts = (depth / unit).round()
    counts = np.where(depth > 0, np.maximum(counts, 1), 0)
    return _file(np.where(counts > MAX_COUNT, 0, counts).astype(np.uint16), "png", []), unit


def encode_ids(ids: Int[np.ndarray, "h w"], where: str) -> bytes:
    """Label or semantic ids as 8- or 16-bit PNG.

    Raises:
        Sr3dError: Ids outside 0..65535.
    """
    if ids.min() < 0 or ids.max() > MAX_COUNT:
        raise Sr3dError(where, "labels", f"{ids.min()} to {ids.max()}", f"0 to {MAX_COUNT}")
    return _file(ids.astype(np.uint8 if ids.max() < 256 else np.uint16), "png", [])


def depth_samples(depth: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "g g"]:
    """Depth at the centres of a 16 × 16 grid over the image; what overlap is measured with."""
    height, width = depth.shape
    rows, columns = (((np.arange(_GRID) + 0.5) * n / _GRID).astype(np.int64) for n in (height, width))
    return depth[rows[:, None], columns].astype(np.float32)


def scene_clip(scene: Scene, image_format: ImageFormat = "png") -> Clip:
    """A posed scene as a clip, images encoded.

    Raises:
        Sr3dError: No poses, a batch, an impossible camera, labels outside 0..65535, or depths that are negative or not
            finite.
    """
    cameras = scene.posed()
    if scene.images.ndim != 4:
        raise Sr3dError(scene.name, "images", f"shape {tuple(scene.images.shape)}", "one clip [V, H, W, 3]")
    cameras.check(scene.name)
    poses, K = (t.double().cpu().numpy() for t in (cameras.world_to_cam, cameras.K))
    # One unit for the whole clip: its depths then differ from the original by the same half count everywhere.
    unit = None if scene.depths is None else float(scene.depths.max()) / MAX_COUNT or 1.0
    views = []
    for i in range(len(scene)):
        view = View(
            image=encode_image(scene.images[i].cpu().numpy(), image_format),
            suffix=image_format,
            size=(cameras.width, cameras.height),
            world_to_cam=poses[i],
            K=K[i],
            frame=scene.paths[i].name if scene.paths else f"{i:06d}",
        )
        if scene.depths is not None:
            depth = scene.depths[i].cpu().double().numpy()
            view.depth, view.depth_unit = encode_depth(depth, unit, scene.name)
            view.samples = depth_samples(depth)
        if scene.labels is not None:
            view.labels = encode_ids(scene.labels[i].cpu().numpy(), scene.name)
        views.append(view)
    points = None if scene.points is None else scene.points.cpu().numpy()
    return Clip(name=scene.name, scene=scene.name, views=views, points=points)


def measure_overlap(clip: Clip) -> npt.NDArray[np.uint8] | None:
    """Share of every view (row) that every other view (column) sees, in 255ths. [V, V]

    From depth where all views have it: the grid points of a view that fall into the other one and, where that one has
    a depth at the place, lie within 10 % of it. Else from sparse points: the points in the frame of a view that are
    in the frame of the other one too (occlusion is not seen). None where there is neither.
    """
    width, height = clip.views[0].size
    poses = torch.from_numpy(np.stack([v.world_to_cam for v in clip.views]))
    K = torch.from_numpy(np.stack([v.K for v in clip.views]))
    samples = [v.samples for v in clip.views]
    if all(s is not None for s in samples):
        return _depth_overlap(poses.numpy(), K.numpy(), np.stack([s for s in samples if s is not None]), width, height)
    if clip.points is None or not len(clip.points):
        return None
    seen = np.stack([_inside(p, k, clip.points, width, height)[0] for p, k in zip(poses.numpy(), K.numpy())])
    shared = seen.astype(np.float32) @ seen.T.astype(np.float32)
    return (255 * shared / np.maximum(seen.sum(1)[:, None], 1)).round().astype(np.uint8)


def _depth_overlap(
    poses: Float64[np.ndarray, "v 4 4"],
    K: Float64[np.ndarray, "v 3 3"],
    samples: Float[np.ndarray, "v g g"],
    width: int,
    height: int,
) -> npt.NDArray[np.uint8]:
    grid = (np.arange(_GRID) + 0.5) / _GRID
    v, u = np.meshgrid(grid * height, grid * width, indexing="ij")
    pixels = np.stack([u, v, np.ones_like(u)], axis=-1).reshape(-1, 3)
    out = np.zeros((len(poses), len(poses)), np.uint8)
    for i, (pose, k) in enumerate(zip(poses, K)):
        depth = samples[i].reshape(-1)
        known = depth > 0
        rays = pixels[known] @ np.linalg.inv(k).T * depth[known, None]
        points = (rays - pose[:3, 3]) @ pose[:3, :3]
        for j in range(len(poses)):
            inside, uv, z = _inside(poses[j], K[j], points, width, height)
            cell = (uv[inside] * _GRID / [width, height]).astype(np.int64).clip(0, _GRID - 1)
            there = samples[j][cell[:, 1], cell[:, 0]]
            same = (there == 0) | (np.abs(there - z[inside]) < _SAME_DEPTH * z[inside])
            out[i, j] = round(255 * float(same.sum()) / max(1, int(known.sum())))
    return out


def _inside(
    pose: Float64[np.ndarray, "4 4"],
    K: Float64[np.ndarray, "3 3"],
    points: Float[np.ndarray, "n 3"],
    width: int,
    height: int,
) -> tuple[Bool[np.ndarray, " n"], Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
    """Which points a camera has in its frame, their pixels and z-depths."""
    cam = points @ pose[:3, :3].T + pose[:3, 3]
    z = cam[:, 2]
    uv = (cam @ K.T)[:, :2] / np.where(z > 0, z, 1)[:, None]
    return (z > 0) & (uv >= 0).all(1) & (uv < [width, height]).all(1), uv, z


def _file(image: npt.NDArray[Any], suffix: str, options: list[int]) -> bytes:
    return cv2.imencode(f".{suffix}", image, options)[1].tobytes()
