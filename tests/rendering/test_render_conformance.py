"""What every backend must draw: closed forms and invariances."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from gsplat.cuda._torch_impl import _spherical_harmonics

from sr3d.cameras import Cameras
from sr3d.gaussians import Gaussians
from sr3d.lod import Lod, fade, visibility
from sr3d.rendering import Rendering, render, rgb_to_sh

SIZE = 17  # one full tile and one of a single row and column
CENTER = 8.5


@pytest.fixture(params=["reference", "cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def draw(request: pytest.FixtureRequest) -> Callable[..., Rendering]:
    """`render` with one backend, float32, results in CPU memory."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = "cuda" if request.param == "cuda" else "cpu"

    def call(gaussians: Gaussians, cameras: Cameras, **options: object) -> Rendering:
        gaussians, cameras = gaussians.to(torch.float32).to(device), cameras.to(torch.float32).to(device)
        if isinstance(options.get("background"), torch.Tensor):
            options["background"] = options["background"].to(device)
        out = render(gaussians, cameras, backend=request.param, **options)
        return Rendering(**{name: None if image is None else image.cpu() for name, image in vars(out).items()})

    return call


def camera(fx: float = 20, fy: float = 20, cx: float = CENTER, cy: float = CENTER) -> Cameras:
    K = torch.tensor([[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]])
    return Cameras(world_to_cam=torch.eye(4)[None], K=K, width=SIZE, height=SIZE)


def on_axis(depths: list[float], opacities: list[float], colors: list[list[float]], scale: float = 0.1) -> Gaussians:
    """Round Gaussians on the optical axis of `camera`, where EWA splatting is exact."""
    n = len(depths)
    z = torch.tensor(depths)
    return Gaussians(
        means=torch.stack([torch.zeros(n), torch.zeros(n), z], dim=-1),
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1),
        scales=torch.full((n, 3), scale),
        opacities=torch.tensor(opacities),
        sh=rgb_to_sh(torch.tensor(colors, dtype=torch.float32)),
    )


def density(var_x: float, var_y: float, u: float = CENTER, v: float = CENTER) -> torch.Tensor:
    """exp(-½ d²) of an axis-aligned Gaussian at every pixel centre."""
    pixels = torch.arange(SIZE) + 0.5
    return torch.exp(-0.5 * ((pixels[None] - u) ** 2 / var_x + (pixels[:, None] - v) ** 2 / var_y))


def test_one_opaque_gaussian(draw: Callable[..., Rendering]) -> None:
    out = draw(on_axis([2.0], [1.0], [[0.2, 0.5, 0.9]]), camera())
    alpha = density(1.3, 1.3).clamp(max=0.999)
    alpha[alpha < 1 / 255] = 0
    torch.testing.assert_close(out.alpha[0], alpha, atol=1e-4, rtol=0)
    torch.testing.assert_close(out.rgb[0], alpha[..., None] * torch.tensor([0.2, 0.5, 0.9]), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.depth[0], torch.where(alpha > 0, 2.0, 0.0), atol=1e-4, rtol=0)
    assert out.alpha[0, 8, 8].item() == pytest.approx(0.999, abs=1e-6)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_two_overlapping_gaussians(draw: Callable[..., Rendering], order: list[int]) -> None:
    gaussians = on_axis([2.0, 4.0], [0.6, 0.8], [[1, 0, 0], [0, 1, 0]])
    out = draw(gaussians.index(torch.tensor(order)), camera())
    near, far = 0.6 * density(1.3, 1.3), 0.8 * density(0.55, 0.55)
    near[near < 1 / 255], far[far < 1 / 255] = 0, 0
    far = (1 - near) * far
    torch.testing.assert_close(out.rgb[0, ..., 0], near, atol=1e-4, rtol=0)
    torch.testing.assert_close(out.rgb[0, ..., 1], far, atol=1e-4, rtol=0)
    torch.testing.assert_close(out.alpha[0], near + far, atol=1e-4, rtol=0)
    expected = (2 * near + 4 * far) / (near + far).clamp_min(1e-10)
    torch.testing.assert_close(out.depth[0], expected, atol=1e-3, rtol=0)


