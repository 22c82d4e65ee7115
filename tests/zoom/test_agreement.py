from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.coarse import CoarseConfig, coarse_gaussians
from sr3d.datasets.world import World
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.rendering.sh import rgb_to_sh
from sr3d.scene import Scene
from sr3d.typed import from_dict
from sr3d.zoom.agreement import Agreement, RejectConfig, agreement, reject

SCORES = ["color", "psnr", "depth", "feature", "shared"]


@pytest.fixture(scope="module")
def room() -> tuple[World, Scene]:
    """Four views of 64 x 48 pixels with exact depth."""
    world = World.generate(40)
    return world, world.render(world.sample_cameras(4, 64, 48, baseline=0.2), samples=16)


def _wall(depth: float = 4.0, views: int = 3) -> tuple[Cameras, Tensor, Tensor, Tensor]:
    """Cameras in a row before a grey wall; images, depths, alphas. [C, 40, 40]"""
    poses = torch.eye(4).repeat(views, 1, 1)
    poses[:, 0, 3] = 0.2 * torch.arange(views)
    K = torch.tensor([[40.0, 0, 20], [0, 40, 20], [0, 0, 1]]).repeat(views, 1, 1)
    cameras = Cameras(world_to_cam=poses, K=K, width=40, height=40)
    return cameras, torch.full((views, 40, 40, 3), 0.5), torch.full((views, 40, 40), depth), torch.ones(views, 40, 40)


def _balls(means: Tensor, colors: Tensor, scale: float = 0.01) -> Gaussians:
    n = len(means)
    quats = torch.tensor([[1.0, 0, 0, 0]]).expand(n, 4)
    return Gaussians(
        means=means, quats=quats, scales=torch.full((n, 3), scale), opacities=torch.ones(n), sh=rgb_to_sh(colors)
    )


def _score(room: Scene, **change: Tensor) -> Agreement:
    maps = {"images": room.images, "depths": room.depths, "alphas": torch.ones_like(room.depths)} | change
    return agreement(cameras=room.cameras, **maps)


def test_true_scene_agrees_and_faults_are_measured(room):
    world, scene = room
    normals = world.normals(scene.cameras).float()
    good = _score(scene, features=normals)
    assert good.color < 0.02 and good.psnr > 30 and good.depth < 1e-3 and good.shared > 0.9
    assert good.feature < 0.02
    assert good.error.shape == (4, 48, 64) and not good.error[~good.seen].any()
    assert good.color == pytest.approx(float(good.error[good.seen].mean()))

    dark = scene.images.clone()
    dark[1] *= 0.7
    assert _score(scene, images=dark).color > 2.5 * good.color
    deeper = scene.depths.clone()
    deeper[2] *= 1.01
    off = _score(scene, depths=deeper)
    assert 0.001 < off.depth < 0.012 and off.color > good.color
    deeper[2] *= 1.1
    apart = _score(scene, depths=deeper).seen.float().mean(dim=(1, 2))
    assert apart[2] < 0.02 and (apart[[0, 1, 3]] > 0.9).all()  # the other three still see each other
    turned = _score(scene, features=normals.roll(1, dims=0))
    assert turned.feature > 2 * good.feature


def test_scores_against_the_closed_form():
    """Two views of a wall, one of them brighter: all that both see differs by the same."""
    cameras, images, depths, alphas = _wall(views=2)
    images[1] += 0.1
    features = torch.zeros(2, 40, 40, 4)
    features[0, ..., 0], features[1, ..., :2] = 2.0, 3.0
    alphas[:, :10] = 0.3
    found = agreement(images, depths, alphas, cameras, features)
    assert found.color == pytest.approx(0.1, abs=1e-6) and found.psnr == pytest.approx(20, abs=1e-3)
    assert found.feature == pytest.approx(1 - math.sqrt(0.5), abs=1e-5)
    assert found.depth == pytest.approx(0, abs=1e-6)
    assert found.shared == pytest.approx(38 / 40)  # f·b/z = 2 columns are outside the other frame
    assert not found.seen[:, :10].any()
    farther = depths * torch.tensor([1, 1.01])[:, None, None]
    assert agreement(images, farther, alphas, cameras).shared > 0.9
    assert agreement(images, farther, alphas, cameras, tolerance=0.009).shared == 0
    features[1] = 0
    assert agreement(images, depths, alphas, cameras, features).feature is None
    document = json.loads(json.dumps(found.to_dict()))
    assert list(document) == SCORES and document == found.to_dict()


