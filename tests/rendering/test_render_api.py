"""Arguments of `render`: backends, and one clear error for each wrong input."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians, Lod
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
        ("K", lambda g, c: (g, replace(c, K=c.K * torch.tensor([[-1.0], [1], [1]])), {})),
        ("K", lambda g, c: (g, replace(c, K=c.K * torch.nan), {})),
        ("near", lambda g, c: (g, c, {"near": 0.0})),
        ("lod", lambda g, c: (g, c, {"lod": "cubic"})),
        ("lod", lambda g, c: (replace(g, lod=Lod.roots(torch.ones(4))), c, {})),
        ("lod.native", lambda g, c: (replace(g, lod=Lod.roots(torch.full((5,), torch.nan))), c, {})),
        ("lod.native", lambda g, c: (replace(g, lod=Lod.roots(-torch.ones(5))), c, {})),
        ("features", lambda g, c: (_with_features(g, torch.ones(4, 2)), c, {"features": True})),
        ("offsets", lambda g, c: (g, _batch_axis(c), {"offsets": torch.tensor(5)})),
        ("offsets", lambda g, c: (g, _batch_axis(c), {"offsets": torch.tensor([0.0, 5.9])})),
        ("offsets", lambda g, c: (g, _batch_axis(c), {"offsets": [0, 4]})),
        ("offsets", lambda g, c: (g, _batch_axis(c), {"offsets": [1, 5]})),
        ("batch axes", lambda g, c: (g, c, {"offsets": [0, 5]})),
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


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_no_cameras(make: Callable, backend: str) -> None:
    gaussians, cameras = make(5)
    out = render(gaussians, cameras.index(slice(0, 0)), backend=backend, ids=True)
    assert out.rgb.shape == (0, 24, 32, 3) and out.ids.shape == (0, 24, 32)


def _batch_axis(cameras: Cameras) -> Cameras:
    return replace(cameras, world_to_cam=cameras.world_to_cam[None], K=cameras.K[None])


def _with_features(gaussians: Gaussians, features: torch.Tensor) -> Gaussians:
    gaussians.features = features  # of another length: the constructor's checks are on in tests only
    return gaussians


def _batched(gaussians: Gaussians) -> Gaussians:
    return Gaussians(
        **{k: getattr(gaussians, k)[None] for k in ("means", "quats", "scales", "opacities", "sh")},
    )