def test_equal_depths_keep_their_order(draw: Callable[..., Rendering]) -> None:
    out = draw(on_axis([3.0] * 3, [0.5] * 3, [[1, 0, 0], [0, 1, 0], [0, 0, 1]]), camera())
    torch.testing.assert_close(out.rgb[0, 8, 8], torch.tensor([0.5, 0.25, 0.125]), atol=1e-4, rtol=0)


def test_alpha_threshold(draw: Callable[..., Rendering]) -> None:
    over = draw(on_axis([2.0], [1.01 / 255], [[1, 1, 1]]), camera()).alpha
    under = draw(on_axis([2.0], [0.99 / 255], [[1, 1, 1]]), camera()).alpha
    assert over[0, 8, 8].item() == pytest.approx(1.01 / 255, rel=1e-3)
    assert (over > 0).sum() == 1 and (under > 0).sum() == 0


def test_subpixel_gaussian_is_widened_by_the_low_pass(draw: Callable[..., Rendering]) -> None:
    out = draw(on_axis([2.0], [0.9], [[1, 1, 1]], scale=1e-6), camera())
    expected = [0.9, 0.9 * math.exp(-0.5 / 0.3), 0.9 * math.exp(-1 / 0.3)]
    found = out.alpha[0, [8, 8, 9], [8, 9, 9]].tolist()
    assert found == pytest.approx(expected, abs=1e-4)


def test_antialias_scales_opacity_by_the_added_area(draw: Callable[..., Rendering]) -> None:
    gaussians = on_axis([2.0], [0.8], [[1, 1, 1]], scale=0.02)  # 0.2 pixels
    out = draw(gaussians, camera(fy=30), antialias=True)
    var_x, var_y = 0.2**2, 0.3**2
    peak = 0.8 * math.sqrt(var_x * var_y / ((var_x + 0.3) * (var_y + 0.3)))
    expected = peak * density(var_x + 0.3, var_y + 0.3)
    expected[expected < 1 / 255] = 0
    torch.testing.assert_close(out.alpha[0], expected, atol=1e-4, rtol=0)


def test_off_centre_principal_point_and_two_focal_lengths(draw: Callable[..., Rendering]) -> None:
    out = draw(on_axis([2.0], [0.7], [[1, 1, 1]]), camera(fx=16, fy=32, cx=4.5, cy=11.0))
    expected = 0.7 * density(0.8**2 + 0.3, 1.6**2 + 0.3, 4.5, 11.0)
    expected[expected < 1 / 255] = 0
    torch.testing.assert_close(out.alpha[0], expected, atol=1e-4, rtol=0)


def test_off_axis_gaussian_follows_the_jacobian(draw: Callable[..., Rendering]) -> None:
    gaussians = on_axis([2.0], [0.7], [[1, 1, 1]])
    gaussians.means[0, 0] = 0.4  # x/z = 0.2: 4 pixels to the right
    out = draw(gaussians, camera())
    expected = 0.7 * density(1 + 0.2**2 + 0.3, 1.3, CENTER + 4)
    expected[expected < 1 / 255] = 0
    torch.testing.assert_close(out.alpha[0], expected, atol=1e-4, rtol=0)


def test_transmittance_stop(draw: Callable[..., Rendering]) -> None:
    # T: 0.05, 0.0025, 1.25e-4; the fourth would leave 6e-6 and is dropped, and so is the faint fifth behind it.
    colors = [[1.0, 0, 0]] * 3 + [[0, 1.0, 0], [0, 0, 1.0]]
    out = draw(on_axis([2.0, 2.1, 2.2, 2.3, 2.4], [0.95, 0.95, 0.95, 0.95, 0.1], colors), camera())
    assert out.alpha[0, 8, 8].item() == pytest.approx(1 - 0.05**3, abs=1e-6)
    assert out.rgb[0, 8, 8, 1:].tolist() == [0, 0]


def test_everything_behind_the_camera(draw: Callable[..., Rendering]) -> None:
    gaussians = on_axis([-2.0, 0.005, -1.0], [0.9] * 3, [[1, 1, 1]] * 3)
    leaves = [t.requires_grad_() for t in (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities)]
    out = draw(gaussians, camera())
    assert out.rgb.abs().max() == 0 and out.alpha.abs().max() == 0 and out.depth.abs().max() == 0
    for gradient in torch.autograd.grad(out.rgb.sum() + out.depth.sum(), leaves, allow_unused=True):
        assert gradient is None or gradient.abs().max() == 0


