"""Plane-sweep stereo: depth of every view from its parallax to the others, without training."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.coarse import kernels
from sr3d.coarse.config import SweepConfig
from sr3d.errors import Sr3dError
from sr3d.scene import Scene

_FAR_PARALLAX = 0.25  # pixels: what moves less lies on the farthest plane
_MIN_OVERLAP = 0.1  # share of a view that another one must be able to see


def sweep_depth(scene: Scene, config: SweepConfig) -> tuple[Float[Tensor, "v h w"], Float[Tensor, "v h w"]]:
    """Depth of every view by comparing it with the others along planes of constant inverse depth.

    Cost: truncated absolute difference and ZNCC in small windows weighted by colour, mean of the better half of the
    other views (occlusion). Regularised by semi-global matching, refined between planes, smoothed by local planes,
    checked between views.

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
    images = scene.images.detach().cpu().float().contiguous().numpy()
    pairs = [[_homography(cameras, i, j) for j in range(len(scene))] for i in range(len(scene))]
    inverse = []
    for i in range(len(scene)):
        low, high, sources = _range(scene, pairs, i, config)
        inverse.append(_match(images, pairs[i], i, sources, low, high, config))
    q = np.stack(inverse)
    agree = _consistent(q, pairs, config.max_reprojection)
    agree = np.stack([_without_specks(a, x, config.speck) for a, x in zip(agree, q)])
    depth = torch.from_numpy(1 / q).to(scene.images)
    return depth, torch.from_numpy(agree).to(scene.images)


def _homography(cameras: Cameras, i: int, j: int) -> tuple[np.ndarray, np.ndarray]:
    """A, b (float64) such that pixel p = (u, v, 1) of view i at inverse depth q lies at A p + q b in view j.

    The third component is then z_j / z_i.
    """
    K, pose = cameras.K.double().cpu().numpy(), cameras.world_to_cam.double().cpu().numpy()
    relative = pose[j] @ np.linalg.inv(pose[i])
    return K[j] @ relative[:3, :3] @ np.linalg.inv(K[i]), K[j] @ relative[:3, 3]


def _range(scene: Scene, pairs: list, i: int, config: SweepConfig) -> tuple[float, float, list[int]]:
    """Smallest and largest inverse depth worth looking at in view i, and the other views to compare with."""
    cameras = scene.posed()
    w, h = cameras.width, cameras.height
    grid = np.stack(
        [*np.meshgrid((np.arange(9) + 0.5) * w / 9, (np.arange(9) + 0.5) * h / 9), np.ones((9, 9))], -1
    ).reshape(-1, 3)
    centers = cameras.positions.double().cpu().numpy()
    found = []
    for j in range(len(scene)):
        baseline = float(np.linalg.norm(centers[j] - centers[i]))
        if j == i or baseline <= 1e-9 * max(1.0, float(np.abs(centers).max())):
            continue
        A, b = pairs[i][j]
        # Depth from half a baseline to two thousand, then infinity.
        q = np.append(np.geomspace(2, 5e-4, 49), 0.0) / baseline
        p = (grid @ A.T)[None] + q[:, None, None] * b
        uv = p[..., :2] / np.where(p[..., 2:] > 1e-6, p[..., 2:], np.nan)
        seen = ((uv > 0) & (uv < [w, h])).all(-1).mean(-1)
        if seen.max() < _MIN_OVERLAP:
            continue
        good = np.nonzero(seen >= 0.5 * seen.max())[0]
        with np.errstate(invalid="ignore"):
            parallax = np.linalg.norm(uv - uv[-1:], axis=-1)
        far = q[good[-1]]
        if far == 0:
            moved = np.nanmedian(parallax, axis=1) > _FAR_PARALLAX
            far = q[np.nonzero(moved)[0][-1]] if moved.any() else 0.0
        found.append((float(seen.max()), baseline, j, far, q[good[0]]))
    if not found:
        raise Sr3dError(scene.name, f"view {i}", "no other view with parallax and overlap", "two views of one place")
    found = sorted(found, key=lambda f: f[1] / f[0])[: config.sources]
    low, high = min(f[3] for f in found), min(f[4] for f in found)
    bounds = _point_bounds(scene, i)
    if bounds is not None:
        low, high = bounds
    if not high > low > 0:
        raise Sr3dError(scene.name, f"parallax of view {i}", "under a quarter of a pixel", "a wider baseline")
    return low, high, [f[2] for f in found]


def _point_bounds(scene: Scene, i: int) -> tuple[float, float] | None:
    """Inverse depths that enclose the sparse points in view i with a margin, if there are enough of them."""
    if scene.points is None:
        return None
    cameras = scene.posed().index([i])
    uv, depth = cameras.project(scene.points.to(cameras.K))
    inside = (uv[0] > 0).all(-1) & (uv[0, :, 0] < cameras.width) & (uv[0, :, 1] < cameras.height) & (depth[0] > 0)
    if int(inside.sum()) < 16:
        return None
    q = 1 / depth[0][inside].double()
    low, high = torch.quantile(
        q[torch.linspace(0, len(q) - 1, min(len(q), 100_000)).long()], q.new_tensor([0.01, 0.99])
    )
    return float(low) / 1.5, float(high) * 1.3


