"""The renderer on CPU: Numba kernels with a hand-written backward, float32 behind the projection, deterministic."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sr3d.errors import Sr3dError
from sr3d.lod import BLOCK as FOREST_BLOCK
from sr3d.lod import Forest, Lod
from sr3d.lod.checks import check_footprints
from sr3d.rendering import _raster, _tiles
from sr3d.rendering._fade import MODES
from sr3d.rendering._project import BLOCK, TILE, project, project_backward
from sr3d.rendering.cull import Frustum, visible_blocks
from sr3d.rendering.job import Raster, Splats, Views
from sr3d.threads import share

_DEEP = 1e5  # focal length in pixels from which float32 no longer tells depths apart
_CHANNELS = 64  # feature channels whose gradients are taken in one pass


def rasterize(splats: Splats, views: Views) -> Raster:
    """See `sr3d.rendering.reference.rasterize`; computes in float32, returns the dtype of the means."""
    s, none = splats, splats.means.new_empty(0, dtype=torch.float32)
    features = s.means.new_zeros(len(s.means), 0) if s.features is None else s.features
    footprints = (none, none, none) if s.lod is None else (s.lod.native, s.lod.coarser, s.lod.finer)
    image, alpha, median, ids = _Rasterize.apply(
        s.means, s.quats, s.scales, s.opacities, s.sh, features, views.world_to_cam, *footprints, s.offsets,
        replace(views, world_to_cam=views.world_to_cam.detach()),
    )  # fmt: skip
    if not views.inspect:
        return Raster(image=image, alpha=alpha)
    return Raster(image=image, alpha=alpha, median_depth=median, ids=ids)


def rasterize_forest(forest: Forest, views: Views, features: bool) -> Raster:
    """One frame of a forest per camera: only its visible blocks are read. No gradients.

    Args:
        forest: In CPU memory, or mapped from files.
        views: B = 1.
        features: Also draw the features.

    Returns:
        B = 1; `ids` are rows of the forest.

    Raises:
        Sr3dError: A visible block holds impossible values.
    """
    count, width = views.K.shape[1], forest.levels[0].gaussians.features
    channels = width.shape[-1] if features and width is not None else 0
    image = np.empty((1, count, views.height, views.width, 4 + channels), np.float32)
    alpha = np.empty((1, count, views.height, views.width), np.float32)
    median, ids = _pictures(views, 1, count)
    for c in range(count):
        drawn, extra, rows = _project_forest(forest, views, c, channels)
        _draw(drawn, extra, views, image[0, c], median[0, c : c + 1], ids[0, c : c + 1])
        np.subtract(np.float32(1), drawn.transmittance, out=alpha[0, c])
        if views.inspect:
            ids[0, c] = np.where(ids[0, c] < 0, -1, rows[ids[0, c] // FOREST_BLOCK] + ids[0, c] % FOREST_BLOCK)
    out = [torch.from_numpy(a) for a in (image, alpha, median, ids)]
    if not views.inspect:
        return Raster(image=out[0], alpha=out[1])
    return Raster(image=out[0], alpha=out[1], median_depth=out[2], ids=out[3])


@dataclass
class TiledView:
    """Splats of one view (see `_project` and `_raster.draw`), and what its backward pass needs."""

    splats: np.ndarray
    boxes: np.ndarray
    start: np.ndarray
    members: np.ndarray
    transmittance: np.ndarray


def _project_forest(forest: Forest, views: Views, c: int, channels: int) -> tuple[TiledView, np.ndarray, np.ndarray]:
    """Splats of the visible blocks of all levels, their features, and the first forest row of every block of splats."""
    pose, K = views.world_to_cam[0, c].double(), views.K[0, c].double()
    size, fade = (views.width, views.height), views.fade
    frustum = Frustum.of(pose, K, *size, views.near)
    cut = [visible_blocks(forest, k, frustum, fade is not None) for k in range(len(forest.levels))]
    splats, boxes = _blank(FOREST_BLOCK * sum(len(blocks) for blocks in cut))
    extra = np.empty((len(splats), channels), np.float32)
    at, rows = 0, []
    for k, (level, blocks) in enumerate(zip(forest.levels, cut)):
        if len(blocks) == 0:
            continue
        rows.append(forest.starts[k] + FOREST_BLOCK * blocks.numpy())
        here = slice(at, at + FOREST_BLOCK * len(blocks))
        g, lod, view = level.gaussians, level.lod, _view_arrays(pose, K, level.origin)
        finer = forest.finer(k, blocks).numpy().reshape(-1)
        fields = [t.numpy() for t in (g.means, g.quats, g.scales, g.opacities, g.sh, lod.native, lod.coarser)]
        bad = np.zeros(1, np.int64)
        share(
            project, len(blocks), blocks.numpy(), FOREST_BLOCK, *fields, finer, MODES[fade], *view, *size,
            views.antialias, views.near, splats[here], splats[here].view(np.float64), boxes[here], bad,
        )  # fmt: skip
        if bad[0]:
            raise Sr3dError(
                forest.name, f"level {k}: footprints", f"NaN, <= 0 or out of order in row {bad[0] - 1}",
                "0 <= finer <= native <= coarser, native > 0",
            )  # fmt: skip
        if channels:
            assert g.features is not None
            share(
                _tiles.gather, len(blocks), blocks.numpy(), FOREST_BLOCK, g.features.numpy(), boxes[here], extra[here]
            )
        at = here.stop
    return _tiled(splats, boxes, views, K), extra, np.concatenate(rows) if rows else np.zeros(1, np.int64)


def project_scene(scene: list[np.ndarray], mode: int, views: Views, b: int, c: int, bad: np.ndarray) -> TiledView:
    """Splats of one scene in view c of scene b, near to far in every tile.

    Args:
        scene: Means, quats, scales, opacities, sh, features (not looked at), native, coarser and finer footprints.
        mode: How levels fade; 0: not at all, and footprints are not looked at.
        views: All of them.
        b: Scene.
        c: View.
        bad: Set to 1 + the first row with an impossible footprint. [1]
    """
    pose, K = views.world_to_cam[b, c].double(), views.K[b, c].double()
    splats, boxes = _blank(len(scene[0]))
    blocks = np.arange(-(-len(splats) // BLOCK))
    share(
        project, len(splats) // 2048, blocks, BLOCK, *scene[:5], *scene[6:], mode,
        *_view_arrays(pose, K, torch.zeros(3, dtype=torch.float64)), views.width, views.height,
        views.antialias, views.near, splats, splats.view(np.float64), boxes, bad,
    )  # fmt: skip
    return _tiled(splats, boxes, views, K)


def _blank(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Room for splats; nothing is drawn where the kernels do not write."""
    return np.empty((count, 16), np.float32), np.zeros((count, 4), np.int16)


