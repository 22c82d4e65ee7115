"""The renderer on CUDA: gsplat ≥ 1.5, < 1.6, all views of all scenes in one rasteriser launch per 32 channels.

Built from gsplat's stages and not from its `rasterization`, which knows one opacity per Gaussian for all views (level
of detail needs one per view), three colour channels where it evaluates SH, and float32 positions only.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.lod import BLOCK, Forest, Lod
from sr3d.lod.checks import check_footprints
from sr3d.rendering import constants as const
from sr3d.rendering._cuda_project import Pairs, Poses, project, project_deep, project_exactly, ranked
from sr3d.rendering.cull import Frustum, visible_blocks
from sr3d.rendering.job import Raster, Splats, Views

_TILE = 16
_CHANNELS = 32  # per rasteriser launch: more do not fit in registers
_ALL = 1 << 30  # batches of 256 splats: more than any tile has
_INSPECTED = 1 << 26  # pixel × splat values held at a time; bounds memory, does not change results


def rasterize(splats: Splats, views: Views) -> Raster:
    """See `sr3d.rendering.reference.rasterize`; float32 behind the projection, returns the dtype of the means.

    Positions are projected in float64 where means, poses or K are, by gsplat's float32 kernel else.
    """
    if splats.lod is not None and views.fade is not None:
        check_footprints("sr3d.render", splats.lod)
    deep = torch.float64 in (splats.means.dtype, views.world_to_cam.dtype, views.K.dtype)
    pairs = project_deep(splats, views) if deep else project(splats, views)
    if len(pairs.row) == 0:
        image, alpha, median, ids = _blank(0 if splats.features is None else splats.features.shape[-1], views)
        # Leaves keep a gradient, zero, in frames that show nothing.
        leaves = (splats.means, splats.quats, splats.scales, splats.opacities, splats.sh, splats.features)
        nothing = sum(t[:0].sum() for t in (*leaves, views.world_to_cam) if t is not None)
        image, alpha = image + nothing, alpha + nothing
    else:
        first = [row for row in splats.offsets[:-1] for _ in range(views.K.shape[1])]
        image, alpha, median, ids = _composite(pairs, splats.features, pairs.row, first, views)
    image, alpha, median = (t.to(splats.means.dtype) for t in (image, alpha, median))
    return _raster(image, alpha, median, ids, views)


@torch.no_grad()
def rasterize_forest(forest: Forest, views: Views, features: bool) -> Raster:
    """One frame of a forest per camera: only its visible blocks are read. No gradients.

    Args:
        forest: On the device of the views.
        views: B = 1.
        features: Also draw the features.

    Returns:
        B = 1; `ids` are rows of the forest.

    Raises:
        Sr3dError: A visible block holds impossible values.
    """
    parts, depths, extra, bad = [], [], [], []
    # Culling takes small float64 arrays from the host: one copy here, not one per level and view.
    cameras, heed = zip(views.world_to_cam[0].double().cpu(), views.K[0].double().cpu()), views.fade is not None
    frustums = [Frustum.of(*camera, views.width, views.height, views.near) for camera in cameras]
    for k, level in enumerate(forest.levels):
        cut = [visible_blocks(forest, k, frustum, heed) for frustum in frustums]
        if not any(len(blocks) for blocks in cut):
            continue
        view, row, lod = _candidates(forest, k, cut)
        right = (lod.native > 0) & (lod.native < torch.inf) & (lod.coarser >= lod.native)
        wrong = heed & ~(right & (lod.finer >= 0) & (lod.finer <= lod.native))
        bad.append(torch.stack([torch.full_like(row[0], k), torch.where(wrong, row, len(level)).amin()]))
        poses = Poses.of(views.world_to_cam[0], views.K[0], level.origin)
        pairs, z = project_exactly(level.gaussians, lod, view, row, poses, views)
        if features and level.gaussians.features is not None:
            extra.append(level.gaussians.features[pairs.row])
        pairs.row.add_(forest.starts[k])
        parts.append(pairs)
        depths.append(z)
    for k, row in torch.stack(bad).tolist() if bad else []:
        if row < len(forest.levels[k]):
            raise Sr3dError(
                forest.name, f"level {k}: footprints", f"NaN, <= 0 or out of order in row {row}",
                "0 <= finer <= native <= coarser, native > 0",
            )  # fmt: skip
    width = forest.levels[0].gaussians.features
    channels = width.shape[-1] if features and width is not None else 0
    if not any(len(z) for z in depths):
        return _raster(*_blank(channels, views), views)
    pairs = ranked(parts, torch.cat(depths))
    drawn = torch.cat(extra) if extra else None
    slots = torch.arange(len(pairs.row), device=pairs.row.device)
    return _raster(*_composite(pairs, drawn, slots, [0] * views.K.shape[1], views), views)


def _candidates(forest: Forest, k: int, cut: list[Tensor]) -> tuple[Tensor, Tensor, Lod]:
    """Rows of the blocks of level k that each view sees: the view [Q], row of the level [Q], footprints [Q]."""
    level, every = forest.levels[k], torch.cat(cut)
    blocks = every.unique() if len(cut) > 1 else every
    finer = forest.finer(k, blocks)
    seen = torch.cat([torch.full_like(b, c) for c, b in enumerate(cut)])
    inside = torch.arange(BLOCK, device=every.device)
    row = every[:, None] * BLOCK + inside
    slot = torch.searchsorted(blocks, every)[:, None] * BLOCK + inside
    at = (row < len(level)).flatten().nonzero()[:, 0]
    row, slot = row.flatten()[at], slot.flatten()[at]
    own = level.lod
    lod = Lod(native=own.native[row], coarser=own.coarser[row], finer=finer.flatten()[slot], level=own.level[row])
    return seen.repeat_interleave(BLOCK)[at], row, lod


def _blank(channels: int, views: Views) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image, alpha, median depth and ids of every view where nothing is drawn."""
    shape, device = (views.K.shape[:2].numel(), views.height, views.width), views.K.device
    alpha = torch.zeros(shape, device=device)
    ids = torch.full(shape, -1, dtype=torch.int64, device=device)
    return torch.zeros(*shape, 4 + channels, device=device), alpha, alpha.clone(), ids


