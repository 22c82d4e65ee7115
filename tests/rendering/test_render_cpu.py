"""The Numba backend against the reference: image and every gradient, in random scenes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch

from sr3d.lod import Lod
from sr3d.rendering import cpu, reference, render
from sr3d.rendering.job import Raster, Splats, Views

NAMES = ["means", "quats", "scales", "opacities", "sh", "features", "world_to_cam"]


@dataclass
class Case:
    """Leaves of the gradient, float64, and what else a backend is given."""

    leaves: list[torch.Tensor | None]
    K: torch.Tensor
    size: tuple[int, int]
    antialias: bool = False
    fade: str | None = None
    lod: Lod | None = None

    def call(self, backend: ModuleType, leaves: list[torch.Tensor | None]) -> Raster:
        *fields, poses = leaves
        splats = Splats(**dict(zip(NAMES, fields)), lod=self.lod, offsets=[0, len(fields[0])])
        views = Views(
            world_to_cam=poses[None],
            K=self.K[None].to(poses.dtype),
            width=self.size[0],
            height=self.size[1],
            antialias=self.antialias,
            near=0.01,
            fade=self.fade,
            inspect=False,
        )
        return backend.rasterize(splats, views)


def case(
    make: Callable,
    n: int,
    size: tuple[int, int],
    views: int = 1,
    features: int = 0,
    degree: int = 0,
    antialias: bool = False,
    fade: str | None = None,
) -> Case:
    g, cameras = make(n, size=size, views=views, features=features, degree=degree, seed=n)
    native = g.means[:, 2] / size[0]
    spread = torch.linspace(0.6, 1.6, n, dtype=torch.float64)  # faded on both sides, and some not at all
    lod = Lod(native=native * spread, coarser=native * 2, finer=native * 0.4, level=torch.ones(n, dtype=torch.int32))
    lod.coarser[::5], lod.finer[::7] = torch.inf, 0
    leaves = [g.means, g.quats, g.scales, g.opacities, g.sh, g.features, cameras.world_to_cam]
    return Case(leaves, cameras.K, size, antialias, fade, lod if fade else None)


def image_and_gradients(
    backend: ModuleType, given: Case, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    leaves = [None if t is None else t.to(dtype).clone().requires_grad_() for t in given.leaves]
    out = given.call(backend, leaves)
    g = torch.Generator().manual_seed(0)
    images = [out.image, out.alpha]
    cotangents = [torch.randn(t.shape, generator=g, dtype=torch.float64).to(dtype) for t in images]
    present = [(name, t) for name, t in zip(NAMES, leaves) if t is not None]
    grads = torch.autograd.grad(images, [t for _, t in present], cotangents)
    return out.image.detach(), out.alpha.detach(), {name: g for (name, _), g in zip(present, grads)}


@pytest.mark.parametrize(
    ("n", "size", "views", "features", "degree", "antialias", "fade"),
    [
        (150, (32, 24), 2, 0, 0, False, None),
        (150, (32, 24), 2, 3, 3, False, None),
        (100, (17, 31), 1, 35, 1, True, None),
        (100, (32, 32), 1, 0, 2, True, None),
        (60, (20, 20), 2, 70, 0, False, None),  # more channels than one pass takes
        (150, (32, 24), 2, 3, 1, False, "minimax"),
        (150, (32, 24), 1, 0, 0, True, "linear"),
    ],
)
def test_image_and_gradients_are_the_references(
    make: Callable,
    n: int,
    size: tuple[int, int],
    views: int,
    features: int,
    degree: int,
    antialias: bool,
    fade: str | None,
) -> None:
    given = case(make, n, size, views, features, degree, antialias, fade)
    image, alpha, grads = image_and_gradients(reference, given, torch.float64)
    image32, alpha32, grads32 = image_and_gradients(cpu, given, torch.float32)
    torch.testing.assert_close(image32.double(), image, atol=1e-4, rtol=0)
    torch.testing.assert_close(alpha32.double(), alpha, atol=1e-5, rtol=0)
    assert len(grads) == (7 if features else 6)
    for name, expected in grads.items():
        assert expected.abs().max() > 0.1, name
        error = (grads32[name].double() - expected).abs().max() / expected.abs().max()
        assert error < 1e-4, (name, error)


def test_two_thousand_gaussians(make: Callable) -> None:
    gaussians, cameras = make(2000, size=(61, 45))
    gaussians.scales[:20] *= 8
    found, expected = (render(gaussians, cameras, backend=b) for b in ("cpu", "reference"))
    assert found.rgb.dtype == torch.float64 and expected.alpha.mean() > 0.5
    # A contribution just at 1/255 may be drawn by one and skipped by the other.
    close = ((found.rgb - expected.rgb).abs().amax(dim=-1) < 1e-4) & ((found.alpha - expected.alpha).abs() < 1e-4)
    assert close.double().mean() > 0.999
    assert (found.rgb - expected.rgb).abs().max() < 1 / 255


def test_gradient_of_a_clamped_opacity_is_zero(make: Callable) -> None:
    given = case(make, 1, (16, 16))
    given.K = torch.tensor([[[16.0, 0, 8.5], [0, 16, 8.5], [0, 0, 1]]]).double()
    given.leaves[0][...], given.leaves[3][...] = torch.tensor([0.0, 0, 2]), 1.0
    given.leaves[6][...] = torch.eye(4)
    given.leaves[2][...] = 1e-4  # alpha is 1 in the pixel under the mean, and small elsewhere
    grads = [image_and_gradients(backend, given, torch.float64)[2] for backend in (cpu, reference)]
    torch.testing.assert_close(grads[0]["opacities"], grads[1]["opacities"], atol=1e-4, rtol=1e-4)


def test_only_the_asked_gradients(make: Callable) -> None:
    given = case(make, 50, (16, 16), features=4)
    _, _, every = image_and_gradients(cpu, given, torch.float32)
    leaves = [t.float() for t in given.leaves]
    leaves[0].requires_grad_()
    out = given.call(cpu, leaves)
    g = torch.Generator().manual_seed(0)
    images = [out.image, out.alpha]
    cotangents = [torch.randn(t.shape, generator=g, dtype=torch.float64).float() for t in images]
    (means,) = torch.autograd.grad(images, [leaves[0]], cotangents)
    assert torch.equal(means, every["means"])


def test_two_runs_with_any_number_of_threads_are_equal_bit_for_bit(make: Callable) -> None:
    # Enough Gaussians to be shared between threads.
    given = case(make, 10_000, (128, 128), 2, 5, 2, antialias=True, fade="minimax")
    first = image_and_gradients(cpu, given, torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        second = image_and_gradients(cpu, given, torch.float32)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    for name, grad in first[2].items():
        assert torch.equal(grad, second[2][name]), name


def test_nan_gaussians_are_not_drawn(make: Callable) -> None:
    gaussians, cameras = make(100)
    clean = render(gaussians.index(slice(5, None)), cameras, backend="cpu")
    gaussians.means[0] = torch.nan
    gaussians.scales[1] = torch.nan
    gaussians.opacities[2] = torch.nan
    gaussians.quats[4] = torch.nan
    gaussians.means[3, 0] = torch.inf
    leaves = [gaussians.means.requires_grad_(), gaussians.scales.requires_grad_()]
    out = render(gaussians, cameras, backend="cpu")
    assert torch.equal(out.rgb, clean.rgb)
    for grad in torch.autograd.grad(out.rgb.sum(), leaves):
        assert torch.isfinite(grad).all() and grad[:5].abs().max() == 0


def test_changing_an_input_before_backward_is_noticed(make: Callable) -> None:
    given = case(make, 20, (16, 16), features=2)
    leaves = [t.float() for t in given.leaves]
    leaf = leaves[0].clone().requires_grad_()
    leaves[0] = leaf * 1
    out = given.call(cpu, leaves)
    leaves[2].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.image.sum().backward()


def _render_in_fork(queue: multiprocessing.Queue, given: Case) -> None:
    queue.put(given.call(cpu, given.leaves).image.numpy())


def test_forked_process_draws_too(make: Callable) -> None:
    given = case(make, 5000, (128, 64), features=2)
    given.leaves = [t.float() for t in given.leaves]
    expected = given.call(cpu, given.leaves).image
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_render_in_fork, args=(queue, given))
    process.start()
    found = torch.from_numpy(queue.get(timeout=60))
    process.join()
    assert torch.equal(found, expected)
