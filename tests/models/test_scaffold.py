from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_networks import SIZE, sloped_scene

from sr3d import Cameras, Gaussians, Sr3dError, render
from sr3d.lod import Lod
from sr3d.models.budget import home_views, plan_split
from sr3d.models.inputs import with_lod
from sr3d.models.scaffold import ScaffoldConfig, split_all
from sr3d.rendering import rgb_to_sh


def split(parents: Gaussians, config: ScaffoldConfig, cameras: Cameras) -> Gaussians:
    return split_all(parents, home_views(parents, cameras), config, 2, cameras).gaussians


def blob(opacity: float, scales: tuple[float, float, float]) -> tuple[Gaussians, Cameras]:
    K = torch.tensor([[[[60.0, 0, 32], [0, 60, 32], [0, 0, 1]]]])
    cameras = Cameras(world_to_cam=torch.eye(4)[None, None], K=K, width=64, height=64)
    gaussians = Gaussians(
        means=torch.tensor([[[0.0, 0.0, 2.0]]]),
        quats=torch.tensor([[[1.0, 0.2, 0.1, 0.3]]]),
        scales=torch.tensor([[scales]]),
        opacities=torch.tensor([[opacity]]),
        sh=rgb_to_sh(torch.tensor([[[0.2, 0.5, 0.8]]])),
        lod=Lod.roots(torch.tensor([[0.3]])),
    )
    return gaussians, cameras


