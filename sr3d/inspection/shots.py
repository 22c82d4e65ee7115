"""Views of a capture as they are inspected: numbers from all their pixels, and small copies to compare."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float32, Float64, Int, UInt8
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.scene import Scene

SMALL, MATCHED = 160, 640  # longer sides of the copies that are compared, and matched, in pixels
_RUN, _WIDEST_GAP = 3, 4


@dataclass(kw_only=True)
class Depth:
    """Numbers of one depth map.

    Attributes:
        coverage: Share of pixels with a depth.
        low, median, high: 2 %, 50 % and 98 % of the known depths, world units.
        top: Largest depth, world units.
        at_top: Share of the known depths that are exactly the largest.
        values: Number of different values.
    """

    coverage: float
    low: float
    median: float
    high: float
    top: float
    at_top: float
    values: int


@dataclass(kw_only=True)
class Shot:
    """One view.

    Attributes:
        name: Of its file.
        size: Width and height in pixels.
        small: Image, longer side about 160 pixels. [h, w, 3]
        grey: Image for matching, longer side at most 640 pixels. [gh, gw]
        digest: Of all its pixels: equal for equal images.
        contrast: Standard deviation of the intensities.
        white, black: Shares of pixels with all channels at the top, or at the bottom.
        frame: Widths of black borders in pixels: left, top, right, bottom.
        world_to_cam: [4, 4], or None where there is no pose.
        K: Pixels of `size`. [3, 3]
        depth: Of the small image, nearest neighbour, world units. [h, w]
        depths: Numbers of the whole depth map.
        labels: Pixels per label.
    """

    name: str
    size: tuple[int, int]
    small: Float32[np.ndarray, "h w 3"]
    grey: UInt8[np.ndarray, "gh gw"]
    digest: str
    contrast: float
    white: float
    black: float
    frame: tuple[int, int, int, int]
    world_to_cam: Float64[np.ndarray, "4 4"] | None = None
    K: Float64[np.ndarray, "3 3"] | None = None
    depth: Float32[np.ndarray, "h w"] | None = None
    depths: Depth | None = None
    labels: Counter[int] | None = None


def take_shot(
    name: str,
    image: Float32[np.ndarray, "h w 3"],
    *,
    world_to_cam: Float64[np.ndarray, "4 4"] | None = None,
    K: Float64[np.ndarray, "3 3"] | None = None,
    depth: Float32[np.ndarray, "h w"] | None = None,
    labels: Int[np.ndarray, "h w"] | None = None,
) -> Shot:
    """Numbers and small copies of one decoded view."""
    height, width = image.shape[:2]
    scale = min(1.0, SMALL / max(height, width))
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    scale = min(1.0, MATCHED / max(height, width))
    matched = (max(1, round(width * scale)), max(1, round(height * scale)))
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), matched, interpolation=cv2.INTER_AREA)
    eight = np.rint(image * 255).clip(0, 255).astype(np.uint8)
    brightest = cv2.max(cv2.max(eight[..., 0], eight[..., 1]), eight[..., 2])
    darkest = cv2.min(cv2.min(eight[..., 0], eight[..., 1]), eight[..., 2])
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(np.int64) for n, m in zip(small[::-1], (height, width)))
    return Shot(
        name=name,
        size=(width, height),
        small=cv2.resize(image, small, interpolation=cv2.INTER_AREA),
        grey=(grey * 255).round().clip(0, 255).astype(np.uint8),
        digest=hashlib.sha256(eight.tobytes()).hexdigest(),
        contrast=float(grey.std()),
        white=float((darkest >= 254).mean()),
        black=float((brightest <= 3).mean()),
        frame=_black_frame(brightest),
        world_to_cam=world_to_cam,
        K=K,
        depth=None if depth is None else depth[rows[:, None], columns],
        depths=None if depth is None else _depth_numbers(depth),
        labels=None
        if labels is None
        else Counter(dict(zip(*(v.tolist() for v in np.unique(labels, return_counts=True))))),
    )


def _depth_numbers(depth: Float32[np.ndarray, "h w"]) -> Depth:
    known = depth[depth > 0]
    if not known.size:
        return Depth(coverage=0.0, low=0.0, median=0.0, high=0.0, top=0.0, at_top=0.0, values=0)
    low, median, high = (float(q) for q in np.quantile(known, [0.02, 0.5, 0.98]))
    top = float(known.max())
    share = float((known == known.max()).mean())
    return Depth(
        coverage=known.size / depth.size,
        low=low,
        median=median,
        high=high,
        top=top,
        at_top=share,
        values=len(np.unique(known)),
    )


def _black_frame(brightest: UInt8[np.ndarray, "h w"]) -> tuple[int, int, int, int]:
    """Black columns and rows at the left, top, right and bottom edge; zeros for an image that is black all over."""
    lit = np.greater(brightest, 8)
    columns: npt.NDArray[np.bool_] = lit.any(0)
    rows: npt.NDArray[np.bool_] = lit.any(1)
    if not columns.any():
        return 0, 0, 0, 0
    return int(columns.argmax()), int(rows.argmax()), int(columns[::-1].argmax()), int(rows[::-1].argmax())


def spread(count: int, most: int) -> list[int]:
    """Indices of at most `most` of `count` frames: all, or short runs of near frames spread over the capture.

    Near frames are needed because far ones of a long recording share nothing.
    """
    if count <= most:
        return list(range(count))
    gap = max(1, min(_WIDEST_GAP, count // most))
    starts = np.linspace(0, count - 1 - (_RUN - 1) * gap, most // _RUN).round().astype(int)
    return sorted({int(s) + k * gap for s in starts for k in range(_RUN)})


def small_scene(shots: Sequence[Shot], points: Float[Tensor, "p 3"] | None, name: str) -> Scene:
    """The small copies of posed shots of one size as a scene, cameras in float64."""
    height, width = shots[0].small.shape[:2]
    cameras = Cameras(
        world_to_cam=torch.from_numpy(np.stack([s.world_to_cam for s in shots if s.world_to_cam is not None])),
        K=torch.from_numpy(np.stack([s.K for s in shots if s.K is not None])),
        width=shots[0].size[0],
        height=shots[0].size[1],
    )
    depths = None
    if any(s.depth is not None for s in shots):
        empty = np.zeros((height, width), np.float32)
        depths = torch.from_numpy(np.stack([empty if s.depth is None else s.depth for s in shots]))
    return Scene(
        images=torch.from_numpy(np.stack([s.small for s in shots])),
        cameras=cameras.resized(width, height),
        depths=depths,
        points=points,
        name=name,
    )
