"""Drawings as matrices from colours to pixels: the compiled one, and the renderer's, against one-hot features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sr3d import Cameras, Gaussians
from sr3d.rendering import render, rgb_to_sh
from sr3d.rendering.linear import linear_views

Make = Callable[..., tuple[Gaussians, Cameras]]
_NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
ON_GPU = pytest.param("cuda", marks=[pytest.mark.gpu, _NO_GPU])


def reduced(images: Tensor, factor: int) -> Tensor:
    return images.unflatten(2, (-1, factor)).unflatten(1, (-1, factor)).mean(dim=(2, 4))


def matrices(gaussians: Gaussians, views: Cameras, factor: int) -> Tensor:
    """Weights of all Gaussians in all pixels, drawn as features of which each Gaussian has one. [V, h, w, N]"""
    fine = views.resized(views.width * factor, views.height * factor)
    named = replace(gaussians, features=torch.eye(len(gaussians)))
    shown = render(named, fine, features=True, backend="reference").features
    assert shown is not None
    return reduced(shown, factor)


@pytest.mark.parametrize("backend", ["cpu", "reference", ON_GPU])
@pytest.mark.parametrize(("factor", "width", "height"), [(2, 16, 8), (4, 9, 7), (3, 11, 13), (5, 7, 5), (20, 3, 2)])
def test_products_are_those_of_the_matrix(make: Make, factor: int, width: int, height: int, backend: str) -> None:
    gaussians, views = make(60, size=(width, height), views=2)
    made = torch.Generator().manual_seed(1)
    colors = torch.rand(60, 3, generator=made, dtype=torch.float64)
    image = torch.randn(height, width, 3, generator=made, dtype=torch.float64)
    expected = matrices(gaussians, views, factor)
    assert all((matrix > 0).any() and (matrix == 0).any() for matrix in expected)
    if backend == "cuda":
        gaussians, views = gaussians.to(torch.float32).to("cuda"), views.to("cuda")
    colors, image, expected = (t.to(gaussians.means) for t in (colors, image, expected))
    for view, matrix in zip(linear_views(gaussians, views, factor, backend=backend), expected, strict=True):
        torch.testing.assert_close(view.draw(colors), matrix @ colors, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(
            view.collect(image), torch.einsum("hwn,hwc->nc", matrix, image), atol=2e-4, rtol=1e-4
        )


def test_what_is_hidden_has_no_weight(make: Make) -> None:
    # Pixels are finished long before the last of so many opaque Gaussians.
    gaussians, views = make(3000, size=(8, 8), views=2)
    gaussians = replace(gaussians.to(torch.float32), opacities=torch.full((3000,), 0.99))
    colors = torch.rand(3000, 3, generator=torch.Generator().manual_seed(1))
    shown = render(replace(gaussians, sh=rgb_to_sh(colors)), views.resized(32, 32)).rgb
    found = linear_views(gaussians, views, 4)
    torch.testing.assert_close(torch.stack([v.draw(colors) for v in found]), reduced(shown, 4), atol=2e-5, rtol=1e-4)
    weights = found[0].collect(torch.ones(8, 8, 3))
    assert float((weights == 0).double().mean()) > 0.3 and float(weights.sum()) < 3 * 64 + 1e-3


def test_views_of_nothing(make: Make) -> None:
    gaussians, views = make(10, size=(5, 4), views=2)
    image = torch.ones(4, 5, 3, dtype=torch.float64)
    for unseen in (gaussians.index(slice(0, 0)), replace(gaussians, means=-gaussians.means)):
        for view in linear_views(unseen, views, 4):
            assert not view.draw(torch.ones_like(unseen.means)).any()
            assert torch.equal(view.collect(image), torch.zeros_like(unseen.means))
