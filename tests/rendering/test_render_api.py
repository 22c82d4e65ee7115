"""Arguments of `render`: backends, and one clear error for each wrong input."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.rendering import choose_backend, render


def test_auto_on_cpu_is_the_numba_backend(make: Callable) -> None:
    gaussians, cameras = make(50)
    assert choose_backend("cpu")[0] == "cpu" and choose_backend("cuda")[0] == "cuda"
    assert torch.equal(render(gaussians, cameras).rgb, render(gaussians, cameras, backend="cpu").rgb)


def test_gradients_reach_every_field_and_the_pose(make: Callable) -> None:
    gaussians, cameras = make(50, features=2, degree=1)
    fields = ["means", "quats", "scales", "opacities", "sh", "features"]
    leaves = [getattr(gaussians, f).requires_grad_() for f in fields] + [cameras.world_to_cam.requires_grad_()]
    out = render(gaussians, cameras, features=True)
    loss = out.rgb.square().sum() + out.depth.sum() + out.features.square().sum()
    for name, grad in zip([*fields, "world_to_cam"], torch.autograd.grad(loss, leaves)):
        assert torch.isfinite(grad).all() and grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("features", lambda g, c: (g, c, {"features": True})),
        ("background", lambda g, c: (g, c, {"background": torch.zeros(3, 1)})),
        ("backend", lambda g, c: (g, c, {"backend": "metal"})),
        ("backend", lambda g, c: (g, c, {"backend": "cuda"})),
        ("sh", lambda g, c: (replace(g, sh=g.sh.expand(-1, 5, -1)), c, {})),
        ("batch axes", lambda g, c: (_batched(g), c, {})),
        ("K", lambda g, c: (g, replace(c, K=c.K + torch.tensor([[0.0, 1, 0], [0, 0, 0], [0, 0, 0]])), {})),
    ],
)
def test_wrong_input(make: Callable, field: str, change: Callable) -> None:
    gaussians, cameras, options = change(*make(5))
    unchecked = inspect.unwrap(render)  # without the annotation checks that tests switch on
    with pytest.raises(Sr3dError) as error:
        unchecked(gaussians, cameras, **options)
    assert error.value.field == field and error.value.source == "sr3d.render"


def _batched(gaussians: Gaussians) -> Gaussians:
    return Gaussians(
        **{k: getattr(gaussians, k)[None] for k in ("means", "quats", "scales", "opacities", "sh")},
    )
