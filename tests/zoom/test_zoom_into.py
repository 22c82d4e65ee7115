from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sr3d.coarse import CoarseConfig, coarse_gaussians
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.lod import Forest
from sr3d.lod.curve import hilbert_order
from sr3d.models import SuperResolver, SuperResolverConfig
from sr3d.models.conditioning import ConditioningConfig
from sr3d.models.encoder import EncoderConfig
from sr3d.models.head import HeadConfig
from sr3d.models.scaffold import ScaffoldConfig
from sr3d.models.semantics import SemanticsConfig
from sr3d.rendering import render
from sr3d.zoom import ZoomConfig, level_maker, target_point, zoom_centers, zoom_into, zoom_path
from sr3d.zoom.measure import frame_changes, level_zero
from sr3d.zoom.video import draw_path


def level_of(forest: Gaussians, level: int) -> Gaussians:
    return forest.index(forest.lod.level == level)


def equal(a: Gaussians, b: Gaussians) -> bool:
    """Bit for bit, `lod.finer` left out; means to a rounding of offsets from a level's middle."""
    if not torch.allclose(a.means, b.means, rtol=0, atol=3e-7):
        return False
    pairs = [(getattr(a, n), getattr(b, n)) for n in ("quats", "scales", "opacities", "sh")]
    pairs += [(getattr(a.lod, n), getattr(b.lod, n)) for n in ("native", "coarser", "level")]
    return all(torch.equal(x, y) for x, y in pairs)


def test_children_are_linked_to_their_parents(zoomed):
    forest, levels = zoomed
    assert [level.level for level in levels] == [0, 1, 2, 3]
    assert [level.gaussians for level in levels] == [len(level_of(forest, i)) for i in range(4)]
    assert (forest.lod.level.diff() >= 0).all()
    assert torch.isinf(level_of(forest, 0).lod.coarser).all()
    assert (level_of(forest, 3).lod.finer == 0).all()
    for i in range(3):
        parents, children, links = level_of(forest, i), level_of(forest, i + 1), levels[i + 1].links
        assert int((parents.lod.finer > 0).sum()) == len(links.unique()) == levels[i + 1].parents
        repeated = forest.index(links)
        assert (repeated.lod.level == i).all() and len(links) == 4 * levels[i + 1].parents
        assert torch.equal(children.lod.coarser, repeated.lod.native)
        assert torch.equal(children.lod.native, repeated.lod.finer)
        assert torch.equal(children.lod.native, repeated.lod.native / 2)
        assert ((children.means - repeated.means).norm(dim=-1) <= 2 * repeated.scales.amax(-1)).all()


def test_what_the_frames_show_is_split_and_nothing_else(zoomed):
    forest, levels = zoomed
    for i in range(3):
        parents, cameras = level_of(forest, i), levels[i + 1].cameras.to(torch.float32)
        split = parents.lod.finer > 0
        pixels, depth = cameras.project(parents.means)
        outside = torch.maximum(-pixels, pixels - 24).amax(-1)
        visible = ((outside < 0) & (depth > 0)).any(0) & (parents.opacities > 0)
        beyond = (outside > 1.01 + 3 * parents.scales.amax(-1) / cameras.footprint(depth)).all(0)
        assert split[visible].all()
        assert not split[beyond].any()
    assert (level_of(forest, 2).lod.finer == 0).sum() > 100


def test_stored_gaussians_never_change(zoomed, table, target, doubler):
    forest, _ = zoomed
    coarse = coarse_gaussians(table, CoarseConfig())
    assert equal(level_of(forest, 0), coarse.index(hilbert_order(coarse.means)))
    less = zoom_into(table, target, 2, network=doubler)
    assert equal(forest.index(slice(0, len(less))), less)


def test_each_level_is_drawn_alone_at_its_magnification(table, target, doubler):
    first = table.views([0])
    # Colours as they are inherited: those that are corrected have more contrast, of which some shows through.
    forest = zoom_into(first, target, 4, maker=level_maker("scaffold", doubler))
    for level in range(3):
        camera = first.cameras.zoomed(2.0**level, target)
        shown = render(forest, camera).rgb
        off = [(shown - render(replace(level_of(forest, i), lod=None), camera).rgb).abs().mean() for i in range(3)]
        # Not zero: children lie a little before or behind the parent that gave them their footprint.
        assert off[level] < 1e-3 < 5e-3 < min(off[:level] + off[level + 1 :])


