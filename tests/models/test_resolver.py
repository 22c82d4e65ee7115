from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_networks import SIZE, VARIANTS, perturbed, sloped_scene, tiny_config

from sr3d import Cameras, Gaussians, Scene, Sr3dError, SuperResolver, render
from sr3d.gaussians import quat_to_matrix
from sr3d.models.describe import to_surface
from sr3d.models.gather import sample
from sr3d.rendering import sh_to_rgb

FIELDS = ("means", "scales", "opacities", "sh")


def close(a: Gaussians, b: Gaussians, tolerance: float) -> None:
    for field in FIELDS:
        torch.testing.assert_close(getattr(a, field), getattr(b, field), atol=tolerance, rtol=tolerance, msg=field)
    rotations = quat_to_matrix(a.quats), quat_to_matrix(b.quats)
    torch.testing.assert_close(*rotations, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("variant", VARIANTS)
def test_untrained_network_returns_the_scaffold_exactly(scene, variant: str) -> None:
    coarse, images, cameras = scene
    network = SuperResolver(tiny_config(variant)).eval()
    fine, scaffold = network(coarse, images, cameras), network.scaffold(coarse, images, cameras)
    for field in (*FIELDS, "quats"):
        assert torch.equal(getattr(fine, field), getattr(scaffold, field)), field
    if network.config.scaffold.budget is None:
        assert len(fine) == len(coarse) * network.config.scaffold.children(2)


def loss_of(network: SuperResolver, scene: tuple) -> torch.Tensor:
    """Depends on everything that the network returns."""
    coarse, images, cameras = scene
    found = network.predict(coarse, images, cameras)
    features = found.gaussians.features is not None
    drawn = render(found.gaussians, cameras.resized(2 * SIZE, 2 * SIZE), features=features, lod=False)
    total = drawn.rgb.square().mean() + drawn.alpha.mean() + drawn.depth.mean()
    if found.depths is not None:
        total = total + found.depths.mean()
    if network.semantics is not None:
        total = total + network.semantics.to_embedding(drawn.features).sin().mean()
    return total


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_gets_a_gradient(scene, variant: str) -> None:
    network = perturbed(variant).train()
    # Once with and once without an embedding: the network learns what stands for none, too.
    loss_of(network, scene).backward()
    if network.conditioner is not None:
        coarse, images, cameras = scene
        network.predict(coarse, images, cameras, embedding=torch.randn(2, 8)).gaussians.sh.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_recomputed_activations_give_the_same_gradients(scene) -> None:
    network, found = perturbed("full").train(), []
    for checkpointing in (False, True):
        network.set_checkpointing(checkpointing)
        network.zero_grad()
        loss_of(network, scene).backward()
        found.append({name: p.grad.clone() for name, p in network.named_parameters()})
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name], atol=1e-6, rtol=1e-4, msg=name)


def test_zero_initialised_head_learns_from_the_first_step(scene) -> None:
    network = SuperResolver(tiny_config("full"))
    loss_of(network, scene).backward()
    assert network.head is not None
    # Every residual (output row) moves, not only those that enter linearly. Depth to follow is not there yet.
    moved = network.head.out.bias.grad.abs() > 0
    follow = sum(network.head.sizes[:6])
    assert moved[torch.arange(len(moved)) != follow].all()
    for layer in (network.decoder.texture, network.decoder.trust):
        assert layer.bias.grad.abs().max() > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_batch_of_two_equals_two_batches_of_one(scene, variant: str) -> None:
    coarse, images, cameras = scene
    # The second scene keeps fewer parents: under a budget it is padded.
    coarse.opacities[1, ::3] = 0
    network = perturbed(variant)
    with torch.no_grad():
        both = network(coarse, images, cameras)
        for i in range(2):
            one = network(coarse[i : i + 1], images[i : i + 1], cameras[i : i + 1])
            close(_solid(both[i : i + 1]), _solid(one), 2e-5)