@pytest.mark.parametrize("case", ["one view", "nothing solid", "nothing shared"])
def test_what_is_not_known_is_none(case):
    cameras, images, depths, alphas = _wall(views=1 if case == "one view" else 2)
    if case == "nothing solid":
        alphas = alphas * 0.4
    if case == "nothing shared":
        depths[1] = 3.0
    found = agreement(images, depths, alphas, cameras, images)
    expected: dict[str, float | None] = {**dict.fromkeys(SCORES), "shared": 0.0}
    if case == "nothing shared":
        expected["depth"] = pytest.approx((1 / 3 + 1 / 4) / 2, abs=1 / 12 + 1e-5)
    assert found.to_dict() == expected
    assert not found.seen.any() and not found.error.any()


def test_reject_against_the_closed_form():
    """Balls of σ = 1 cm before a wall at 4 m; 2σ belong to the ball, 3 to 6 % and 0.06 to 0.15 is where it fades."""
    cameras, images, depths, alphas = _wall()
    gaps = torch.tensor([0.0, 0.10, 0.12, 0.18, 0.24, 1.0, 1.0, 1.0, 1.0, -1.0])
    differences = torch.tensor([0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.0, 0.06, 0.105, 0.4])
    means = torch.stack([torch.zeros(10), torch.zeros(10), 4 - gaps - 0.02 * (gaps > 0)], dim=-1)
    factors = reject(
        _balls(means, 0.5 + differences[:, None].expand(-1, 3)), cameras, images, depths, alphas, RejectConfig()
    )
    expected = torch.tensor([1, 1, 1, 0.5, 0, 0, 1, 1, 0.5, 1])
    assert torch.allclose(factors, expected, atol=1e-4)
    assert torch.equal(factors[[0, 1, 6, 9]], torch.ones(4))


def test_what_one_view_alone_says_rejects_nothing():
    cameras, images, depths, alphas = _wall()
    red = torch.tensor([[1.0, 0, 0]])
    floater = _balls(torch.tensor([[-0.5, 0.0, 2.0]]), red)
    config = RejectConfig()

    def factor(child: Gaussians, depths: Tensor = depths, alphas: Tensor = alphas, images: Tensor = images) -> float:
        return float(reject(child, cameras, images, depths, alphas, config)[0])

    assert factor(floater) == 0
    alone = _balls(torch.tensor([[0.95, 0.0, 2.0]]), red)  # in the frame of the first view only
    assert (cameras.project(alone.means)[0][:, 0, 0] < 40).tolist() == [True, False, False]
    assert factor(alone) == 1
    first = cameras.index([0])
    assert torch.equal(reject(floater, first, images[:1], depths[:1], alphas[:1], config), torch.ones(1))
    # Hidden in two of three views.
    near = depths.clone()
    near[1:] = 1.0
    assert factor(floater, depths=near) == 1
    # One view disagrees and one has no surface there, as when a hole of its own is filled: that is a contradiction.
    holes = alphas.clone()
    holes[:2] = 0
    assert factor(floater, alphas=holes) == 0
    assert factor(floater, alphas=alphas * 0.4) == 1
    # Its colour in all views: photographs may know better than the depth.
    assert factor(floater, images=images * 0 + red) == 1
    # Next to the silhouette of something near, which a Gaussian of its size reaches.
    pixels = cameras.project(floater.means)[0][:, 0].long()
    edge = depths.clone()
    for i, (u, v) in enumerate(pixels.tolist()):
        edge[i, v, u + 3] = 2.0
    assert factor(floater, depths=edge) == 0
    assert factor(replace(floater, scales=floater.scales * 6), depths=edge) == 1