@pytest.mark.parametrize("opacity", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("scales", [(0.3, 0.3, 0.3), (0.3, 0.2, 0.02)])
def test_shuffle_split_renders_like_its_parent(opacity: float, scales: tuple[float, float, float]) -> None:
    parent, cameras = blob(opacity, scales)
    children = split(parent, ScaffoldConfig(split="shuffle"), cameras)
    before, after = (render(g, cameras, lod=False).alpha for g in (parent, children))
    assert len(children) == 6
    # The total that they hide is the same (the quaternion is oblique: not along a principal axis), and so is the shape.
    assert abs(after.sum() / before.sum() - 1) < 0.08
    assert (after - before).abs().max() < 0.4 * opacity
    # Six plain copies of the opacity would be far too thick.
    naive = render(
        Gaussians(**{**vars(children), "opacities": torch.full_like(children.opacities, opacity)}), cameras, lod=False
    ).alpha
    assert (naive - before).abs().mean() > 2 * (after - before).abs().mean()


def test_shuffle_split_places_children_on_the_principal_axes() -> None:
    parent, cameras = blob(0.5, (0.3, 0.2, 0.1))
    parent = Gaussians(**{**vars(parent), "quats": torch.tensor([[[1.0, 0, 0, 0]]])})
    children = split(parent, ScaffoldConfig(split="shuffle"), cameras)
    offsets = (children.means - parent.means)[0]
    expected = torch.tensor([[0.15, 0, 0], [-0.15, 0, 0], [0, 0.1, 0], [0, -0.1, 0], [0, 0, 0.05], [0, 0, -0.05]])
    torch.testing.assert_close(offsets, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(children.scales[0, 0], torch.tensor([0.075, 0.2, 0.1]))
    torch.testing.assert_close(children.scales[0, 3], torch.tensor([0.3, 0.05, 0.1]))


@pytest.mark.parametrize(("k", "lateral_shrink"), [(2, 1.0), (4, 1.0), (4, 1.3), (6, 1.3), (6, 1.9)])
def test_fewer_or_slimmer_children_hide_as_much(k: int, lateral_shrink: float) -> None:
    config = ScaffoldConfig(split="shuffle", k=k, lateral_shrink=lateral_shrink)
    for opacity in (0.1, 0.5):
        parent, cameras = blob(opacity, (0.2, 0.3, 0.02))
        children = split(parent, config, cameras)
        before, after = (render(g, cameras, lod=False).alpha for g in (parent, children))
        assert abs(after.sum() / before.sum() - 1) < 0.08
    # They are on the largest axes, slimmer by the two ratios.
    largest = {2: [1], 4: [0, 1], 6: [0, 1, 2]}[k]
    shrunk = children.scales[0] / parent.scales[0]
    expected = torch.full((k, 3), 1 / lateral_shrink)
    for pair, axis in enumerate(largest):
        expected[2 * pair : 2 * pair + 2, axis] = 0.25
    torch.testing.assert_close(shrunk, expected)
    assert config.children(4) == len(children) == k
    slots = split_all(parent, torch.zeros(1, 1, dtype=torch.long), config, 2, cameras).slots[0]
    torch.testing.assert_close(
        slots[:, :3].abs().sum(dim=0), torch.tensor([1.0 if i in largest else 0.0 for i in range(3)])
    )


@pytest.mark.parametrize("grid", [2, 3])
def test_inplane_children_fall_on_the_subpixels_of_the_view_that_made_the_parent(grid: int) -> None:
    coarse, _, cameras = sloped_scene(1, 2)
    children = split(coarse, ScaffoldConfig(grid=grid), cameras)
    pixels, _ = cameras.resized(SIZE * grid, SIZE * grid).project(children.means)
    for view in range(2):
        own = pixels[0, view].reshape(2, SIZE, SIZE, grid, grid, 2)[view].permute(0, 2, 1, 3, 4)
        v, u = torch.meshgrid(torch.arange(SIZE * grid) + 0.5, torch.arange(SIZE * grid) + 0.5, indexing="ij")
        expected = torch.stack([u, v], dim=-1)
        # The tangent plane is tilted, so perspective moves a sub-pixel by a few hundredths.
        torch.testing.assert_close(own.reshape(SIZE * grid, SIZE * grid, 2), expected, atol=0.05, rtol=0)


def test_inplane_scaffold_renders_like_its_parents() -> None:
    coarse, _, cameras = sloped_scene(1, 2)
    children = split(coarse, ScaffoldConfig(grid=2), cameras)
    before = render(coarse, cameras, lod=False)
    after = render(children, cameras, lod=False)
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    assert (after.alpha - before.alpha)[inner].abs().max() < 0.06
    assert (after.depth - before.depth)[inner].abs().max() < 0.02


@pytest.mark.parametrize(
    ("turn", "pixels", "distance"),
    [
        ((1.0, 0.0, 0.0, 0.0), (4.5, 4.5, 0.3), 9),  # discs on the wall
        ((1.0, 0.0, 0.3, 0.0), (4.5, 4.5, 0.3), 7),  # aslant
        ((1.0, 0.3, 0.2, 0.1), (4.5, 4.5, 4.5), 9),  # balls
        ((1.0, 0.0, 0.0, 0.4), (9.0, 3.0, 0.3), 6),
        ((1.0, 0.0, 0.0, 0.4), (9.0, 0.45, 0.2), 1),  # as thin as a pixel's, and long
    ],
)
@pytest.mark.parametrize("opacity", [0.4, 0.95])
def test_parents_larger_than_a_pixel_are_covered(
    turn: tuple[float, ...], pixels: tuple[float, ...], distance: int, opacity: float
) -> None:
    """A wall of Gaussians of another source than the pixels of the view, without level of detail."""
    K = torch.tensor([[[40.0, 0, 16], [0, 40, 16], [0, 0, 1]]])
    cameras = Cameras(world_to_cam=torch.eye(4)[None], K=K, width=32, height=32)
    places = torch.arange(-8, 41, distance) / 20 - 0.8
    y, x = torch.meshgrid(places, places, indexing="ij")
    n = x.numel()
    bare = Gaussians(
        means=torch.stack([x, y, torch.full_like(x, 2)], dim=-1).reshape(n, 3),
        quats=torch.tensor(turn).expand(n, 4),
        scales=(torch.tensor(pixels) / 20).expand(n, 3),
        opacities=torch.full((n,), opacity),
        sh=rgb_to_sh(torch.stack([x, y, 0 * x], dim=-1).reshape(n, 3) / 2 + 0.4),
    )
    parents = with_lod(bare, cameras)
    batched = replace(parents._map(lambda t, _: t[None]), lod=parents.lod.map(lambda t: t[None]))
    small = replace(cameras, world_to_cam=cameras.world_to_cam[None], K=cameras.K[None])
    children = split_all(batched, home_views(batched, small), ScaffoldConfig(), 4, small).gaussians[0]
    before, after = (render(g, cameras.resized(128, 128), lod=False) for g in (parents, children))
    assert abs(after.alpha.mean() - before.alpha.mean()) < 0.03
    assert (after.rgb - before.rgb).abs().mean() < 0.06


def test_parents_need_level_of_detail() -> None:
    parent, cameras = blob(0.5, (0.3, 0.2, 0.1))
    parent.lod = None
    with pytest.raises(Sr3dError, match="lod"):
        split_all(parent, torch.zeros(1, 1, dtype=torch.long), ScaffoldConfig(), 2, cameras)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"grid": 0}, "grid"),
        ({"axis_shrink": 0.0}, "axis_shrink"),
        ({"lateral_shrink": -1.0}, "lateral_shrink"),
        ({"k": 3}, "k: found 3; expected 2, 4 or 6"),
        ({"split": "shuffle", "budget": 0.5}, "budget"),
        ({"budget": 0.0}, "budget"),
        ({"beta": -0.5}, "beta"),
        ({"shrink": 0.0}, "scaffold: shrink"),
        ({"flat_shrink": -1.0}, "flat_shrink"),
        ({"max_stretch": 0.0}, "max_stretch"),
        ({"grid": 4, "budget": 1.5}, "budget"),
    ],
)
def test_impossible_settings_are_named(options: dict, key: str) -> None:
    with pytest.raises(Sr3dError, match=key):
        ScaffoldConfig(**options)


