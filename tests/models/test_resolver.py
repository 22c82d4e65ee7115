from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import SIZE, sloped_scene, tiny_config

from sr3d import Cameras, Gaussians, Scene, Sr3dError, SuperResolver, render
from sr3d.gaussians import quat_to_matrix

FIELDS = ("means", "scales", "opacities", "sh")


def perturbed(split: str = "inplane", seed: int = 1) -> SuperResolver:
    """A network whose zero-initialised layer is not zero, so that every residual is at work."""
    torch.manual_seed(seed)
    network = SuperResolver(tiny_config(split))
    torch.nn.init.normal_(network.head.out.weight, std=0.1)
    return network.eval()


def close(a: Gaussians, b: Gaussians, tolerance: float) -> None:
    for field in FIELDS:
        torch.testing.assert_close(getattr(a, field), getattr(b, field), atol=tolerance, rtol=tolerance, msg=field)
    rotations = quat_to_matrix(a.quats), quat_to_matrix(b.quats)
    torch.testing.assert_close(*rotations, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("split", ["inplane", "shuffle"])
def test_untrained_network_returns_the_scaffold_exactly(scene, split: str) -> None:
    coarse, images, cameras = scene
    network = SuperResolver(tiny_config(split)).eval()
    fine, scaffold = network(coarse, images, cameras), network.scaffold(coarse, images, cameras)
    for field in (*FIELDS, "quats"):
        assert torch.equal(getattr(fine, field), getattr(scaffold, field)), field
    assert len(fine) == len(coarse) * network.config.scaffold.children


@pytest.mark.parametrize("split", ["inplane", "shuffle"])
def test_every_parameter_gets_a_gradient(scene, split: str) -> None:
    coarse, images, cameras = scene
    network = perturbed(split).train()
    drawn = render(network(coarse, images, cameras), cameras.resized(2 * SIZE, 2 * SIZE), lod=False)
    (drawn.rgb.square().mean() + drawn.alpha.mean() + drawn.depth.mean()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_zero_initialised_head_learns_from_the_first_step(scene) -> None:
    coarse, images, cameras = scene
    network = SuperResolver(tiny_config())
    drawn = render(network(coarse, images, cameras), cameras.resized(2 * SIZE, 2 * SIZE), lod=False)
    (drawn.rgb.square().mean() + drawn.alpha.mean() + drawn.depth.mean()).backward()
    # Every residual (output row) moves, not only those that enter linearly.
    assert (network.head.out.bias.grad.abs() > 0).all()


def test_batch_of_two_equals_two_batches_of_one(scene) -> None:
    coarse, images, cameras = scene
    network = perturbed()
    with torch.no_grad():
        both = network(coarse, images, cameras)
        for i in range(2):
            one = network(coarse[i : i + 1], images[i : i + 1], cameras[i : i + 1])
            close(both[i : i + 1], one, 1e-5)


def test_order_of_views_does_not_matter() -> None:
    coarse, images, cameras = sloped_scene(1, 3)
    network, order = perturbed(), [2, 0, 1]
    with torch.no_grad():
        a = network(coarse, images, cameras)
        b = network(coarse, images[:, order], cameras.index(order))
    close(a, b, 2e-5)


@pytest.mark.parametrize("split", ["inplane", "shuffle"])
@pytest.mark.parametrize("views", [1, 2, 4])
def test_any_number_of_views(views: int, split: str) -> None:
    coarse, images, cameras = sloped_scene(1, views)
    with torch.no_grad():
        fine = perturbed(split)(coarse, images, cameras)
    assert all(torch.isfinite(getattr(fine, f)).all() for f in FIELDS)


def test_moved_turned_and_scaled_world_gives_the_same_scene_moved() -> None:
    coarse, images, cameras = sloped_scene(1, 2)
    network, scale = perturbed(), 3.0
    rotation = quat_to_matrix(torch.tensor([0.6, -0.3, 0.5, 0.2]))
    move = torch.eye(4)
    move[:3, :3], move[:3, 3] = scale * rotation, torch.tensor([0.4, -2.0, 1.0])
    poses = torch.eye(4).repeat(1, 2, 1, 1)
    turned = cameras.world_to_cam[..., :3, :3] @ rotation.T
    poses[..., :3, :3] = turned
    poses[..., :3, 3] = scale * cameras.world_to_cam[..., :3, 3] - (turned @ move[:3, 3])
    moved_cameras = replace(cameras, world_to_cam=poses)
    with torch.no_grad():
        expected = network(coarse, images, cameras).transform(move)
        found = network(coarse.transform(move), images, moved_cameras)
    # The quaternion residual turns with the parent's frame; float32 rays and depths differ in the last digits.
    close(found, expected, 2e-3)


def test_children_link_to_their_parents(scene) -> None:
    coarse, images, cameras = scene
    with torch.no_grad():
        fine = perturbed()(coarse, images, cameras)
    parents = coarse.lod.native.repeat_interleave(4, dim=-1)
    torch.testing.assert_close(fine.lod.native, parents / 2)
    assert torch.equal(fine.lod.coarser, parents)
    assert (fine.lod.finer == 0).all() and (fine.lod.level == 1).all()


def test_upscale_is_the_batched_forward() -> None:
    coarse, images, cameras = sloped_scene(1, 2)
    network = perturbed()
    with torch.no_grad():
        expected = network(coarse, images, cameras)[0]
    close(network.upscale(coarse[0], Scene(images=images[0], cameras=cameras[0]), factor=2), expected, 1e-6)


def test_coarse_without_lod_counts_as_made_for_the_views() -> None:
    coarse, images, cameras = sloped_scene(1, 2)
    bare = replace(coarse[0], lod=None)
    fine = perturbed().upscale(bare, Scene(images=images[0], cameras=cameras[0]), factor=2)
    _, depth = cameras[0].project(bare.means)
    nearest = cameras[0].footprint(depth).amin(dim=0)
    torch.testing.assert_close(fine.lod.coarser, nearest.repeat_interleave(4))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"factor": 4}, "factor"),
        ({"cameras": None}, "cameras"),
        ({"batched": True}, "coarse"),
        ({"degree": 2}, "sh"),
        ({"size": True}, "images"),
    ],
)
def test_wrong_input_is_named(change: dict, field: str) -> None:
    coarse, images, cameras = sloped_scene(1, 2)
    one = coarse if "batched" in change else coarse[0]
    if "degree" in change:
        one = replace(one, sh=torch.zeros(len(one), 9, 3))
    shown: Cameras | None = cameras[0] if "cameras" not in change else None
    picture = images[0, :, 1:] if "size" in change else images[0]
    with pytest.raises(Sr3dError, match=field):
        perturbed().upscale(one, Scene(images=picture, cameras=shown), factor=change.get("factor", 2))
