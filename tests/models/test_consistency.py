from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import avg_pool2d

from sr3d import Gaussians, Scene, Sr3dError
from sr3d.coarse import CoarseConfig, coarse_gaussians, upsampled_gaussians
from sr3d.datasets.world import World
from sr3d.models import SuperResolver, SuperResolverConfig
from sr3d.models.consistency import ConsistencyConfig, consistent
from sr3d.models.encoder import EncoderConfig
from sr3d.rendering import render


@pytest.fixture(scope="module")
def views() -> Scene:
    """Two views of 24 x 24 pixels with exact depth."""
    world = World.generate(3, "table")
    return world.render(world.sample_cameras(2, 24, 24), samples=4)


@pytest.fixture(scope="module")
def fine(views: Scene) -> Gaussians:
    """Grey Gaussians on the surfaces, one for each pixel of 48 x 48."""
    made = upsampled_gaussians(views, 2, CoarseConfig(upsampled_sigma=0.4))
    return replace(made, sh=torch.zeros_like(made.sh), lod=None)


def error(fine: Gaussians, views: Scene) -> float:
    """Mean absolute difference of the inputs and drawings of 48 x 48, reduced."""
    rgb = render(fine, views.cameras.resized(48, 48), lod=False).rgb.movedim(-1, 1)
    return float((avg_pool2d(rgb, 2).movedim(1, -1) - views.images).abs().mean())


def test_every_round_comes_closer_to_the_inputs(fine, views):
    errors = [error(fine, views)]
    errors += [error(consistent(fine, views.images, views.cameras, 2, rounds), views) for rounds in (1, 2, 4, 8)]
    assert all(after < 0.8 * before for before, after in pairwise(errors))
    assert errors[0] > 0.1 and errors[-1] < 0.015


def test_what_reduces_to_the_inputs_stays(fine, views):
    rgb = render(fine, views.cameras.resized(48, 48), lod=False)
    alpha = avg_pool2d(rgb.alpha[:, None], 2)[:, 0, ..., None]
    own = avg_pool2d(rgb.rgb.movedim(-1, 1), 2).movedim(1, -1) / alpha
    after = consistent(fine, own, views.cameras, 2, 3)
    assert (after.sh - fine.sh).abs().max() < 1e-5
    for name in ("means", "quats", "scales", "opacities"):
        assert torch.equal(getattr(after, name), getattr(fine, name))


def test_what_nobody_sees_keeps_its_colour(fine, views):
    behind = replace(fine.index(slice(0, 5)), means=fine.means[:5] + 100 * torch.tensor([0.0, 0.0, -1.0]))
    after = consistent(Gaussians.cat([fine, behind]), views.images, views.cameras, 2, 2)
    assert torch.equal(after.sh[-5:], behind.sh)
    assert torch.allclose(after.sh[:-5], consistent(fine, views.images, views.cameras, 2, 2).sh, atol=1e-6)


def test_a_batch_is_its_scenes(fine, views):
    second = replace(views, images=views.images.flip(0))
    cameras = replace(
        views.cameras, world_to_cam=views.cameras.world_to_cam.expand(2, 2, 4, 4), K=views.cameras.K.expand(2, 2, 3, 3)
    )
    both = Gaussians(
        **{n: torch.stack([getattr(fine, n)] * 2) for n in ("means", "quats", "scales", "opacities", "sh")}
    )
    after = consistent(both, torch.stack([views.images, second.images]), cameras, 2, 2)
    for i, scene in enumerate((views, second)):
        assert torch.allclose(after.sh[i], consistent(fine, scene.images, views.cameras, 2, 2).sh, atol=1e-5)


def test_networks_correct_in_evaluation_mode_only(views):
    torch.manual_seed(0)
    config = SuperResolverConfig(
        factor=2,
        encoder=EncoderConfig(options={"embed_dim": 32, "depth": 1, "num_heads": 2}),
        consistency=ConsistencyConfig(rounds=3),
    )
    network, coarse = SuperResolver(config), coarse_gaussians(views, CoarseConfig())
    learning, _ = network.train().refine(coarse, views, 2)
    corrected, _ = network.eval().refine(coarse, views, 2)
    assert error(corrected, views) < 0.7 * error(learning, views)
    with pytest.raises(Sr3dError, match=r"consistency\.rounds"):
        SuperResolverConfig(consistency=ConsistencyConfig(rounds=0))