def test_home_is_the_view_that_made_a_gaussian() -> None:
    coarse, _, cameras = sloped_scene(2, 3)
    expected = torch.arange(3).repeat_interleave(SIZE * SIZE).expand(2, -1)
    assert torch.equal(home_views(coarse, cameras), expected)


def test_the_plan_drops_what_another_view_shows_and_splits_where_there_is_detail() -> None:
    coarse, _, cameras = sloped_scene(1, 2)
    home = home_views(coarse, cameras)
    images = torch.full((1, 2, 3, SIZE, SIZE), 0.5)
    images[..., :4, :6] = torch.rand(1, 2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    _, depth = cameras.project(coarse.means)
    surface = torch.stack([depth[0, i].reshape(2, SIZE, SIZE)[i] for i in range(2)])[None]
    most = 4 * 60 + (2 * SIZE * SIZE - 60)
    plan = plan_split(coarse, home, cameras, images, surface, most, 2, 1)
    kept = torch.cat([plan.fine, plan.flat], dim=1)[0]
    assert len(kept.unique()) == len(kept) < 0.7 * len(coarse)
    # Every place that a view shows keeps a Gaussian that this view or another one put there.
    pixels, _ = cameras.project(coarse.means[:, kept])
    for view in range(2):
        inside = ((pixels[0, view] > 0) & (pixels[0, view] < SIZE)).all(dim=-1)
        rows = pixels[0, view][inside]
        shown = torch.zeros(SIZE, SIZE)
        shown[rows[:, 1].long(), rows[:, 0].long()] = 1
        around = torch.nn.functional.max_pool2d(shown[None], 3, stride=1, padding=1)[0]
        assert around.all() and shown.mean() > 0.75
    # The detailed corner comes first.
    first = plan.fine[0, :20]
    row, column = (first % SIZE**2) // SIZE, first % SIZE
    assert ((row < 5) & (column < 7)).all()


def test_many_views_with_noisy_depth_keep_one_parent_for_a_place() -> None:
    views = 8
    coarse, images, cameras = sloped_scene(1, views)
    home = home_views(coarse, cameras)
    _, depth = cameras.project(coarse.means)
    surface = torch.stack([depth[0, i].reshape(views, SIZE, SIZE)[i] for i in range(views)])[None]
    centers = cameras.positions[:, home[0]]
    noise = 1 + 0.01 * torch.randn(1, len(coarse), 1, generator=torch.Generator().manual_seed(0))
    noisy = replace(coarse, means=centers + (coarse.means - centers) * noise)
    plan = plan_split(noisy, home, cameras, images.movedim(-1, 2), surface, 4 * len(coarse), 2, 1)
    kept = torch.cat([plan.fine, plan.flat], dim=1)[0]
    # The cameras walk on: all of them together see 1.4 times as much as one.
    assert SIZE**2 < len(kept) < 1.7 * SIZE**2
    pixels, _ = cameras.project(noisy.means)
    for view in range(views):
        inside = ((pixels[0, view, kept] > 0) & (pixels[0, view, kept] < SIZE)).all(dim=-1)
        columns, rows = pixels[0, view, kept][inside].long().T
        shown = torch.zeros(SIZE, SIZE)
        shown[rows, columns] = 1
        assert torch.nn.functional.max_pool2d(shown[None], 3, stride=1, padding=1).all(), f"a hole in view {view}"


def test_the_plan_keeps_to_the_budget_and_pads_scenes_that_need_less() -> None:
    coarse, images, cameras = sloped_scene(2, 2)
    coarse.opacities[1, : SIZE * SIZE] = 0
    home = home_views(coarse, cameras)
    surface = torch.full((2, 2, SIZE, SIZE), 2.0)
    plan = plan_split(coarse, home, cameras, images.movedim(-1, 2), surface, 2 * len(coarse), 2, 1)
    counts = 4 * (plan.fine >= 0).sum(dim=1) + (plan.flat >= 0).sum(dim=1)
    assert (counts <= 2 * len(coarse)).all() and counts[1] < counts[0]
    assert not set(plan.fine[1].tolist()) & set(range(SIZE * SIZE)), "nothing is spent on empty parents"