def test_floaters_go_and_a_true_scene_stays(room):
    world, scene = room
    alphas, config = torch.ones_like(scene.depths), RejectConfig()
    large = world.render(scene.cameras.resized(256, 192).index([0, 2]), samples=4)
    children = coarse_gaussians(large, CoarseConfig(source="depth"))
    assert len(children) > 80_000
    kept = reject(children, scene.cameras, scene.images, scene.depths, alphas, config)
    assert (kept != 1).float().mean() < 0.001
    # Depths of the views 2 % off, smoothly, as those of a coarse scene are.
    noise = torch.randn(4, 1, 6, 8, generator=torch.Generator().manual_seed(0))
    noise = torch.nn.functional.interpolate(noise, size=(48, 64), mode="bilinear")[:, 0]
    off = reject(children, scene.cameras, scene.images, scene.depths * (1 + 0.02 * noise), alphas, config)
    assert (off != 1).float().mean() < 0.005

    # Floaters in the air between the first camera and what it sees; of a colour that nothing in the room has.
    generator = torch.Generator().manual_seed(1)
    some = children.index(torch.randperm(len(children), generator=generator)[:3000])
    eye = scene.cameras.positions[0]
    floaters = eye + (some.means - eye) * (0.5 + 0.35 * torch.rand(3000, 1, generator=generator))
    pixels, depth = scene.cameras.project(floaters)
    inside = ((pixels > 0) & (pixels < torch.tensor([64, 48]))).all(dim=-1) & (depth > 0)
    # Those that truly are in free space of two views, 8 % of the depth or more before all that surrounds them.
    column, row = torch.where(inside[..., None], pixels, 0).long().unbind(dim=-1)
    around = -torch.nn.functional.max_pool2d(-scene.depths, 5, stride=1, padding=2)
    free = (inside & (depth < 0.92 * around[torch.arange(4)[:, None], row, column])).sum(dim=0) > 1
    assert free.sum() > 1500
    mixed = Gaussians.cat(
        [replace(some, means=floaters, sh=rgb_to_sh(torch.tensor([[1.0, 0, 1]]).expand(3000, 3))), children]
    )
    factors = reject(mixed, scene.cameras, scene.images, scene.depths, alphas, config)
    assert (factors[:3000][free] == 0).float().mean() > 0.95
    assert torch.equal(factors[3000:], kept)
    assert ((factors >= 0) & (factors <= 1)).all()


@pytest.mark.parametrize("field", ["images", "depths", "alphas", "features"])
@pytest.mark.parametrize("fault", ["size", "nan"])
def test_wrong_maps_raise_one_error(field, fault):
    cameras, images, depths, alphas = _wall()
    maps = {"images": images, "depths": depths, "alphas": alphas, "features": images}
    wrong = maps[field].clone()
    wrong[0, 0, 0] = torch.nan
    maps[field] = maps[field][:, 1:] if fault == "size" else wrong
    with pytest.raises(Sr3dError, match=rf"sr3d\.zoom\.agreement: {field}"):
        agreement(cameras=cameras, **maps)
    del maps["features"]
    if field != "features":
        with pytest.raises(Sr3dError, match=rf"sr3d\.zoom\.reject: {field}"):
            reject(_balls(torch.zeros(1, 3), torch.zeros(1, 3)), cameras, config=RejectConfig(), **maps)


def test_wrong_children_and_settings():
    cameras, images, depths, alphas = _wall()
    batch = _balls(torch.zeros(1, 3), torch.zeros(1, 3)).unsqueezed()
    with pytest.raises(Sr3dError, match="children"):
        reject(batch, cameras, images, depths, alphas, RejectConfig())
    none = _balls(torch.zeros(0, 3), torch.zeros(0, 3))
    assert reject(none, cameras, images, depths, alphas, RejectConfig()).shape == (0,)
    assert from_dict(RejectConfig, asdict(RejectConfig(extent=3.0)), "zoom.yaml") == RejectConfig(extent=3.0)
    for wrong in ({"depth_tolerance": 0.0}, {"color_limit": 0.06}, {"depth_limit": 1.5}, {"extent": math.inf}):
        with pytest.raises(Sr3dError, match=next(iter(wrong))):
            RejectConfig(**wrong)