def _view_arrays(pose: Tensor, K: Tensor, origin: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pose, origin of the means, and K, all float64."""
    return pose.contiguous().numpy(), origin.numpy(), K.contiguous().numpy()


def _tiled(splats: np.ndarray, boxes: np.ndarray, views: Views, K: Tensor) -> TiledView:
    """Sort splats by depth and list those of every tile."""
    width, height = views.width, views.height
    across, down = -(-width // TILE), -(-height // TILE)
    nearest = np.array([views.near], np.float64).view(np.uint64)[0]
    drop = np.uint64(29 if math.sqrt(K[0, 0] * K[1, 1]) < _DEEP else 12)  # 29 leaves the 23 bits of a float32
    order = _tiles.depth_order(boxes, splats.view(np.uint64), nearest, drop)
    counts, bands = np.zeros(across * down, np.int64), min(torch.get_num_threads(), len(order) // 4096, down)
    share(_tiles.count_members, bands, boxes, order, across, down, counts)
    start = np.append(0, np.cumsum(counts))
    members, fill = np.empty(start[-1], np.int32), start[:-1].copy()
    share(_tiles.fill_members, bands, boxes, order, across, down, fill, members)
    return TiledView(splats, boxes, start, members, np.empty((height, width), np.float32))


def _draw(
    view: TiledView, features: np.ndarray, views: Views, image: np.ndarray, median: np.ndarray, ids: np.ndarray
) -> None:
    """Composite one view into `image` [H, W, 4 + D] and its transmittance, and what `inspect` asks for."""
    tiles = len(view.start) - 1
    share(_raster.draw, tiles // 4, view.splats, features, view.start, view.members, image, view.transmittance)
    if views.inspect:
        share(_raster.inspect, tiles // 4, view.splats, view.start, view.members, median[0], ids[0])


def _pictures(views: Views, scenes: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Room for median depths and ids, empty where they are not asked for."""
    shape = (scenes, count, views.height, views.width) if views.inspect else (scenes, count, 0, 0)
    return np.empty(shape, np.float32), np.empty(shape, np.int64)


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        sh: Tensor,
        features: Tensor,
        world_to_cam: Tensor,
        native: Tensor,
        coarser: Tensor,
        finer: Tensor,
        offsets: list[int],
        views: Views,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scenes, count = views.K.shape[:2]
        tensors = (means, quats, scales, opacities, sh, features, native, coarser, finer)
        arrays = [as_array(means, keep_double=True), *(as_array(t) for t in tensors[1:])]
        image = np.empty((scenes, count, views.height, views.width, 4 + features.shape[-1]), np.float32)
        alpha = np.empty((scenes, count, views.height, views.width), np.float32)
        median, ids = _pictures(views, scenes, count)
        kept, bad = [], np.zeros(1, np.int64)
        for b, c in np.ndindex(scenes, count):
            scene = _scene(arrays, offsets, b)
            view = project_scene(scene, _mode(native, views), views, b, c, bad)
            if bad[0]:
                level = torch.zeros_like(native, dtype=torch.int32)
                check_footprints("sr3d.render", Lod(native=native, coarser=coarser, finer=finer, level=level))
            _draw(view, scene[5], views, image[b, c], median[b, c : c + 1], ids[b, c : c + 1])
            np.subtract(np.float32(1), view.transmittance, out=alpha[b, c])
            if any(ctx.needs_input_grad):
                kept.append(view)
        out_image, out_alpha, out_median = (torch.from_numpy(a).to(means.dtype) for a in (image, alpha, median))
        out_ids = torch.from_numpy(ids)
        ctx.save_for_backward(*tensors, world_to_cam, out_image)
        ctx.kept, ctx.offsets, ctx.views = kept, offsets, views
        ctx.mark_non_differentiable(out_median, out_ids)
        return out_image, out_alpha, out_median, out_ids

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_image: Tensor, g_alpha: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, world_to_cam, image = ctx.saved_tensors
        views, need = ctx.views, ctx.needs_input_grad
        arrays = [as_array(tensors[0], keep_double=True), *(as_array(t) for t in tensors[1:])]
        pixels = [as_array(t) for t in (image, g_image, g_alpha)]
        grads = [np.zeros(a.shape, np.float32) for a in arrays[:6]]
        g_poses = np.zeros(world_to_cam.shape, np.float32)
        for (b, c), view in zip(np.ndindex(*world_to_cam.shape[:2]), ctx.kept):
            scene, g_scene = _scene(arrays, ctx.offsets, b), _scene(grads, ctx.offsets, b)
            pose, K = views.world_to_cam[b, c].double(), views.K[b, c].double()
            first = _tiles.first_pairs(view.boxes)
            pair_grads = _pair_gradients(view, scene[5], first, [p[b, c] for p in pixels], g_scene[5], need[5])
            blocks = -(-len(scene[0]) // BLOCK)
            g_pose = np.zeros((blocks if need[6] else 0, 12), np.float32)
            share(
                project_backward, blocks // 4, *scene[:5], *scene[6:], _mode(tensors[6], views),
                *_view_arrays(pose, K, torch.zeros(3, dtype=torch.float64)), views.width, views.height,
                views.antialias, first, pair_grads, *g_scene, g_pose,
            )  # fmt: skip
            total = g_pose.sum(axis=0, dtype=np.float64)
            g_poses[b, c, :3, :3], g_poses[b, c, :3, 3] = total[:9].reshape(3, 3), total[9:]
        out = [torch.from_numpy(g).to(t.dtype) if n else None for g, t, n in zip(grads, tensors, need)]
        return (*out, torch.from_numpy(g_poses).to(world_to_cam.dtype) if need[6] else None, *[None] * 5)


def _pair_gradients(
    view: TiledView,
    features: np.ndarray,
    first: np.ndarray,
    pixels: list[np.ndarray],
    g_features: np.ndarray,
    need: bool,
) -> np.ndarray:
    """Gradients of every pair (splat, tile) [pairs, 10 + D'], those of wide features added to `g_features` already."""
    channels, tiles = features.shape[1], len(view.start) - 1
    together = need and channels <= _CHANNELS
    pair_grads = np.zeros((len(view.members), _raster.MOMENTS + (channels if together else 0)), np.float32)
    share(
        _raster.draw_backward, tiles // 4, view.splats, features, view.start, view.members, view.boxes, first,
        pixels[0], view.transmittance, pixels[1], pixels[2], pair_grads,
    )  # fmt: skip
    # Wide features in parts: all channels of all pairs at once would outgrow the memory.
    for c in range(0, channels if need and not together else 0, _CHANNELS):
        part = np.zeros((len(view.members), min(_CHANNELS, channels - c)), np.float32)
        share(
            _raster.feature_gradients, tiles // 4, view.splats, view.start, view.members, view.boxes, first,
            pixels[1], 4 + c, part,
        )  # fmt: skip
        share(_tiles.sum_pairs, len(first) // 2048, first, part, g_features[:, c : c + _CHANNELS])
    return pair_grads


def _scene(arrays: list[np.ndarray], offsets: list[int], b: int) -> list[np.ndarray]:
    """The rows of scene b."""
    return [a[offsets[b] : offsets[b + 1]] for a in arrays]


def _mode(native: Tensor, views: Views) -> int:
    return MODES[views.fade] if len(native) else 0


def as_array(tensor: Tensor, keep_double: bool = False) -> np.ndarray:
    """The tensor as a C-ordered float32 array (float64 stays if kept), without a copy where it already is one."""
    double = keep_double and tensor.dtype == torch.float64
    return tensor.detach().to(torch.float64 if double else torch.float32).contiguous().numpy()
