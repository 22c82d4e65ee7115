from __future__ import annotations

import pytest
import torch

from sr3d import Sr3dError, render
from sr3d.datasets import World
from sr3d.datasets.pyramid import pyramid
from sr3d.io import check_forest

SIZE, CENTER = 32, (18.0, 15.0)


@pytest.fixture(scope="module")
def world() -> World:
    return World.generate(30_002)


@pytest.fixture(scope="module")
def camera(world: World):
    return world.sample_cameras(1, SIZE, SIZE)[0].to(torch.float64)


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.double() - b.double()).square().mean().item()


@pytest.mark.parametrize("center", [None, CENTER])
def test_every_level_shows_the_truth_at_its_magnification(world: World, camera, center) -> None:
    forest = pyramid(world, camera, 3, 2, center=center)
    sizes = [SIZE**2, 4 * SIZE**2, (4 if center else 16) * SIZE**2]
    assert [len(level) for level in forest.levels] == sizes
    check_forest(forest)
    for factor in (2.0, 4.0):
        view = camera.zoomed(factor, CENTER)
        truth = world.render(view, samples=8).images
        with_lod, without = (render(forest, view, lod=lod) for lod in (True, False))
        assert with_lod.alpha.min() > 0.95
        assert error(with_lod.rgb, truth) < 0.7 * error(without.rgb, truth)
        # The depth of the world, up to a pixel's worth on slanted surfaces, where nearer surfels win.
        ratio = render(forest, view, median_depth=True).median_depth / world.geometry(view)[0]
        assert (ratio - 1).abs().median() < 0.08 / factor


def test_children_lie_in_their_parents(world: World, camera) -> None:
    forest = pyramid(world, camera, 2, 4)
    g, parents = forest.gaussians(torch.float64), forest.parents
    linked = (parents >= 0).nonzero()[:, 0]
    assert len(linked) > 0.99 * 16 * SIZE**2
    child, _ = camera.project(g.means[linked])
    parent, _ = camera.project(g.means[parents[linked]])
    # Within the parent's pixel, or that of a neighbour at a depth edge.
    offset = (child - parent)[0].abs().amax(dim=-1)
    assert (offset <= 0.5).double().mean() > 0.95 and offset.max() <= 1.5
    ratio = g.lod.native[parents[linked]] / g.lod.native[linked]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 4.0))


def test_wrong_arguments(world: World, camera) -> None:
    for field, arguments in (("levels, factor", (camera, 0, 2)), ("levels, factor", (camera, 2, 1))):
        with pytest.raises(Sr3dError) as raised:
            pyramid(world, *arguments)
        assert raised.value.field == field
    with pytest.raises(Sr3dError, match="2 cameras"):
        pyramid(world, camera.index([0, 0]), 2, 2)
