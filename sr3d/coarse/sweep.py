"""Plane-sweep stereo: depth of every view from its parallax to the others, without training."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.coarse import kernels
from sr3d.coarse.bounds import PixelMap, Search, pixel_grid, pixel_maps, search
from sr3d.coarse.config import SweepConfig
from sr3d.errors import Sr3dError
from sr3d.scene import Scene

_SMALL = 80  # pixels: larger views are first looked at in about this size
_ENOUGH = 0.1  # share of agreeing pixels that may narrow the search


def sweep_depth(scene: Scene, config: SweepConfig) -> tuple[Float[Tensor, "v h w"], Float[Tensor, "v h w"]]:
    """Depth of every view by comparing it with the others along planes of constant inverse depth.

    Cost: truncated absolute difference and ZNCC in small windows weighted by colour, mean of the better half of the
    other views (occlusion). Regularised by semi-global matching, refined between planes, smoothed by local planes,
    checked between views. A first look at coarse steps (and at small images) narrows the interval of depths.

    Args:
        scene: V ≥ 2 posed views. Its sparse points, if any, bound the depth; else the geometry of the cameras does.
        config: Settings.

    Returns:
        z-depth in world units [V, H, W], and 1 where another view agrees, 0 elsewhere [V, H, W].

    Raises:
        Sr3dError: Fewer than two views, no parallax between them, or views of different places.
    """
    cameras = scene.posed()
    if len(scene) < 2:
        raise Sr3dError(scene.name, "views", len(scene), "2 or more for stereo, or depth maps and source 'depth'")
    cameras.check(scene.name)
    maps = pixel_maps(cameras)
    searches = [search(scene, maps, i, config.sources) for i in range(len(scene))]
    images = scene.images.detach().cpu().float().contiguous().numpy()

    reduction = max(1, round(min(cameras.width, cameras.height) / _SMALL))
    width, height = cameras.width // reduction, cameras.height // reduction
    small = np.stack([cv2.resize(x, (width, height), interpolation=cv2.INTER_AREA) for x in images])
    rough = replace(config, step=1.0, max_reprojection=1.0)
    q, agree = _sweep(small, pixel_maps(cameras.resized(width, height)), searches, rough)
    searches = [_narrowed(s, q[i][agree[i] > 0], q[i].size) for i, s in enumerate(searches)]

    q, agree = _sweep(images, maps, searches, config)
    depth = torch.from_numpy(1 / q).to(scene.images)
    return depth, torch.from_numpy(agree).to(scene.images)


def _narrowed(wide: Search, q: npt.NDArray, pixels: int) -> Search:
    """The part of the interval where agreeing pixels were found, and a margin for what they missed."""
    if len(q) < _ENOUGH * pixels:
        return wide
    low, high = np.quantile(q, [0.005, 0.995])
    margin = 0.15 * (high - low) + 0.02 * (wide.high - wide.low)
    return replace(wide, low=max(wide.low, float(low - margin)), high=min(wide.high, float(high + margin)))


def _sweep(
    images: npt.NDArray, maps: list[list[PixelMap]], searches: list[Search], config: SweepConfig
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Inverse depth and agreement of all views [V, H, W]."""
    # Bilinear samples of the images themselves would be blurred, between pixels only: matching would prefer them there.
    doubled = np.stack([cv2.resize(x, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC) for x in images])
    q = np.stack([_match(images[i], doubled, maps[i], s, config) for i, s in enumerate(searches)])
    agree = _consistent(q, maps, config.max_reprojection)
    return q, np.stack([_without_specks(a, x, config.speck) for a, x in zip(agree, q)])


def _match(
    image: npt.NDArray, doubled: npt.NDArray, maps: list[PixelMap], area: Search, config: SweepConfig
) -> npt.NDArray[np.float32]:
    """Inverse depth of a view [H, W, 3] by comparison with the other views [V, 2H, 2W, 3]."""
    f32 = np.float32
    h, w = image.shape[:2]
    radius = config.window // 2
    planes = _planes(maps, area, h, w, config)
    padded = np.pad(image.transpose(2, 0, 1), ((0, 0), (radius, radius), (radius, radius)))
    weights = kernels.window_weights(padded, radius, f32(config.support))
    mean, variance = kernels.window_stats(padded, weights, radius)
    warped, inside = np.zeros((6, *padded.shape[1:]), f32), np.empty((h, w), f32)
    costs, volume = np.empty((len(area.sources), h, w), f32), np.empty((len(planes), h, w), f32)
    for d, q in enumerate(planes):
        for n, j in enumerate(area.sources):
            matrix = maps[j].A.copy()
            matrix[:, 2] += q * maps[j].b
            matrix[:2] *= 2
            kernels.warp(doubled[j], matrix.astype(f32), radius, warped, inside)
            kernels.window_cost(
                padded, warped, inside, weights, mean, variance, radius,
                f32(config.truncation), f32(config.balance), f32(config.noise), costs[n],
            )  # fmt: skip
        kernels.combine(costs, volume[d])
    cost = np.ascontiguousarray(volume.transpose(1, 2, 0))
    kernels.fill_unseen(cost, f32(config.unseen))
    total = kernels.aggregate(cost, image, f32(config.small_jump), f32(config.large_jump), f32(config.edge))
    plane = kernels.winner(total)
    for _ in range(config.smoothing):
        plane = kernels.smooth(plane, image, f32(config.edge), f32(config.tolerance / config.step))
    q = planes[0] + (planes[1] - planes[0]) * plane.astype(np.float64)
    return np.clip(q, planes[0], planes[-1]).astype(f32)


def _planes(maps: list[PixelMap], area: Search, h: int, w: int, config: SweepConfig) -> npt.NDArray[np.float64]:
    """Inverse depths, evenly spaced, about `step` pixels of parallax apart to the source that moves most."""
    grid, length = pixel_grid(w, h, 5), 0.0
    for j in area.sources:
        (near, front), (far, back) = maps[j](grid, area.high), maps[j](grid, area.low)
        visible = (front > 0) & (back > 0)
        if visible.any():
            length = max(length, float(np.median(np.linalg.norm(near - far, axis=-1)[visible])))
    count = int(np.clip(np.ceil(length / config.step) + 1, 8, config.max_planes))
    return np.linspace(area.low, area.high, count)


def _consistent(q: npt.NDArray, maps: list[list[PixelMap]], limit: float) -> npt.NDArray[np.float32]:
    """1 where at least one other view, looked up at the predicted pixel, predicts this pixel to within `limit`."""
    views, h, w = q.shape
    here = pixel_grid(w, h)
    out = np.zeros(q.shape, np.float32)
    for i in range(views):
        for j in range(views):
            if i == j:
                continue
            there, z = maps[i][j](here, q[i])
            x, y = there[..., 0], there[..., 1]
            inside = (z > 0) & (x >= 0) & (x < w) & (y >= 0) & (y < h)
            column, row = np.clip(x, 0, w - 1).astype(int), np.clip(y, 0, h - 1).astype(int)
            back, _ = maps[j][i](there, q[j, row, column])
            out[i] = np.maximum(out[i], inside & (np.linalg.norm(back - here, axis=-1) < limit))
    return out


def _without_specks(agree: npt.NDArray, q: npt.NDArray, size: int) -> npt.NDArray[np.float32]:
    """`agree` without connected patches of fewer than `size` pixels."""
    marked = np.where(agree > 0, q / q.max() * 16000, -1).astype(np.int16)
    cv2.filterSpeckles(marked, -1, size - 1, 16000 * 0.03)
    return np.where(marked >= 0, agree, 0).astype(np.float32)
