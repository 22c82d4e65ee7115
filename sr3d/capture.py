"""A capture as a test set: pairs of input views, and target views between them that no method is given."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sr3d.cameras import Cameras
from sr3d.coarse import CoarseConfig, estimate_depth
from sr3d.datasets.batch import Batch, crop_scene, make_batch, reduce_scene
from sr3d.errors import Sr3dError
from sr3d.io import load_scene
from sr3d.scene import Scene

_GRID = 8
_FARTHEST = 24  # frames: what is farther apart in a capture has usually been left and met again
_LEAST_OVERLAP = 0.1


@dataclass(kw_only=True)
class CaptureConfig:
    """How a capture is turned into a test set.

    Attributes:
        factor: Reduction of the inputs, per side.
        baseline: Wanted distance of the two inputs as a share of the typical depth; the middle of the training range.
        pairs: Most pairs of input views.
        targets: Most target views per pair.
        max_pixels: Captures are reduced first until a low-resolution input has no more pixels than this.
    """

    factor: int = 4
    baseline: float = 0.085
    pairs: int = 5
    targets: int = 3
    max_pixels: int = 36_000


@dataclass(kw_only=True)
class Pair:
    """Two inputs and the views between them.

    Attributes:
        context: Indices of the two input views in the capture.
        targets: Indices strictly between them.
        baseline: Distance of the inputs as a share of the typical depth.
        overlap: Share of the worst target view that at least one input sees, at the typical depth.
    """

    context: tuple[int, int]
    targets: list[int]
    baseline: float
    overlap: float


@dataclass(kw_only=True)
class Capture:
    """A capture, and which of its views are used.

    Attributes:
        scene: All views.
        depth: Typical z-depth, world units.
        pairs: Inputs and targets.
    """

    scene: Scene
    depth: float
    pairs: list[Pair]


def read_capture(path: str | Path, config: CaptureConfig) -> Capture:
    """Read a capture and choose its views.

    Args:
        path: Anything `sr3d.load_scene` reads.
        config: Wanted baseline, counts and sizes.

    Raises:
        Sr3dError: It cannot be read, has no poses, or no usable pairs of views.
    """
    scene = load_scene(path)
    depth = typical_depth(scene)
    return Capture(scene=scene, depth=depth, pairs=choose_pairs(scene.posed(), depth, config))


def fit_sizes(scene: Scene, factor: int, max_pixels: int) -> Scene:
    """The scene reduced by a whole number until 1/factor² of its pixels are at most `max_pixels`, and cropped.

    The crop is central and leaves a width and height that `factor` divides.

    Raises:
        Sr3dError: No poses, or less than one pixel would be left.
    """
    scene.posed()
    height, width = scene.images.shape[1:3]
    shrink = max(1, math.ceil(math.sqrt(height * width / factor**2 / max(max_pixels, 1))))
    if max_pixels < 1 or min(height, width) < shrink * factor:
        found = f"{width}x{height} for at most {max_pixels} pixels"
        raise Sr3dError(scene.name, "image size", found, f"at least {factor} pixels per side after reduction")
    scene = reduce_scene(crop_to_multiple(scene, shrink), shrink) if shrink > 1 else scene
    return crop_to_multiple(scene, factor)


def crop_to_multiple(scene: Scene, multiple: int) -> Scene:
    """The central part whose sides are whole multiples."""
    height, width = scene.images.shape[1:3]
    h, w = height - height % multiple, width - width % multiple
    return crop_scene(scene, (width - w) // 2, (height - h) // 2, w, h)


def typical_depth(scene: Scene) -> float:
    """Median z-depth in world units: of its depth maps, else of its sparse points, else of stereo between three views.

    Raises:
        Sr3dError: None of these gives a depth.
    """
    cameras = scene.posed()
    if scene.depths is not None and bool((scene.depths > 0).any()):
        return float(scene.depths[scene.depths > 0].median())
    if scene.points is not None and len(scene.points):
        uv, depth = cameras.project(scene.points.to(cameras.K))
        inside = (uv > 0).all(-1) & (uv < uv.new_tensor([cameras.width, cameras.height])).all(-1) & (depth > 0)
        if bool(inside.any()):
            return float(depth[inside].median())
    step, middle = max(1, len(scene) // 12), len(scene) // 2
    three = scene.views(sorted({max(0, middle - step), middle, min(len(scene) - 1, middle + step)}))
    depth, _ = estimate_depth(fit_sizes(three, 1, 20_000), CoarseConfig(source="sweep"))
    return float(depth[depth > 0].median())


def choose_pairs(cameras: Cameras, depth: float, config: CaptureConfig) -> list[Pair]:
    """Pairs of input views, spread over the capture, with a baseline close to the wanted one.

    The capture is cut into `config.pairs` stretches of equal length; each gives the cheapest of the pairs, at most 24
    frames apart, whose middle lies in it. The cost is the absolute logarithm of the ratio of baseline and wanted
    baseline, plus twice the negative logarithm of the overlap.

    Args:
        cameras: In the order of the capture.
        depth: Typical z-depth, world units.
        config: Wanted baseline and counts.

    Raises:
        Sr3dError: Fewer than three views, or no two inputs that both see what is between them.
    """
    count = len(cameras)
    if count < 3:
        raise Sr3dError("sr3d.capture.choose_pairs", "views", count, "3 or more: two inputs and a view between them")
    seen = _overlaps(cameras, depth)
    centers = cameras.positions.double().numpy()
    stretches = min(config.pairs, count - 2)
    best: dict[int, tuple[float, Pair]] = {}
    for i in range(count - 2):
        for j in range(i + 2, min(count, i + 1 + _FARTHEST)):
            targets = _between(i, j, config.targets)
            overlap = float(min(max(seen[t, i], seen[t, j]) for t in targets))
            baseline = float(np.linalg.norm(centers[j] - centers[i])) / depth
            if overlap < _LEAST_OVERLAP or baseline <= 0:
                continue
            cost = abs(math.log(baseline / config.baseline)) - 2 * math.log(overlap)
            stretch = int((i + j - 2) / 2 / (count - 2) * stretches)
            if stretch not in best or cost < best[stretch][0]:
                best[stretch] = (cost, Pair(context=(i, j), targets=targets, baseline=baseline, overlap=overlap))
    if not best:
        raise Sr3dError(
            "sr3d.capture.choose_pairs", "overlap", "under 10 % everywhere", "neighbouring views of one place"
        )
    return [best[stretch][1] for stretch in sorted(best)]


def _between(i: int, j: int, count: int) -> list[int]:
    """At most `count` whole numbers strictly between i and j, evenly spread."""
    spread = np.linspace(i, j, min(count, j - i - 1) + 2)[1:-1]
    return sorted({round(float(s)) for s in spread})


def _overlaps(cameras: Cameras, depth: float) -> NDArray[np.float64]:
    """Share [V, V] of each view (row) that another view (column) sees if everything lies at one depth."""
    small = cameras.to(torch.float64).resized(_GRID, _GRID)
    points = small.unproject(torch.full((len(cameras), _GRID, _GRID), depth, dtype=torch.float64)).reshape(-1, 3)
    uv, z = small.project(points)
    inside = (uv > 0).all(-1) & (uv < _GRID).all(-1) & (z > 0)
    return inside.reshape(len(cameras), len(cameras), -1).double().mean(-1).T.numpy()


def capture_batches(capture: Capture, config: CaptureConfig) -> Iterator[Batch]:
    """One batch [1, V] per pair, at the sizes of `fit_sizes`."""
    for pair in capture.pairs:
        i, j = pair.context
        clip = fit_sizes(capture.scene.views([i, *pair.targets, j]), config.factor, config.max_pixels)
        last = len(clip) - 1
        yield Batch.stack([make_batch(clip, [0, last], list(range(1, last)), config.factor)])
