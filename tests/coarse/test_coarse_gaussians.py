from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sr3d import Scene, Sr3dError, render
from sr3d.coarse import CoarseConfig, coarse_gaussians, estimate_depth, upsampled_gaussians
from sr3d.gaussians import quat_to_matrix

GIVEN = CoarseConfig(source="depth")


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean()))


def first_half(scene: Scene) -> Scene:
    """Without the depth of the upper half of every view."""
    depths = scene.depths.clone()
    depths[:, : depths.shape[1] // 2] = 0
    return replace(scene, depths=depths)


def test_every_gaussian_lies_on_the_centre_of_its_pixel_at_the_given_depth(stereo: Scene) -> None:
    gaussians = coarse_gaussians(stereo, GIVEN)
    v, h, w = stereo.depths.shape
    assert len(gaussians) == v * h * w
    pixels, depth = stereo.cameras.project(gaussians.means)
    rows, columns = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    expected = torch.stack([columns, rows], dim=-1)
    for i in range(v):
        own = pixels[i].reshape(v, h, w, 2)[i]
        torch.testing.assert_close(own, expected, atol=2e-3, rtol=0)
        torch.testing.assert_close(depth[i].reshape(v, h, w)[i], stereo.depths[i], rtol=1e-5, atol=1e-5)


def test_footprint_is_native_and_colour_is_the_pixel(stereo: Scene) -> None:
    gaussians = coarse_gaussians(stereo, GIVEN)
    footprint = stereo.depths / stereo.cameras.focal[:, None, None]
    torch.testing.assert_close(gaussians.lod.native, footprint.flatten())
    assert bool((gaussians.lod.level == 0).all()) and bool(torch.isinf(gaussians.lod.coarser).all())
    torch.testing.assert_close(gaussians.sh[:, 0] * 0.28209479 + 0.5, stereo.images.reshape(-1, 3))
    torch.testing.assert_close(gaussians.scales[:, 1], GIVEN.sigma * footprint.flatten())


def test_third_axis_is_the_surface_normal(stereo: Scene) -> None:
    from sr3d.datasets import World

    truth = World.generate(3).normals(stereo.cameras).reshape(-1, 3).float()
    axes = quat_to_matrix(coarse_gaussians(stereo, GIVEN).quats)[..., 2]
    angle = torch.rad2deg(torch.acos((axes * truth).sum(-1).clamp(-1, 1)))
    # Flat and curved surfaces to a degree; the rest are pixels on edges.
    assert float(angle.median()) < 1.0
    assert float((angle < 15).float().mean()) > 0.85


def test_stretch_keeps_the_disc_round_in_its_own_view(stereo: Scene) -> None:
    from sr3d.rendering.reference import covariances, project

    config = replace(GIVEN, thickness=1e-3, max_stretch=10.0)
    gaussians = coarse_gaussians(stereo, config).split([4096, 4096])[0]
    cameras = stereo.cameras
    _, covariance, _ = project(
        gaussians.means,
        covariances(gaussians.quats, gaussians.scales),
        cameras.world_to_cam[0],
        cameras.K[0],
        cameras.width,
        cameras.height,
    )
    # Off the optical axis a disc of the same world size looks up to 1/cos³ larger.
    middle = covariance.reshape(64, 64, 2, 2)[24:40, 24:40].reshape(-1, 2, 2)
    sigma = torch.linalg.eigvalsh(middle).clamp_min(0).sqrt()
    assert float((sigma[:, 0] - config.sigma).abs().median()) < 0.03
    assert float((sigma[:, 1] - config.sigma).abs().median()) < 0.03


@pytest.mark.parametrize("source", ["depth", "sweep"])
def test_the_coarse_scene_shows_its_own_input_views(stereo: Scene, source: str) -> None:
    gaussians = coarse_gaussians(stereo, CoarseConfig(source=source))
    rendering = render(gaussians, stereo.cameras)
    assert float((rendering.alpha > 0.8).float().mean()) > 0.99
    # The rasteriser's low-pass and the other view's Gaussians blur: 22.9 dB with true depth.
    assert psnr(rendering.rgb, stereo.images) > 21.5


def test_pixels_of_unknown_depth_are_filled_and_trusted_less(stereo: Scene) -> None:
    holes = first_half(stereo)
    depth, confidence = estimate_depth(holes, GIVEN)
    assert bool((depth > 0).all())
    assert torch.equal(depth[:, 32:], stereo.depths[:, 32:])
    assert bool((confidence[:, 32:] == 1).all()) and bool((confidence[:, :32] == 0.25).all())
    low, high = stereo.depths[:, 32:].amin(), stereo.depths[:, 32:].amax()
    assert float(depth.min()) >= float(low) * 0.999 and float(depth.max()) <= float(high) * 1.001


def test_a_view_without_any_depth_is_invisible(stereo: Scene) -> None:
    depths = stereo.depths.clone()
    depths[1] = 0
    blind = replace(stereo, depths=depths)
    gaussians = coarse_gaussians(blind, GIVEN)
    assert len(gaussians) == 2 * 64 * 64
    seen = gaussians.opacities.reshape(2, -1)
    assert bool((seen[0] == GIVEN.opacity).all()) and bool((seen[1] == 0).all())
    assert bool(torch.isfinite(gaussians.means).all()) and bool((gaussians.lod.native > 0).all())
    nothing = replace(stereo, depths=torch.full_like(depths, float("nan")))
    assert float(coarse_gaussians(nothing, GIVEN).opacities.max()) == 0


def test_a_batch_equals_its_scenes(stereo: Scene) -> None:
    other = replace(stereo.views([1, 0]), depths=first_half(stereo).depths)
    batch = coarse_gaussians(Scene.stack([stereo, other]), GIVEN)
    assert batch.means.shape == (2, 8192, 3)
    for i, scene in enumerate([stereo, other]):
        single = coarse_gaussians(scene, GIVEN)
        for name in ("means", "quats", "scales", "opacities", "sh"):
            assert torch.equal(getattr(batch, name)[i], getattr(single, name)), name
        assert torch.equal(batch.lod.native[i], single.lod.native)


def test_upsampled_has_one_gaussian_per_large_pixel(stereo: Scene) -> None:
    gaussians = upsampled_gaussians(stereo, 2, GIVEN)
    assert len(gaussians) == 2 * 128 * 128
    large = stereo.cameras.resized(128, 128)
    pixels, _ = large.project(gaussians.means)
    own = pixels[1].reshape(2, 128, 128, 2)[1]
    torch.testing.assert_close(own[5, 100], torch.tensor([100.5, 5.5]), atol=2e-3, rtol=0)
    batch = upsampled_gaussians(Scene.stack([stereo]), 2, GIVEN)
    assert torch.equal(batch.means[0], gaussians.means)


def test_upsampled_beats_coarse_between_the_inputs() -> None:
    from sr3d.datasets import World

    world = World.generate(4)
    cameras = world.sample_cameras(3, 48, 48, seed=0)
    inputs = world.render(cameras.index([0, 2]))
    target = world.render(cameras.index([1]).resized(192, 192))
    coarse = render(coarse_gaussians(inputs, GIVEN), target.cameras)
    upsampled = render(upsampled_gaussians(inputs, 4, GIVEN), target.cameras)
    seen = coarse.alpha > 0.8
    gain = psnr(upsampled.rgb[seen], target.images[seen]) - psnr(coarse.rgb[seen], target.images[seen])
    assert gain > 0.5


def test_errors_name_what_is_missing(stereo: Scene) -> None:
    with pytest.raises(Sr3dError, match=r"depths: found none; expected .*sweep"):
        coarse_gaussians(replace(stereo, depths=None), GIVEN)
    with pytest.raises(Sr3dError, match="poses"):
        coarse_gaussians(replace(stereo, cameras=None), GIVEN)
    with pytest.raises(Sr3dError, match="factor"):
        upsampled_gaussians(stereo, 0, GIVEN)
