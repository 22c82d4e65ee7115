"""What the frames of a level see of a forest, its makers, and opacity."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sr3d.coarse import CoarseConfig, coarse_gaussians
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.lod import Forest, Lod
from sr3d.models import SuperResolver
from sr3d.models.geometry import GeometryConfig
from sr3d.models.points import PointsConfig
from sr3d.models.recurrence import RecurrenceConfig
from sr3d.rendering import render
from sr3d.zoom import Optimiser, Predictor, Untrained, zoom_into
from sr3d.zoom.frontier import around, in_frames, visible
from sr3d.zoom.makers import bare, level_maker
from sr3d.zoom.opacity import as_opaque
from sr3d.zoom.optimise import OptimiseConfig


@pytest.fixture(scope="module")
def forest(zoomed) -> Forest:
    gaussians, levels = zoomed
    return Forest.from_gaussians(gaussians, torch.cat([level.links for level in levels]))


@pytest.mark.parametrize("magnification", [1.0, 3.0, 8.0])
def test_what_is_visible_draws_the_whole_picture(forest, table, target, magnification):
    point = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    frame = table.cameras.index([0]).zoomed(magnification, target)
    seen = visible(forest, frame, point)
    assert (seen.rows.diff() > 0).all() and len(seen.rows) == len(seen.gaussians) <= len(forest)
    whole = render(forest, frame).rgb
    # Gaussians at one depth are drawn in an order that rounding decides: that is all that may differ.
    rounding = (render(forest.gaussians(), frame).rgb - whole).abs().mean()
    assert (seen.draw(frame).rgb - whole).abs().mean() < 2 * rounding + 1e-6 < 1e-3
    back = seen.gaussians.means.double() + point
    assert torch.allclose(back, forest.gaussians(torch.float64).means[seen.rows], atol=1e-6)
    lod, every = seen.gaussians.lod, forest.gaussians().lod
    assert all(
        torch.equal(getattr(lod, n), getattr(every, n)[seen.rows]) for n in ("native", "coarser", "finer", "level")
    )


def test_in_frames_is_what_leaves_a_mark(forest, table, target):
    frame = table.cameras.index([0]).zoomed(4.0, target)
    seen = visible(forest, frame, torch.zeros(3, dtype=torch.float64))
    near = in_frames(seen, frame)
    assert 0 < near.sum() < len(near)
    without = seen.gaussians.index(~near)
    assert float(render(replace(without, lod=None), around(frame, seen.origin)).alpha.max()) < 1 / 255


def test_nothing_in_view_is_nothing(forest, table):
    pose = table.cameras.world_to_cam[:1] * torch.tensor([-1.0, 1.0, -1.0, 1.0])[:, None]
    away = replace(table.cameras.index([0]), world_to_cam=pose)  # looks the other way
    seen = visible(forest, away, torch.zeros(3, dtype=torch.float64))
    assert len(seen.gaussians) == 0 and float(seen.draw(away).alpha.max()) == 0


def test_parts_that_have_not_learned_change_nothing(table, doubler):
    parts = {"geometry": GeometryConfig(), "points": PointsConfig(), "recurrence": RecurrenceConfig()}
    full = replace(doubler.config, **parts)
    assert bare(full) == bare(doubler.config) and bare(full).points is None
    coarse = coarse_gaussians(table, CoarseConfig())
    made = [SuperResolver(config).eval().refine(coarse, table, 2)[0] for config in (full, bare(full))]
    for name in ("means", "quats", "scales", "opacities", "sh"):
        assert torch.allclose(getattr(made[0], name), getattr(made[1], name), atol=1e-5)


def test_makers(table, target, doubler):
    coarse = coarse_gaussians(table, CoarseConfig())
    made = {name: level_maker(name, doubler) for name in ("sr3d", "scaffold", "optimise")}
    kinds = [type(maker) for maker in made.values()]
    assert kinds == [Predictor, Untrained, Optimiser] and all(m.factor == 2 for m in made.values())
    assert doubler.config.consistency is None, "a maker must not change the network that it is given"
    steps = [Optimiser(doubler, OptimiseConfig(steps=n)) for n in (0, 25)]
    low = table.cameras
    errors, corrected = [], []
    for maker in (made["scaffold"], made["sr3d"], *steps):
        fine = maker.make(coarse, table).gaussians
        for found, shown in ((errors, fine), (corrected, maker.corrected(fine, fine.index(slice(0, 0)), table))):
            drawn = render(replace(shown, lod=None), low.resized(48, 48)).rgb
            small = drawn.unflatten(1, (24, 2)).unflatten(3, (24, 2)).mean(dim=(2, 4))
            found.append(float((small - table.images).abs().mean()))
    # Correction and optimisation both bring a level closer to its inputs than the scaffold.
    assert errors[3] < 0.8 * errors[2] and corrected[0] == errors[0]
    assert all(after < 0.8 * before for before, after in zip(errors[1:], corrected[1:]))
    levels = []
    zoom_into(table, target, 4, maker=steps[1], on_level=levels.append)
    assert [level.gaussians > 0 for level in levels] == [True] * 3
    assert all(level.scores["low_psnr"] > 25 for level in levels[1:])


def test_haze_stays_haze_and_surfaces_stay_solid(table):
    """Four overlapping children of each of some weak and some solid parents."""
    cameras = table.cameras
    solid = coarse_gaussians(table, CoarseConfig())
    left = cameras.index([0]).project(solid.means)[0][0, :, 0] < 12
    parents = replace(solid, opacities=torch.where(left, 0.05, 0.99), lod=None)
    before = render(parents, cameras).alpha
    children = parents.index(torch.arange(len(parents)).repeat_interleave(4))
    children = replace(children, lod=Lod.roots(torch.ones(len(children))))
    after = as_opaque(children, cameras, before, 0.01)
    weak = left.repeat_interleave(4)
    drawn = render(replace(children, opacities=after, lod=None), cameras).alpha
    plain = render(replace(children, lod=None), cameras).alpha
    faint = before < 0.5
    assert plain[faint].mean() > 2 * before[faint].mean() and drawn[faint].mean() < 1.3 * before[faint].mean()
    assert (after[~weak] >= 0.95 * children.opacities[~weak]).float().mean() > 0.9
    assert torch.equal(as_opaque(children, cameras, torch.ones_like(before), 0.01), children.opacities)


def test_rows_that_others_stand_for_fade(table):
    roots = Forest.from_gaussians(coarse_gaussians(table, CoarseConfig()))
    gaussians = roots.gaussians()
    half = Lod.roots(gaussians.lod.native / 2)
    children = replace(gaussians, lod=half).index(slice(0, 100))
    grown = roots.append(children, torch.arange(100), torch.tensor([400, 300, 300]))
    finer = grown.gaussians().lod.finer
    rows = torch.tensor([300, 400])
    assert torch.allclose(finer[rows], gaussians.lod.native[rows] / 2)
    assert (finer[:100] > 0).all() and int((finer > 0).sum()) == 102
    assert Gaussians.cat([grown.gaussians()]).lod is not None


@pytest.mark.parametrize("covered", [[50], [-1], [10**6]])
def test_rows_that_cannot_be_stood_for(table, covered):
    roots = Forest.from_gaussians(coarse_gaussians(table, CoarseConfig()))
    gaussians = roots.gaussians()
    children = replace(gaussians, lod=Lod.roots(gaussians.lod.native / 2)).index(slice(0, 100))
    with pytest.raises(Sr3dError, match="covered"):
        roots.append(children, torch.arange(100), torch.tensor(covered))