def _raster(image: Tensor, alpha: Tensor, median: Tensor, ids: Tensor, views: Views) -> Raster:
    image, alpha, median, ids = (t.unflatten(0, views.K.shape[:2]) for t in (image, alpha, median, ids))
    if not views.inspect:
        return Raster(image=image, alpha=alpha)
    return Raster(image=image, alpha=alpha, median_depth=median, ids=ids)


def _composite(
    pairs: Pairs, features: Tensor | None, at: Tensor, first: list[int], views: Views
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Channels (rgb, depth, features), alpha, median depth and ids of V views, from one pair or more.

    Pair p has the features of row `at[p]`; ids of view v are counted from row `first[v]`.
    """
    import gsplat

    count = views.K.shape[:2].numel()
    across, down = -(-views.width // _TILE), -(-views.height // _TILE)
    _, tiles, order = gsplat.isect_tiles(
        pairs.means2d, pairs.radii, pairs.key, _TILE, across, down,
        packed=True, n_images=count, image_ids=pairs.view, gaussian_ids=pairs.row,
    )  # fmt: skip
    starts = gsplat.isect_offset_encode(tiles, count, across, down)
    drawn = [
        gsplat.rasterize_to_pixels(
            pairs.means2d, pairs.conics, part, pairs.opacity, views.width, views.height, _TILE, starts, order,
            packed=True,
        )
        for part in _chunks(pairs, features, at)
    ]  # fmt: skip
    median, ids = _blank(0, views)[2:]
    if views.inspect:
        # Splats are sorted by view first: each view's own are a slice.
        ends = [*starts[:, 0, 0].tolist(), len(order)]
        for v, (begin, end) in enumerate(pairwise(ends)):
            _inspect(pairs, order[begin:end], starts[v] - begin, views, median[v], ids[v])
            ids[v] -= torch.where(ids[v] < 0, 0, first[v])
    return torch.cat([image for image, _ in drawn], dim=-1), drawn[0][1][..., 0], median, ids


def _chunks(pairs: Pairs, features: Tensor | None, at: Tensor) -> Iterator[Tensor]:
    """Channels of every pair, at most 32 at a time: never all of them in memory twice."""
    first, width = torch.cat([pairs.rgb, pairs.depth[:, None]], dim=-1), 0 if features is None else features.shape[-1]
    room = _CHANNELS - first.shape[-1]
    for begin in range(room - _CHANNELS, max(width, 1), _CHANNELS):
        part = [] if begin >= 0 else [first]
        if features is not None:
            columns = features[:, max(begin, 0) : begin + _CHANNELS]
            part.append(columns.index_select(0, at).float())
        yield torch.cat(part, dim=-1)


@torch.no_grad()
def _inspect(pairs: Pairs, order: Tensor, starts: Tensor, views: Views, median: Tensor, ids: Tensor) -> None:
    """Fill median depth and ids [H, W] of one view, whose splats are `order` from `starts` of each tile on.

    gsplat lists the splats that each pixel composites, near to far: 16 bytes for each of them, 24 with their alphas.
    """
    import gsplat

    if len(order) == 0:
        return
    splat, pixel, _ = gsplat.rasterize_to_indices_in_range(
        0, _ALL, torch.ones_like(median), pairs.means2d, pairs.conics, pairs.opacity, views.width, views.height, _TILE,
        starts, order,
    )  # fmt: skip
    if len(splat) == 0:
        return
    alpha = _alphas(pairs, splat, pixel, views.width)
    counts = torch.bincount(pixel, minlength=median.numel())
    first, most = counts.cumsum(0) - counts, int(counts.max())
    step = max(1, _INSPECTED // most)
    slots = torch.arange(most, device=splat.device)
    flat_median, flat_ids = median.view(-1), ids.view(-1)
    for begin in range(0, len(counts), step):
        here = slice(begin, begin + step)
        at = (first[here, None] + slots).clamp_max(len(splat) - 1)
        dense = torch.where(slots < counts[here, None], alpha[at], 0)
        after = (1 - dense).cumprod(dim=1)
        weights = dense * torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], dim=1)
        crossed = after <= 0.5
        nearest = splat[at.gather(1, crossed.to(torch.uint8).argmax(dim=1, keepdim=True))[:, 0]]
        flat_median[here] = torch.where(crossed.any(dim=1), pairs.depth[nearest], 0)
        strongest = splat[at.gather(1, weights.argmax(dim=1, keepdim=True))[:, 0]]
        flat_ids[here] = torch.where(counts[here] > 0, pairs.row[strongest], -1)


def _alphas(pairs: Pairs, splat: Tensor, pixel: Tensor, width: int) -> Tensor:
    """Alpha of splats [M] at pixels [M]."""
    dx, dy = pixel % width + 0.5 - pairs.means2d[splat, 0], pixel // width + 0.5 - pairs.means2d[splat, 1]
    a, b, c = pairs.conics[splat].unbind(-1)
    density = torch.exp(-(0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy))
    return (pairs.opacity[splat] * density).clamp_max(const.ALPHA_MAX)
