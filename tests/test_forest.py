from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from lod_scenes import camera, plane_forest, surfels

import sr3d
from sr3d import Sr3dError
from sr3d.cameras import Cameras
from sr3d.gaussians import Gaussians
from sr3d.lod import BLOCK, Forest
from sr3d.lod.curve import hilbert_keys, hilbert_order
from sr3d.rendering._project import project
from sr3d.rendering.cull import Frustum, torch_visible, visible_blocks


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return -10 * math.log10(max((a.double() - b.double()).square().mean().item(), 1e-20))


def same(a: Gaussians, b: Gaussians) -> bool:
    fields = ["means", "quats", "scales", "opacities", "sh"]
    lods = ["native", "coarser", "finer", "level"]
    return all(torch.equal(getattr(a, f), getattr(b, f)) for f in fields) and all(
        torch.equal(getattr(a.lod, f), getattr(b.lod, f)) for f in lods
    )


# --- order and blocks


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_hilbert_curve_visits_every_cell_once_and_moves_by_one(bits: int) -> None:
    side = 2**bits
    cells = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)
    keys = hilbert_keys(cells, bits)
    assert sorted(keys) == list(range(side**3))
    steps = np.abs(np.diff(cells[np.argsort(keys)], axis=0)).sum(axis=1)
    assert (steps == 1).all()


def test_blocks_are_compact() -> None:
    points = torch.rand(64 * BLOCK, 3, generator=torch.Generator().manual_seed(0))
    blocks = points[hilbert_order(points)].unflatten(0, (-1, BLOCK))
    volume = (blocks.amax(dim=1) - blocks.amin(dim=1)).prod(dim=-1)
    assert volume.sum() < 2.5  # of a unit cube: 1 would be perfect, 64 is what a random order gives


def test_order_of_equal_points_and_of_none() -> None:
    assert hilbert_order(torch.ones(5, 3)).tolist() == [0, 1, 2, 3, 4]
    assert hilbert_order(torch.empty(0, 3)).tolist() == []