def _match(
    images: np.ndarray, maps: list, i: int, sources: list[int], low: float, high: float, config: SweepConfig
) -> np.ndarray:
    """Inverse depth [H, W] of view i within [low, high]."""
    f32 = np.float32
    h, w = images.shape[1:3]
    radius = config.window // 2
    planes = _planes(maps, sources, low, high, h, w, config)
    padded = np.pad(images[i].transpose(2, 0, 1), ((0, 0), (radius, radius), (radius, radius)))
    weights = kernels.window_weights(padded, radius, f32(config.support))
    mean, variance = kernels.window_stats(padded, weights, radius)
    warped, inside = np.zeros_like(padded), np.empty((h, w), f32)
    costs, volume = np.empty((len(sources), h, w), f32), np.empty((len(planes), h, w), f32)
    for d, q in enumerate(planes):
        for n, j in enumerate(sources):
            A, b = maps[j]
            matrix = A.copy()
            matrix[:, 2] += q * b
            kernels.warp(images[j], matrix.astype(f32), radius, warped, inside)
            kernels.window_cost(
                padded, warped, inside, weights, mean, variance, radius,
                f32(config.truncation), f32(config.balance), f32(config.noise), costs[n],
            )  # fmt: skip
        kernels.combine(costs, volume[d])
    cost = np.ascontiguousarray(volume.transpose(1, 2, 0))
    kernels.fill_unseen(cost, f32(config.unseen))
    total = kernels.aggregate(cost, images[i], f32(config.small_jump), f32(config.large_jump), f32(config.edge))
    plane = kernels.winner(total)
    step = (planes[-1] - planes[0]) / (len(planes) - 1)
    for _ in range(config.smoothing):
        plane = kernels.smooth(plane, images[i], f32(config.edge), f32(config.tolerance / config.step))
    return (planes[0] + step * plane.astype(np.float64)).astype(f32)


def _planes(maps: list, sources: list[int], low: float, high: float, h: int, w: int, config: SweepConfig) -> np.ndarray:
    """Inverse depths, evenly spaced, at most `step` pixels of parallax apart (in the mean over the image)."""
    u, v = np.meshgrid((np.arange(5) + 0.5) * w / 5, (np.arange(5) + 0.5) * h / 5)
    p = np.stack([u, v, np.ones_like(u)], -1).reshape(-1, 3)
    length = 0.0
    for j in sources:
        A, b = maps[j]
        near, far = p @ A.T + high * b, p @ A.T + low * b
        front = (near[:, 2] > 0) & (far[:, 2] > 0)
        if front.any():
            track = near[front, :2] / near[front, 2:] - far[front, :2] / far[front, 2:]
            length = max(length, float(np.median(np.linalg.norm(track, axis=-1))))
    count = int(np.clip(np.ceil(length / config.step) + 1, 16, config.max_planes))
    return np.linspace(low, high, count)


def _consistent(q: np.ndarray, pairs: list, limit: float) -> np.ndarray:
    """1 where at least one other view, looked up at the predicted pixel, predicts this pixel to within `limit`."""
    views, h, w = q.shape
    u, v = np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5)
    p = np.stack([u, v, np.ones_like(u)], -1)
    out = np.zeros(q.shape, np.float32)
    for i in range(views):
        for j in range(views):
            if i == j:
                continue
            there = p @ pairs[i][j][0].T + q[i, ..., None] * pairs[i][j][1]
            z = np.maximum(there[..., 2], 1e-6)
            x, y = there[..., 0] / z, there[..., 1] / z
            inside = (there[..., 2] > 0) & (x >= 0) & (x < w) & (y >= 0) & (y < h)
            column, row = np.clip(x, 0, w - 1).astype(int), np.clip(y, 0, h - 1).astype(int)
            pixel = np.stack([x, y, np.ones_like(x)], -1)
            back = pixel @ pairs[j][i][0].T + q[j, row, column][..., None] * pairs[j][i][1]
            back = back[..., :2] / np.maximum(back[..., 2:], 1e-6)
            out[i] = np.maximum(out[i], inside & (np.linalg.norm(back - p[..., :2], axis=-1) < limit))
    return out


def _without_specks(agree: np.ndarray, q: np.ndarray, size: int) -> np.ndarray:
    """`agree` without connected patches of fewer than `size` pixels."""
    scaled = (q / q.max() * 16000).astype(np.int16)
    marked = np.where(agree > 0, scaled, -1).astype(np.int16)
    cv2.filterSpeckles(marked, -1, size - 1, 16000 * 0.03)
    return np.where(marked >= 0, agree, 0).astype(np.float32)
