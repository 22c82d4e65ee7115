"""The reference renderer against gsplat's own PyTorch code, and its gradients against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from gsplat.cuda._torch_impl import _fully_fused_projection, _quat_scale_to_covar_preci, _spherical_harmonics

from sr3d.lod import Lod
from sr3d.rendering import constants as const
from sr3d.rendering import reference
from sr3d.rendering.job import Splats, Views
from sr3d.rendering.sh import sh_basis


def test_covariance_is_gsplats(make: Callable) -> None:
    gaussians, _ = make(50)
    expected, _ = _quat_scale_to_covar_preci(gaussians.quats, gaussians.scales, compute_preci=False)
    torch.testing.assert_close(reference.covariances(gaussians.quats, gaussians.scales), expected)


def test_projection_is_gsplats(make: Callable) -> None:
    gaussians, cameras = make(200, views=2)
    gaussians.means[:20] *= torch.tensor([4.0, 4.0, 1.0])  # outside the frame, where the Jacobian is clamped
    covars = reference.covariances(gaussians.quats, gaussians.scales)
    radii, means2d, depths, conics, factors = _fully_fused_projection(
        gaussians.means, covars, cameras.world_to_cam, cameras.K, 32, 24, calc_compensations=True
    )
    assert (radii > 0).all(dim=-1).sum() > 200
    for c in range(2):
        found2d, covars2d, z = reference.project(gaussians.means, covars, cameras.world_to_cam[c], cameras.K[c], 32, 24)
        blurred = covars2d + const.EPS2D * torch.eye(2, dtype=torch.float64)
        inverse = torch.linalg.inv(blurred)
        torch.testing.assert_close(found2d, means2d[c])
        torch.testing.assert_close(z, depths[c])
        torch.testing.assert_close(torch.stack([inverse[:, 0, 0], inverse[:, 0, 1], inverse[:, 1, 1]], -1), conics[c])
        torch.testing.assert_close((torch.linalg.det(covars2d) / torch.linalg.det(blurred)).sqrt(), factors[c])


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_spherical_harmonics_are_gsplats(degree: int) -> None:
    g = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(100, 3, generator=g, dtype=torch.float64), dim=-1)
    sh = torch.randn(100, (degree + 1) ** 2, 3, generator=g, dtype=torch.float64)
    found = torch.einsum("nk,nkc->nc", sh_basis(directions, degree), sh)
    torch.testing.assert_close(found, _spherical_harmonics(degree, directions, sh))


@pytest.mark.parametrize(("antialias", "fade"), [(False, None), (True, None), (False, "minimax"), (True, "linear")])
def test_gradients_are_finite_differences(make: Callable, antialias: bool, fade: str | None) -> None:
    g, cameras = make(6, size=(6, 5), features=2, degree=3, seed=2)
    # Large faint Gaussians reach every pixel: no alpha sits at the 1/255 threshold, where the image has a step.
    leaves = [g.means, g.quats, g.scales * 20, 0.3 + 0.5 * g.opacities, 0.3 * g.sh, g.features, cameras.world_to_cam]
    inputs = [t.clone().requires_grad_() for t in leaves]
    native = g.means[:, 2] / 6
    lod = Lod(native=native * 1.1, coarser=native * 3, finer=native * 0.3, level=torch.ones(6, dtype=torch.int32))

    def image(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        *fields, poses = tensors
        names = ["means", "quats", "scales", "opacities", "sh", "features"]
        splats = Splats(**dict(zip(names, fields)), lod=lod if fade else None, offsets=[0, 6])
        views = Views(
            world_to_cam=poses[None],
            K=cameras.K[None],
            width=6,
            height=5,
            antialias=antialias,
            near=0.01,
            fade=fade,
            inspect=False,
        )
        out = reference.rasterize(splats, views)
        return out.image, out.alpha

    assert image(*inputs)[1].min() > 0.1
    assert torch.autograd.gradcheck(image, inputs, atol=1e-5, fast_mode=True)