def test_no_magnification_has_holes_or_pops(zoomed, table, target):
    forest, _ = zoomed
    path = zoom_path(table.cameras.index([0]), target, 8.0, 49)
    shown, coarse = render(forest, path).alpha, render(level_zero(forest), path).alpha
    assert (shown.amin((-2, -1)) > coarse.amin((-2, -1)) - 0.02).all()
    assert (shown.mean((-2, -1)) > coarse.mean((-2, -1)) - 0.005).all()

    frames = draw_path(forest, path)
    changes = frame_changes(frames, path, target)
    assert changes.max() < 2.5 * changes.median()
    # The same levels switched instead of faded: the detector sees it.
    finest = replace(level_of(forest, 3), lod=None)
    switched = torch.cat([frames[:30], draw_path(level_zero(forest), path[30:40]), draw_path(finest, path[40:])])
    assert frame_changes(switched, path, target).max() > 4 * changes.median()


def test_the_target_stays_in_place(zoomed, table, target, world):
    forest, levels = zoomed
    point = target_point(level_zero(forest), table.cameras, target)
    pixels, depth = table.cameras.index([0]).zoomed(8.0, target).project(point[None])
    assert torch.allclose(pixels[0, 0], torch.tensor(target), atol=1e-2)
    window = table.depths[0, 12:15, 9:12]
    assert 0.99 * window.min() < depth[0, 0] < 1.01 * window.max()
    centers, inside = zoom_centers(point, table.cameras)
    assert inside.all()
    deep, _ = levels[3].cameras.project(point[None].double())
    assert torch.allclose(deep[:, 0].float(), centers, atol=1e-2)


def test_views_without_the_target_are_dropped(table, doubler):
    """A corner of the first view that the second, moved aside, does not see."""
    poses = table.cameras.world_to_cam[[0, 0]]
    poses[1, 0, 3] -= 0.35 * float(table.depths[0].median())
    cameras = replace(table.cameras, world_to_cam=poses)
    views = replace(table, cameras=cameras, depths=table.depths[[0, 0]])
    levels = []
    zoom_into(views, (1.5, 20.5), 4, network=doubler, on_level=levels.append)
    assert [len(level.cameras) for level in levels] == [2, 1, 1]


def test_given_gaussians_are_zoomed_and_extended(table, target, doubler):
    coarse = replace(coarse_gaussians(table, CoarseConfig()), lod=None)
    forest = zoom_into(coarse, target, 2, network=doubler, cameras=table.cameras)
    assert len(level_of(forest, 1)) == 4 * len(level_of(forest, 0))
    again = zoom_into(forest, target, 2, network=doubler, cameras=table.cameras)
    assert equal(again, forest)
    deeper = zoom_into(forest, target, 4, network=doubler, cameras=table.cameras)
    elsewhere = zoom_into(deeper, (19.5, 6.5), 4, network=doubler, cameras=table.cameras)
    assert equal(elsewhere.index(slice(0, len(deeper))), deeper)
    parents = level_of(elsewhere, 1)
    assert 4 * int((parents.lod.finer > 0).sum()) == len(level_of(elsewhere, 2)) > len(level_of(deeper, 2))


def test_round_trip_through_ply(zoomed, table, target, tmp_path):
    forest, _ = zoomed
    forest.save(tmp_path / "scene.ply")
    loaded = Gaussians.load(tmp_path / "scene.ply")
    path = zoom_path(table.cameras.index([0]), target, 8.0, 5)
    assert (render(loaded, path).rgb - render(forest, path).rgb).abs().max() < 1e-4


@pytest.mark.parametrize("factor", [0, 1, 3, 6, -2])
def test_factor_must_be_a_power(table, target, doubler, factor):
    with pytest.raises(Sr3dError, match=f"factor: found {factor}; expected a positive power of the network's 2"):
        zoom_into(table, target, factor, network=doubler)


@pytest.mark.parametrize("pixel", [(-0.1, 5.0), (5.0, 24.5), (float("nan"), 3.0)])
def test_target_must_be_in_the_image(table, doubler, pixel):
    with pytest.raises(Sr3dError, match=r"target.*24 x 24"):
        zoom_into(table, pixel, 2, network=doubler)