def test_bounds_contain_their_rows() -> None:
    forest = plane_forest(3, bumps=1.0, size=64)
    for k, level in enumerate(forest.levels):
        g, b = level.gaussians, level.blocks
        assert len(b.reach) == -(-len(level) // BLOCK)
        for block in range(len(b.reach)):
            rows = slice(block * BLOCK, (block + 1) * BLOCK)
            assert (g.means[rows] >= b.lower[block]).all() and (g.means[rows] <= b.upper[block]).all()
            assert torch.equal(b.reach[block], g.scales[rows].max())
            assert torch.equal(b.coarsest[block], g.lod.coarser[rows].max())
            finer = forest.finer(k, torch.tensor([block]))[0, : len(g.means[rows])]
            assert torch.equal(forest.finest[k][block], finer.min())


# --- appending


def test_appending_links_and_shares() -> None:
    forest = plane_forest(2, 2)
    kept = [t.clone() for t in vars(forest.levels[0].lod).values()]
    g = forest.gaussians(torch.float64)
    pixels, _ = camera(2).project(g.means)
    rows = ((g.lod.level == 1) & ((pixels[0] > 0) & (pixels[0] < 32)).all(-1)).nonzero()[:, 0]
    children = surfels(g.means[rows], g.lod.native[rows].double() / 2, torch.Generator().manual_seed(1))
    longer = forest.append(children, rows)

    assert longer.levels[:2] == forest.levels and len(forest.levels) == 2
    assert all(torch.equal(a, b) for a, b in zip(kept, vars(longer.levels[0].lod).values()))
    after = longer.gaussians(torch.float64)
    assert same(after.index(slice(0, len(forest.levels[0]))), g.index(slice(0, len(forest.levels[0]))))
    new = slice(longer.starts[2], None)
    parents = longer.parents[new]
    assert torch.equal(parents.sort().values, rows)
    assert torch.equal(after.lod.coarser[new], after.lod.native[parents])
    assert torch.equal(after.lod.finer[parents], after.lod.native[new])
    assert (after.lod.level[new] == 2).all() and (after.lod.finer[new] == 0).all()
    childless = torch.ones(len(forest), dtype=torch.bool).index_fill(0, parents, False)
    childless &= after.lod.level[: len(forest)] == 1
    assert (after.lod.finer[: len(forest)][childless] == 0).all() and childless.any()
    assert same(longer.undo().gaussians(), forest.gaussians())
    assert longer.undo(2).levels == forest.levels[:1] and longer.undo(0).levels == longer.levels
    with pytest.raises(Sr3dError, match="one level must stay"):
        longer.undo(3)


def test_two_branches_from_one_level() -> None:
    forest = plane_forest(1)
    g = forest.gaussians(torch.float64)
    half = len(g) // 2
    for rows in (torch.arange(half), torch.arange(half, len(g))):
        children = surfels(g.means[rows], g.lod.native[rows].double() / 3, torch.Generator().manual_seed(1))
        forest = forest.append(children, rows)
    assert [level.number for level in forest.levels] == [0, 1, 1]
    lod = forest.gaussians().lod
    assert torch.equal(lod.finer[: len(g)], (lod.native[: len(g)].double() / 3).float())
    assert (forest.finest[0] > 0).all()


def test_a_round_trip_through_plain_gaussians_draws_the_same() -> None:
    forest = plane_forest(3, bumps=1.0)
    flat = forest.gaussians(torch.float64)
    again = Forest.from_gaussians(flat, forest.parents)
    order = hilbert_order(flat.means[: forest.starts[1]])
    assert torch.equal(order, torch.arange(forest.starts[1]))  # rows are in curve order already
    assert torch.equal(again.parents, forest.parents)
    assert same(again.gaussians(), forest.gaussians())
    view = camera(1.7)
    assert torch.equal(sr3d.render(again, view).rgb, sr3d.render(forest, view).rgb)


def test_append_costs_what_is_new() -> None:
    """Only the parents' blocks of earlier levels are touched: counted, not timed."""
    forest = plane_forest(1, size=128)
    g = forest.gaussians(torch.float64)
    rows = torch.arange(40)
    children = surfels(g.means[rows], g.lod.native[rows].double() / 2, torch.Generator().manual_seed(1))
    split = forest.append(children, rows).levels[1].split
    assert split.blocks.tolist() == [0] and split.parents.tolist() == list(range(40))


def test_compiled_overlay_of_footprints_is_the_plain_one() -> None:
    forest = plane_forest(4, 2, size=96)
    for k, level in enumerate(forest.levels):
        for blocks in (torch.arange(len(level.blocks.reach)), torch.tensor([len(level.blocks.reach) - 1])):
            found = forest.finer(k, blocks)
            assert torch.equal(found, forest._finer_on_device(k, blocks))
            assert k == 3 or len(blocks) == 1 or found.max() > 0


# --- culling


def cameras_around(n: int) -> Cameras:
    g = torch.Generator().manual_seed(3)
    angles, shifts = 0.8 * (torch.rand(n, generator=g) - 0.5), 2 * (torch.rand(n, 3, generator=g) - 0.5)
    poses = torch.eye(4, dtype=torch.float64).repeat(n, 1, 1)
    poses[:, 0, 0] = poses[:, 2, 2] = angles.cos()
    poses[:, 0, 2], poses[:, 2, 0] = angles.sin(), -angles.sin()
    poses[:, :3, 3] = shifts
    K = camera().K.repeat(n, 1, 1)
    K[:, :2, :2] *= (0.5 + 8 * torch.rand(n, generator=g))[:, None, None]
    K[:, :2, 2] += 10 * torch.rand(n, 2, generator=g)
    return Cameras(world_to_cam=poses, K=K, width=32, height=32)


def frustum(view: Cameras) -> Frustum:
    return Frustum.of(view.world_to_cam[0], view.K[0], view.width, view.height, 0.01)


def drawn_rows(forest: Forest, k: int, view: Cameras) -> torch.Tensor:
    """Rows of a level that leave a mark on some pixel when no block is skipped."""
    level, (pose, K) = forest.levels[k], (view.world_to_cam[0], view.K[0])
    blocks, g = np.arange(len(level.blocks.reach)), level.gaussians
    fields = [g.means, g.quats, g.scales, g.opacities, g.sh, g.lod.native, g.lod.coarser]
    finer = forest.finer(k, torch.from_numpy(blocks)).flatten()
    splats, boxes = np.empty((len(blocks) * BLOCK, 16), np.float32), np.zeros((len(blocks) * BLOCK, 4), np.int16)
    project(
        0, 1, blocks, BLOCK, *(t.numpy() for t in fields), finer.numpy(), 1, pose.numpy(), level.origin.numpy(),
        K.numpy(), view.width, view.height, False, 0.01, splats, splats.view(np.float64), boxes, np.zeros(1, np.int64),
    )  # fmt: skip
    return torch.from_numpy((boxes[:, 0] < boxes[:, 1]).nonzero()[0])


def test_nothing_visible_is_culled() -> None:
    forest = plane_forest(4, bumps=2.0, size=96)
    skipped = 0
    for c in range(20):
        view = cameras_around(20)[c]
        for k, level in enumerate(forest.levels):
            found = visible_blocks(forest, k, frustum(view))
            needed = (drawn_rows(forest, k, view) // BLOCK).unique()
            assert set(needed.tolist()) <= set(found.tolist())
            skipped += len(level.blocks.reach) - len(found)
    assert skipped > 100


def test_frames_with_and_without_culling_are_equal() -> None:
    forest = plane_forest(4, bumps=2.0, size=96)
    flat = forest.gaussians(torch.float64)
    for c in range(20):
        view = cameras_around(20)[c]
        for lod in (True, "linear", False):
            found, expected = sr3d.render(forest, view, lod=lod), sr3d.render(flat, view, lod=lod)
            assert psnr(found.rgb, expected.rgb) > 100, (c, lod)


def test_compiled_culling_is_the_plain_one() -> None:
    g = torch.Generator().manual_seed(0)
    n = 500
    lower = torch.rand(n, 3, generator=g) * 8 - 4
    table = lower, lower + torch.rand(n, 3, generator=g), torch.rand(n, generator=g) * 0.3
    table = *table, torch.rand(n, generator=g) * 0.2, 0.1 + torch.rand(n, generator=g)
    level = plane_forest(1).levels[0]
    names = ["lower", "upper", "reach", "finest", "coarsest"]
    blocks = replace(level.blocks, **dict(zip(names, table)))
    level = replace(level, blocks=blocks, origin=torch.tensor([0.1, 0.2, 3.0], dtype=torch.float64))
    forest, counts = Forest(levels=(level,)), []
    for c in range(10):
        view = cameras_around(10)[c]
        pose = view.world_to_cam[0]
        for lod in (True, False):
            found = visible_blocks(forest, 0, frustum(view), lod)
            shift = pose[:3, :3] @ level.origin + pose[:3, 3]
            f = frustum(view)
            plain = torch_visible(*table, pose[:3, :3].numpy(), shift.numpy(), f.planes, f.focal, 0.01, lod)
            assert torch.equal(found, plain)
            counts.append(len(found))
    assert min(counts) > 0 and max(counts) < n


def test_blocks_outside_their_footprints_are_skipped() -> None:
    forest = plane_forest(5, size=64)
    view = camera(16, size=64)
    per_level = [len(visible_blocks(forest, k, frustum(view))) for k in range(len(forest.levels))]
    everything = [len(visible_blocks(forest, k, frustum(view), lod=False)) for k in range(5)]
    assert per_level[4] == len(forest.levels[4].blocks.reach) or per_level[4] > 0
    assert sum(per_level) < sum(everything) and everything[0] >= 1
    assert per_level[2] == 0 or forest.finest[2].min() == 0


# --- deep zoom


@pytest.mark.parametrize("dolly", [False, True])
def test_two_to_the_twentieth(dolly: bool) -> None:
    forest = plane_forest(11, 4, size=12, bumps=0.5)
    assert forest.magnification == pytest.approx(2**20)
    view = camera(2.0**20, size=12, dolly=dolly)
    if not dolly:
        assert view.K[0, 0, 0] > 1e7
    expected = sr3d.render(forest, view, backend="reference")
    assert expected.alpha.mean() > 0.9 and expected.rgb.std() > 0.05
    assert psnr(sr3d.render(forest, view).rgb, expected.rgb) > 80
    single = sr3d.render(forest.gaussians(), view.to(torch.float32)).rgb
    assert psnr(single, expected.rgb) < 40  # what float32 alone makes of it
    flat = sr3d.render(forest.gaussians(torch.float64), view, near=None if not dolly else 1e-8)
    assert psnr(flat.rgb, expected.rgb) > 80


def test_focal_length_of_a_billion_pixels() -> None:
    forest = plane_forest(14, 4, size=12)
    view = camera(4.0**13 * 1.3, size=12)
    assert view.K[0, 0, 0] > 1e9
    expected = sr3d.render(forest, view, backend="reference")
    found = sr3d.render(forest, view)
    assert expected.alpha.mean() > 0.5 and psnr(found.rgb, expected.rgb) > 80
    assert psnr(found.depth / 4, expected.depth / 4) > 80


def test_focal_length_and_dolly_show_the_same() -> None:
    """Flat surfels parallel to the image: magnification by either gives one image."""
    forest = plane_forest(6, 4, size=12, flat=True)
    for factor in (1.0, 7.0, 1000.0):
        a, b = (sr3d.render(forest, camera(factor, size=12, dolly=dolly)) for dolly in (False, True))
        assert a.alpha.mean() > 0.9 and psnr(a.rgb, b.rgb) > 75, factor


# --- what a frame returns


@pytest.mark.parametrize("antialias", [False, True])
def test_forest_is_drawn_as_the_reference_draws_it(antialias: bool) -> None:
    forest = plane_forest(3, bumps=2.0, size=20, features=5)
    views = Cameras.cat([camera(f, size=20) for f in (1, 1.8, 3.1)])
    background = torch.tensor([0.1, 0.2, 0.3])
    options = {"features": True, "antialias": antialias, "median_depth": True, "ids": True, "background": background}
    found, expected = (sr3d.render(forest, views, backend=b, **options) for b in ("cpu", "reference"))
    for name in ("rgb", "alpha", "features"):
        assert psnr(getattr(found, name), getattr(expected, name)) > 80, name
    assert psnr(found.depth / 4, expected.depth / 4) > 80
    agree = found.ids == expected.ids
    assert agree.double().mean() > 0.99
    close = (found.median_depth - expected.median_depth).abs() < 1e-4
    assert close.double().mean() > 0.99 and (expected.median_depth > 0).double().mean() > 0.9
    # An id is a row of the forest: the Gaussian in that row projects near the pixel that it dominates.
    g = forest.gaussians(torch.float64)
    rows = found.ids[2]
    pixels, _ = views.index([2]).project(g.means[rows.clamp_min(0).flatten()])
    v, u = torch.meshgrid(torch.arange(20) + 0.5, torch.arange(20) + 0.5, indexing="ij")
    distance = (pixels[0] - torch.stack([u, v], -1).reshape(-1, 2)).norm(dim=-1)[rows.flatten() >= 0]
    assert distance.max() < 3.0


def test_a_view_that_sees_nothing() -> None:
    forest = plane_forest(2)
    view = camera()
    view.world_to_cam[0] = torch.diag(torch.tensor([-1.0, 1, -1, 1], dtype=torch.float64))  # turned around
    out = sr3d.render(forest, view, ids=True, median_depth=True)
    assert out.alpha.abs().max() == 0 and (out.ids == -1).all() and out.median_depth.abs().max() == 0


def test_zoom_between_levels_has_no_seam() -> None:
    """Where only a part was densified, the rest stays: alpha does not drop anywhere in the sweep."""
    forest = plane_forest(4, 2, flat=True)
    for factor in np.geomspace(1, 8, 13):
        alpha = sr3d.render(forest, camera(float(factor))).alpha
        assert alpha.min() > 0.6 and alpha.mean() > 0.85, factor