def test_no_gaussians(draw: Callable[..., Rendering], make: Callable) -> None:
    gaussians, cameras = make(5, views=2, features=3)
    out = draw(gaussians.index(slice(0, 0)), cameras, features=True)
    assert out.rgb.shape == (2, 24, 32, 3) and out.rgb.abs().max() == 0
    assert out.features is not None and out.features.shape == (2, 24, 32, 3)


def test_permutation(draw: Callable[..., Rendering], make: Callable) -> None:
    gaussians, cameras = make(200)
    shuffled = gaussians.index(torch.randperm(200, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(draw(gaussians, cameras).rgb, draw(shuffled, cameras).rgb, atol=1e-5, rtol=0)


def test_batch_of_two_is_two_batches_of_one(draw: Callable[..., Rendering], make: Callable) -> None:
    parts = [make(100, views=2, features=2, seed=s) for s in (0, 1)]
    batch = Gaussians(
        **{
            k: torch.stack([getattr(g, k) for g, _ in parts])
            for k in ("means", "quats", "scales", "opacities", "sh", "features")
        }
    )
    cameras = replace(
        parts[0][1],
        world_to_cam=torch.stack([c.world_to_cam for _, c in parts]),
        K=torch.stack([c.K for _, c in parts]),
    )
    out = draw(batch, cameras, features=True)
    for i, (gaussians, views) in enumerate(parts):
        single = draw(gaussians, views, features=True)
        torch.testing.assert_close(out.rgb[i], single.rgb, atol=1e-6, rtol=0)
        torch.testing.assert_close(out.features[i], single.features, atol=1e-6, rtol=0)


def test_many_views_are_many_single_renders(draw: Callable[..., Rendering], make: Callable) -> None:
    gaussians, cameras = make(100, views=3)
    out = draw(gaussians, cameras)
    assert (out.rgb[0] - out.rgb[1]).abs().max() > 0.05
    for c in range(3):
        single = draw(gaussians, cameras[c])
        torch.testing.assert_close(out.rgb[c], single.rgb[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(out.depth[c], single.depth[0], atol=1e-5, rtol=0)


def test_zoom_is_the_middle_of_a_larger_image(draw: Callable[..., Rendering], make: Callable) -> None:
    gaussians, cameras = make(150)
    # Further out, the linearisation is clamped to the frame, which differs between the two.
    middle = (gaussians.means[:, :2].abs() < gaussians.means[:, 2:] * torch.tensor([0.26, 0.18])).all(dim=-1)
    gaussians = gaussians.index(middle)
    large = draw(gaussians, cameras.resized(64, 48))
    zoomed = draw(gaussians, cameras.zoomed(2.0))
    torch.testing.assert_close(zoomed.rgb[0], large.rgb[0, 12:36, 16:48], atol=1e-4, rtol=0)


def test_expected_depth(draw: Callable[..., Rendering], make: Callable) -> None:
    gaussians, cameras = make(60)
    depth = gaussians.means @ cameras.world_to_cam[0, 2, :3] + cameras.world_to_cam[0, 2, 3]
    out = draw(replace(gaussians, sh=rgb_to_sh(depth[:, None].repeat(1, 3))), cameras)
    empty = out.alpha == 0
    assert empty.any() and (out.depth[empty] == 0).all()
    torch.testing.assert_close(out.depth * out.alpha, out.rgb[..., 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 35])
def test_features_are_composited_like_colour(draw: Callable[..., Rendering], make: Callable, channels: int) -> None:
    gaussians, cameras = make(150, features=channels)
    out = draw(gaussians, cameras, features=True)
    assert out.features is not None and out.features.shape[-1] == channels
    torch.testing.assert_close(out.rgb, draw(gaussians, cameras).rgb, atol=1e-6, rtol=0)
    for c in range(channels):
        as_color = rgb_to_sh(gaussians.features[:, c : c + 1].repeat(1, 3))
        expected = draw(replace(gaussians, sh=as_color, features=None), cameras).rgb[..., 0]
        torch.testing.assert_close(out.features[..., c], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_spherical_harmonics(draw: Callable[..., Rendering], degree: int) -> None:
    sh = torch.randn(1, (degree + 1) ** 2, 3, generator=torch.Generator().manual_seed(degree)) * 0.3
    gaussians = replace(on_axis([2.0], [0.9], [[0, 0, 0]]), sh=sh, means=torch.tensor([[0.3, -0.2, 2.0]]))
    cameras = camera()
    cameras.world_to_cam[0, :3, 3] = torch.tensor([-0.2, 0.1, 0.3])
    out = draw(gaussians, cameras)
    direction = torch.nn.functional.normalize(gaussians.means + cameras.world_to_cam[0, :3, 3], dim=-1)
    expected = (0.5 + _spherical_harmonics(degree, direction, sh)[0]).clamp_min(0)
    inside = out.alpha > 0.1
    colors = out.rgb[inside] / out.alpha[inside][:, None]
    torch.testing.assert_close(colors, expected.expand_as(colors), atol=1e-4, rtol=0)


def test_background(draw: Callable[..., Rendering], make: Callable) -> None:
    gaussians, cameras = make(60)
    background = torch.tensor([0.2, 0.4, 0.8])
    black, out = draw(gaussians, cameras), draw(gaussians, cameras, background=background)
    torch.testing.assert_close(out.rgb, black.rgb + (1 - black.alpha[..., None]) * background, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", ["minimax", "linear"])
def test_level_of_detail_fades_opacity_per_view(draw: Callable[..., Rendering], make: Callable, mode: str) -> None:
    gaussians, cameras = make(100, views=2)
    cameras = replace(cameras, K=cameras.K * torch.tensor([[[1.0], [1.0], [1.0]], [[1.6], [1.6], [1.0]]]))
    native = gaussians.means[:, 2] / 32
    lod = Lod(native=native * 0.8, coarser=native * 1.5, finer=native * 0.4, level=torch.ones(100, dtype=torch.int32))
    out = draw(replace(gaussians, lod=lod), cameras, lod=True if mode == "minimax" else mode)
    plain = draw(gaussians, cameras)
    torch.testing.assert_close(draw(replace(gaussians, lod=lod), cameras, lod=False).rgb, plain.rgb, atol=0, rtol=0)
    for c in range(2):
        pose = cameras.world_to_cam[c]
        footprint = (gaussians.means @ pose[2, :3] + pose[2, 3]) / cameras.focal[c]
        faded = replace(gaussians, opacities=fade(gaussians.opacities, visibility(lod, footprint), mode))
        torch.testing.assert_close(out.rgb[c], draw(faded, cameras[c]).rgb[0], atol=1e-4, rtol=0)
        assert (out.rgb[c] - plain.rgb[c]).abs().max() > 0.05


def test_median_depth_and_the_strongest(draw: Callable[..., Rendering]) -> None:
    # Weights on the axis: 0.3, 0.7·0.6 = 0.42, 0.28·0.9; transmittance 0.7, 0.28.
    gaussians = on_axis([2.0, 3.0, 4.0], [0.3, 0.6, 0.9], [[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    out = draw(gaussians.index(torch.tensor([2, 0, 1])), camera(), median_depth=True, ids=True)
    assert out.ids[0, 8, 8].item() == 2 and out.median_depth[0, 8, 8].item() == pytest.approx(3.0)
    faint = draw(on_axis([2.0, 3.0], [0.2, 0.2], [[1, 0, 0], [0, 1, 0]]), camera(), median_depth=True, ids=True)
    assert faint.median_depth.abs().max() == 0 and faint.ids[0, 8, 8].item() == 0
    assert (faint.ids[faint.alpha == 0] == -1).all() and (faint.alpha == 0).any()
    assert draw(gaussians, camera()).median_depth is None and draw(gaussians, camera()).ids is None


def test_median_depth_and_ids_in_a_crowd(draw: Callable[..., Rendering], make: Callable) -> None:
    gaussians, cameras = make(300, views=2)
    out = draw(gaussians, cameras, median_depth=True, ids=True)
    expected = render(gaussians, cameras, median_depth=True, ids=True, backend="reference")
    assert (out.ids == expected.ids).double().mean() > 0.99 and len(out.ids.unique()) > 50
    close = (out.median_depth - expected.median_depth).abs() < 1e-4
    assert close.double().mean() > 0.99
    assert ((out.median_depth > 0) == (out.alpha >= 0.5)).double().mean() > 0.99


def test_scenes_of_different_sizes_in_one_call(draw: Callable[..., Rendering], make: Callable) -> None:
    parts = [make(n, views=2, features=2, seed=n) for n in (70, 0, 130)]
    for gaussians, _ in parts:
        native = gaussians.means[:, 2] / 32
        gaussians.lod = Lod(
            native=native, coarser=native * 1.5, finer=native * 0.5, level=torch.ones(len(native), dtype=torch.int32)
        )
    cameras = replace(
        parts[0][1],
        world_to_cam=torch.stack([c.world_to_cam for _, c in parts]),
        K=torch.stack([c.K * torch.tensor([[1.2], [1.2], [1.0]]) for _, c in parts]),
    )
    packed = Gaussians.cat([g for g, _ in parts])
    out = draw(packed, cameras, features=True, ids=True, offsets=[0, 70, 70, 200])
    assert out.rgb.shape == (3, 2, 24, 32, 3)
    for i, (gaussians, _) in enumerate(parts):
        single = draw(gaussians, cameras[i], features=True, ids=True)
        for name in ("rgb", "alpha", "depth", "features"):
            torch.testing.assert_close(getattr(out, name)[i], getattr(single, name), atol=1e-6, rtol=0)
        assert torch.equal(out.ids[i], single.ids)
    assert out.alpha[0].max() > 0.5 and out.alpha[1].max() == 0 and out.alpha[2].max() > 0.5


@pytest.mark.parametrize("channels", [65, 512])
def test_wide_features_are_many_narrow_ones(draw: Callable[..., Rendering], make: Callable, channels: int) -> None:
    gaussians, cameras = make(80, features=channels)
    out = draw(gaussians, cameras, features=True)
    for start in range(0, channels, 17):
        part = replace(gaussians, features=gaussians.features[:, start : start + 17])
        narrow = draw(part, cameras, features=True)
        torch.testing.assert_close(out.features[..., start : start + 17], narrow.features, atol=1e-6, rtol=0)
        torch.testing.assert_close(out.alpha, narrow.alpha, atol=1e-6, rtol=0)


@pytest.mark.parametrize("antialias", [False, True])
def test_flat_gaussians_also_edge_on(draw: Callable[..., Rendering], antialias: bool) -> None:
    """Surfels: third scale 0; facing the camera, tilted, and exactly edge-on."""
    gaussians = on_axis([2.0, 2.0, 2.0], [0.9] * 3, [[1.0, 0.5, 0.2]] * 3)
    half = math.sqrt(0.5)
    quats = torch.tensor([[1.0, 0, 0, 0], [0.92388, 0, 0.382683, 0], [half, 0, half, 0]])
    means = torch.tensor([[-0.5, -0.5, 2.0], [0.5, -0.5, 2.0], [0.0, 0.4, 2.0]])
    flat = replace(gaussians, quats=quats, means=means, scales=torch.tensor([[0.1, 0.1, 0.0]]).repeat(3, 1))
    flat.means[2, 0] = 0  # its plane holds the camera
    leaves = [t.requires_grad_() for t in (flat.means, flat.quats, flat.scales, flat.opacities)]
    out = draw(flat, camera(), antialias=antialias)
    assert torch.isfinite(out.rgb).all() and out.alpha[0, 3, 3] > 0.5 and out.alpha[0, 3, 13] > 0.3
    edge = out.alpha[0, 10:15].amax()
    # Without compensation the low-pass makes it a line; with it, a sheet without width covers nothing.
    assert edge < 0.02 if antialias else edge > 0.5
    for grad in torch.autograd.grad((out.rgb * torch.rand_like(out.rgb)).sum() + out.depth.sum(), leaves):
        assert torch.isfinite(grad).all()


def test_near_plane(draw: Callable[..., Rendering]) -> None:
    gaussians = on_axis([0.005, 2.0], [0.9, 0.9], [[1, 0, 0], [0, 1, 0]], scale=1e-4)
    default, close = draw(gaussians, camera()), draw(gaussians, camera(), near=1e-4)
    assert default.rgb[0, 8, 8, 0] == 0 and default.rgb[0, 8, 8, 1] > 0.8
    assert close.rgb[0, 8, 8, 0] > 0.8 and close.rgb[0, 8, 8, 1] < 0.2
