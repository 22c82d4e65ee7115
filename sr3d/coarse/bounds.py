"""Where stereo has to look: maps between views, and the interval of inverse depth that two views can share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.scene import Scene

_FAR_PARALLAX = 0.25  # pixels: what moves less lies on the farthest plane
_MIN_OVERLAP = 0.1  # share of a view that another one must be able to see
_KEPT_OVERLAP = 0.25  # share of the best overlap under which depths are not looked for


@dataclass(kw_only=True)
class Search:
    """What one view is compared with.

    Attributes:
        low: Smallest inverse depth, 1 / world units, > 0.
        high: Largest inverse depth.
        sources: Other views, by rising baseline.
    """

    low: float
    high: float
    sources: list[int]


@dataclass(kw_only=True)
class PixelMap:
    """Pixel p = (u, v, 1) of one view at inverse depth q lies at A p + q b in the other, up to scale.

    The third component is z there / z here. Float64: b is a baseline in pixels, at any scale of the world.
    """

    A: npt.NDArray[np.float64]
    b: npt.NDArray[np.float64]

    def __call__(self, pixels: npt.NDArray, q: npt.NDArray | float) -> tuple[npt.NDArray, npt.NDArray]:
        """Pixels [..., 2] and q [...] to pixels of the other view [..., 2] and z there / z here [...]."""
        p = pixels @ self.A[:, :2].T + self.A[:, 2] + np.asarray(q)[..., None] * self.b
        return p[..., :2] / np.maximum(p[..., 2:], 1e-9), p[..., 2]


def pixel_maps(cameras: Cameras) -> list[list[PixelMap]]:
    """Maps from every view (first index) to every view (second)."""
    K, pose = cameras.K.double().cpu().numpy(), cameras.world_to_cam.double().cpu().numpy()
    views = range(len(cameras))
    relative = [[pose[j] @ np.linalg.inv(pose[i]) for j in views] for i in views]
    inverse = np.linalg.inv(K)
    return [
        [PixelMap(A=K[j] @ relative[i][j][:3, :3] @ inverse[i], b=K[j] @ relative[i][j][:3, 3]) for j in views]
        for i in views
    ]


def pixel_grid(width: int, height: int, across: int | None = None) -> npt.NDArray[np.float64]:
    """Pixel centres [H, W, 2], or of `across` × `across` cells of the frame."""
    w, h = across or width, across or height
    u, v = np.meshgrid((np.arange(w) + 0.5) * width / w, (np.arange(h) + 0.5) * height / h)
    return np.stack([u, v], axis=-1)


def search(scene: Scene, maps: list[list[PixelMap]], view: int, sources: int) -> Search:
    """What to compare a view with, and between which depths.

    The nearest depth still overlaps by a quarter of the best overlap; the farthest one does too, and moves by a quarter
    of a pixel. Sparse points that the view sees bound the interval instead, with a margin.

    Raises:
        Sr3dError: No other view has parallax to this one and sees part of the same place.
    """
    cameras = scene.posed()
    centers = cameras.positions.double().cpu().numpy()
    found = []
    for j in range(len(scene)):
        baseline = float(np.linalg.norm(centers[j] - centers[view]))
        if j == view or baseline <= 1e-6 * float(np.abs(centers).max()):
            continue
        interval = _shared_interval(maps[view][j], baseline, cameras.width, cameras.height)
        if interval is not None:
            overlap, low, high = interval
            found.append((baseline / overlap, j, low, high))
    if not found:
        raise Sr3dError(scene.name, f"view {view}", "no other view with parallax and overlap", "two views of one place")
    # Near views are least occluded, far ones tell depths best apart: some of each.
    found.sort()
    steps = np.linspace(0, len(found) - 1, min(len(found), sources))
    chosen = [found[k] for k in np.rint(steps).astype(int)]
    points = _point_interval(scene, view)
    low, high = points or (min(c[2] for c in chosen), min(c[3] for c in chosen))
    return Search(low=low, high=high, sources=[c[1] for c in chosen])


def _shared_interval(to: PixelMap, baseline: float, width: int, height: int) -> tuple[float, float, float] | None:
    """Best overlap and the interval of inverse depth; None without overlap or parallax."""
    # Depths from half a baseline to two thousand baselines, then infinity.
    q = np.append(np.geomspace(2, 5e-4, 49), 0.0) / baseline
    pixels, z = to(pixel_grid(width, height, 9)[None], q[:, None, None])
    seen = ((pixels > 0) & (pixels < [width, height])).all(-1) & (z > 0)
    share = seen.mean(axis=(1, 2))
    if share.max() < _MIN_OVERLAP:
        return None
    kept = np.nonzero(share >= _KEPT_OVERLAP * share.max())[0]
    parallax = np.median(np.linalg.norm(pixels - pixels[kept[-1]], axis=-1), axis=(1, 2))
    moving = kept[parallax[kept] > _FAR_PARALLAX]
    if not len(moving):
        return None
    return float(share.max()), float(q[moving[-1]]), float(q[kept[0]])


def _point_interval(scene: Scene, view: int) -> tuple[float, float] | None:
    """Inverse depths that enclose the sparse points in a view with a margin, if there are enough of them."""
    if scene.points is None:
        return None
    cameras = scene.posed().index([view])
    uv, depth = cameras.project(scene.points.to(cameras.K))
    size = torch.tensor([cameras.width, cameras.height]).to(uv)
    inside = ((uv[0] > 0) & (uv[0] < size)).all(-1) & (depth[0] > 0)
    if int(inside.sum()) < 16:
        return None
    low, high = np.quantile(1 / depth[0][inside].double().cpu().numpy(), [0.01, 0.99])
    return float(low) / 1.5, float(high) * 1.3