def test_target_must_show_something(table, target, doubler):
    coarse = coarse_gaussians(table, CoarseConfig())
    empty = replace(coarse, opacities=torch.zeros_like(coarse.opacities))
    with pytest.raises(Sr3dError, match="nothing at pixel"):
        zoom_into(empty, target, 2, network=doubler, cameras=table.cameras)


def test_gaussians_need_cameras(table, target, doubler):
    with pytest.raises(Sr3dError, match="cameras: found none"):
        zoom_into(coarse_gaussians(table, CoarseConfig()), target, 2, network=doubler)


def test_budget_is_checked_before_any_level_is_made(table, target, doubler):
    levels = []
    with pytest.raises(Sr3dError, match=r"level 1 needs 4,608 Gaussians \(1,152 parents, 4 children each\).*4,000"):
        zoom_into(table, target, 4, network=doubler, config=ZoomConfig(max_gaussians=4000), on_level=levels.append)
    assert not levels


def test_features_and_what_the_network_is_told_reach_every_level(table, target):
    torch.manual_seed(0)
    config = SuperResolverConfig(
        factor=2, encoder=EncoderConfig(options={"embed_dim": 32, "depth": 1, "num_heads": 2}),
        scaffold=ScaffoldConfig(grid=2), head=HeadConfig(), semantics=SemanticsConfig(width=5),
        conditioning=ConditioningConfig(embedding=4),
    )  # fmt: skip
    network = SuperResolver(config).eval()
    torch.nn.init.normal_(network.head.out.weight, std=0.1)
    torch.nn.init.normal_(network.conditioner.mlp[-1].weight, std=1.0)
    embeddings = (None, torch.tensor([3.0, -1.0, 2.0, -3.0]))
    plain, told = (zoom_into(table, target, 4, network=network, embedding=e) for e in embeddings)
    assert plain.features.shape == (len(plain), 5) and not level_of(plain, 0).features.any()
    for level in (1, 2):
        assert level_of(plain, level).features.any()
        assert (level_of(plain, level).features[:50] - level_of(told, level).features[:50]).abs().max() > 2e-4


def test_an_embedding_that_nobody_reads_is_refused(table, target, doubler):
    with pytest.raises(Sr3dError, match="embedding: found one; expected none: the network has no conditioning"):
        zoom_into(table, target, 2, network=doubler, embedding=torch.ones(4))


def test_sharp_predictions_do_not_fall_apart_when_the_zoom_goes_on(table, doubler):
    """A network that shrinks its Gaussians to a fifth leaves a lattice; the zoom keeps its levels closed."""
    first, center = table.cameras.index([0]), (12.0, 12.0)
    with torch.no_grad():
        scale_rows = slice(4, 7)  # after offset (3) and slide (1)
        doubler.head.out.bias[scale_rows] = -5.0
    try:
        forest = zoom_into(table, center, 2, network=doubler)
        bare = doubler.upscale(coarse_gaussians(table, CoarseConfig()), table, 2)
    finally:
        with torch.no_grad():
            doubler.head.out.bias[scale_rows] = 0.0
    closer = first.zoomed(6.0, center)
    assert (render(bare, closer, lod=False).alpha > 0.8).float().mean() < 0.5
    assert (render(forest, closer).alpha > 0.8).float().mean() > 0.97


@pytest.mark.parametrize("pixel", [(10.5, 13.5), (7.0, 16.0), (15.5, 9.5)])
def test_two_views_zoom_four_thousand_times(table, doubler, pixel):
    """Beyond some level the surfaces of two views differ by more than a frame: the zoom goes on with one."""
    levels = []
    forest = zoom_into(table, pixel, 2**12, network=doubler, on_level=levels.append)
    assert [level.level for level in levels] == list(range(13)) and all(level.gaussians for level in levels)
    assert len(levels[1].cameras) == 2 and len(forest) == sum(level.gaussians for level in levels)
    camera = table.cameras.to(torch.float64).index([0]).zoomed(2.0**12, pixel)
    assert float((render(Forest.from_gaussians(forest), camera).alpha > 0.9).float().mean()) > 0.95


def test_a_factor_beyond_float32_is_refused_at_once(table, target, doubler):
    levels = []
    with pytest.raises(Sr3dError, match=r"factor: found 1073741824; expected .* float32 has no digits"):
        zoom_into(table, target, 2**30, network=doubler, on_level=levels.append)
    assert not levels
