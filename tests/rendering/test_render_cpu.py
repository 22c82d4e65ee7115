"""The Numba backend against the reference: image and every gradient, in random scenes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable

import pytest
import torch

from sr3d.rendering import cpu, reference, render


def arguments(make: Callable, n: int, size: tuple[int, int], views: int, features: int, degree: int) -> list:
    """Positional arguments of `rasterize` up to the camera poses, float64, then K."""
    gaussians, cameras = make(n, size=size, views=views, features=features, degree=degree, seed=n)
    opacities = gaussians.opacities * torch.linspace(1, 0.8, views, dtype=torch.float64)[:, None]
    tensors = [gaussians.means, gaussians.quats, gaussians.scales, opacities, gaussians.sh, gaussians.features]
    return [None if t is None else t[None] for t in (*tensors, cameras.world_to_cam, cameras.K)]


def image_and_gradients(
    rasterize: Callable, tensors: list, dtype: torch.dtype, size: tuple[int, int], antialias: bool
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    names = ["means", "quats", "scales", "opacities", "sh", "features", "world_to_cam"]
    leaves = [None if t is None else t.to(dtype).clone().requires_grad_() for t in tensors[:7]]
    image, alpha = rasterize(*leaves, tensors[7].to(dtype), *size, antialias)
    g = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(t.shape, generator=g, dtype=torch.float64).to(dtype) for t in (image, alpha)]
    present = [(name, t) for name, t in zip(names, leaves) if t is not None]
    grads = torch.autograd.grad([image, alpha], [t for _, t in present], cotangents)
    return image.detach(), alpha.detach(), {name: g for (name, _), g in zip(present, grads)}


@pytest.mark.parametrize(
    ("n", "size", "views", "features", "degree", "antialias"),
    [
        (150, (32, 24), 2, 0, 0, False),
        (150, (32, 24), 2, 3, 3, False),
        (100, (17, 31), 1, 35, 1, True),
        (100, (32, 32), 1, 0, 2, True),
    ],
)
def test_image_and_gradients_are_the_references(
    make: Callable, n: int, size: tuple[int, int], views: int, features: int, degree: int, antialias: bool
) -> None:
    tensors = arguments(make, n, size, views, features, degree)
    image, alpha, grads = image_and_gradients(reference.rasterize, tensors, torch.float64, size, antialias)
    image32, alpha32, grads32 = image_and_gradients(cpu.rasterize, tensors, torch.float32, size, antialias)
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
    tensors = arguments(make, 1, (16, 16), 1, 0, 0)
    pose, K = torch.eye(4, dtype=torch.float64), torch.tensor([[16.0, 0, 8.5], [0, 16, 8.5], [0, 0, 1]]).double()
    tensors[0][...], tensors[3][...], tensors[6][...], tensors[7][...] = torch.tensor([0.0, 0, 2]), 1.0, pose, K
    tensors[2][...] = 1e-4  # alpha is 1 in the pixel under the mean, and small elsewhere
    grads = [
        image_and_gradients(f, tensors, torch.float64, (16, 16), False)[2] for f in (cpu.rasterize, reference.rasterize)
    ]
    torch.testing.assert_close(grads[0]["opacities"], grads[1]["opacities"], atol=1e-4, rtol=1e-4)


def test_only_the_asked_gradients(make: Callable) -> None:
    tensors = arguments(make, 50, (16, 16), 1, 4, 0)
    _, _, every = image_and_gradients(cpu.rasterize, tensors, torch.float32, (16, 16), False)
    single = [t.float() for t in tensors]
    single[0].requires_grad_()
    image, alpha = cpu.rasterize(*single, 16, 16, False)
    g = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(t.shape, generator=g, dtype=torch.float64).float() for t in (image, alpha)]
    (means,) = torch.autograd.grad([image, alpha], [single[0]], cotangents)
    assert torch.equal(means, every["means"])


def test_two_runs_with_any_number_of_threads_are_equal_bit_for_bit(make: Callable) -> None:
    tensors = arguments(make, 10_000, (128, 128), 2, 5, 2)  # enough to be shared between threads
    first = image_and_gradients(cpu.rasterize, tensors, torch.float32, (128, 128), True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        second = image_and_gradients(cpu.rasterize, tensors, torch.float32, (128, 128), True)
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
    tensors = [t.float() for t in arguments(make, 20, (16, 16), 1, 2, 0)]
    leaf = tensors[0].clone().requires_grad_()
    tensors[0] = leaf * 1
    image, _ = cpu.rasterize(*tensors, 16, 16, False)
    tensors[2].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        image.sum().backward()


def _render_in_fork(queue: multiprocessing.Queue, arguments: list) -> None:
    queue.put(cpu.rasterize(*arguments)[0].numpy())


def test_forked_process_draws_too(make: Callable) -> None:
    tensors = [t.float() for t in arguments(make, 5000, (128, 64), 1, 2, 0)]
    expected = cpu.rasterize(*tensors, 128, 64, False)[0]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_render_in_fork, args=(queue, [*tensors, 128, 64, False]))
    process.start()
    found = torch.from_numpy(queue.get(timeout=60))
    process.join()
    assert torch.equal(found, expected)