def _solid(scene: Gaussians) -> Gaussians:
    return scene.index(scene.opacities[0] > 0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_order_of_views_does_not_matter(variant: str) -> None:
    coarse, images, cameras = sloped_scene(1, 3)
    network, order = perturbed(variant), [2, 0, 1]
    with torch.no_grad():
        a = network(coarse, images, cameras)
        b = network(coarse, images[:, order], cameras.index(order))
    close(a, b, 2e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("views", [1, 2, 4])
def test_any_number_of_views(views: int, variant: str) -> None:
    coarse, images, cameras = sloped_scene(1, views)
    with torch.no_grad():
        fine = perturbed(variant)(coarse, images, cameras)
    assert all(torch.isfinite(getattr(fine, f)).all() for f in FIELDS)


@pytest.mark.parametrize(("variant", "degree"), [*((v, 0) for v in VARIANTS), ("inplane", 1), ("inplane", 3)])
def test_moved_turned_and_scaled_world_gives_the_same_scene_moved(variant: str, degree: int) -> None:
    coarse, images, cameras = sloped_scene(1, 2)
    coarse = with_bands(coarse, degree)
    network, scale = perturbed(variant, degree), 3.0
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
        ({"away": True}, "frustum"),
        ({"apart": True}, "no input view sees anything of another one"),
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
    if "apart" in change:
        # Seen from 100 units to the side, with Gaussians there as well.
        aside = torch.tensor([100.0, 0.0, 0.0])
        half = len(one) // 2
        one = replace(one, means=torch.cat([one.means[:half], one.means[half:] + aside]))
        cameras.world_to_cam[:, 1, :3, 3] -= aside
    if "away" in change:
        one = replace(one, means=one.means - torch.tensor([0.0, 0.0, 10.0]))
    shown: Cameras | None = cameras[0] if "cameras" not in change else None
    picture = images[0, :, 1:] if "size" in change else images[0]
    with pytest.raises(Sr3dError, match=field):
        perturbed().upscale(one, Scene(images=picture, cameras=shown), factor=change.get("factor", 2))


def with_bands(gaussians: Gaussians, degree: int) -> Gaussians:
    """Colours that depend on the direction."""
    bands = torch.randn(1, len(gaussians), (degree + 1) ** 2 - 1, 3, generator=torch.Generator().manual_seed(4))
    return replace(gaussians, sh=torch.cat([gaussians.sh, 0.2 * bands], dim=-2))


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_recoloured_children_show_their_home_view_its_colour(degree: int) -> None:
    coarse, images, cameras = sloped_scene(1, 1)
    network = SuperResolver(replace(tiny_config(), sh_degree=2))
    scaffold = network.scaffold(with_bands(coarse, degree), images, cameras)
    large = cameras.resized(2 * SIZE, 2 * SIZE)
    pixels, _ = large.project(scaffold.means)
    upsampled = network.upsampler(images[0].movedim(-1, 1), 2)[:, None]
    expected = sample(upsampled, pixels / (2 * SIZE))[0, 0].T
    directions = torch.nn.functional.normalize(scaffold.means[0] - cameras.positions[0, 0], dim=-1)
    torch.testing.assert_close(sh_to_rgb(scaffold.sh[0], directions), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(9, 11), (12, 7)])
@pytest.mark.parametrize("factor", [2, 4])
def test_any_image_size_and_every_factor_that_was_trained(size: tuple[int, int], factor: int) -> None:
    coarse, images, cameras = sloped_scene(1, 2)
    w, h = size
    small, cropped = cameras.cropped(0, 0, w, h), images[:, :, :h, :w]
    network = perturbed("full")
    with torch.no_grad():
        found = network.predict(coarse, cropped, small, factor=factor)
    assert found.images.shape == (1, 2, h * factor, w * factor, 3)
    assert found.depths.shape == (1, 2, h * factor, w * factor)
    assert all(torch.isfinite(getattr(found.gaussians, f)).all() for f in FIELDS)
    with pytest.raises(Sr3dError, match="factor"):
        network.predict(coarse, cropped, small, factor=8)


def test_prediction_says_what_was_added_to_which_parent() -> None:
    coarse, images, cameras = sloped_scene(1, 2)
    with torch.no_grad():
        found = perturbed("full").predict(coarse, images, cameras)
    assert set(found.residuals) == {"position", "slide", "log_scale", "angle", "logit_opacity", "color"}
    fine, before = found.gaussians, found.scaffold
    torch.testing.assert_close(torch.log(fine.scales / before.scales), found.residuals["log_scale"], atol=1e-5, rtol=0)
    parents = found.parents[0]
    assert (parents >= 0).all()
    footprint = coarse.lod.native[0, parents]
    assert torch.equal(fine.lod.coarser[0], footprint)
    distance = (before.means[0] - coarse.means[0, parents]).norm(dim=-1)
    assert (distance < 2 * footprint).all()
    assert fine.features.abs().max() > 0 and fine.features.shape[-1] == 6


@pytest.mark.parametrize("bound", [0.5, 0.05])
def test_gaussians_follow_the_predicted_depth_within_a_bound(bound: float) -> None:
    coarse, images, cameras = sloped_scene(1, 2)
    network = perturbed("inplane")
    views = network._prepare(coarse, images, cameras, 2, None)
    with torch.no_grad():
        _, sight = network._scaffold(coarse, views)
    at_home = (sight.home * sight.visible).sum(dim=1) > 0
    snap = to_surface(1.2 * views.surface, sight, bound)[at_home]
    assert len(snap) > SIZE**2 and (snap - min(0.2, bound)).abs().max() < 0.03


def test_parts_that_do_not_fit_together_are_named() -> None:
    for part in ("geometry", "points", "semantics"):
        with pytest.raises(Sr3dError, match=part):
            replace(
                tiny_config("full"), head=None, **{k: None for k in ("geometry", "points", "semantics") if k != part}
            )
    with pytest.raises(Sr3dError, match="factor"):
        replace(tiny_config(), factor=3)
