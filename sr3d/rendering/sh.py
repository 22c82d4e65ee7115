"""Real spherical harmonics in the order and with the signs of 3DGS."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

SH_C0 = 0.28209479177387814


def sh_basis(directions: Float[Tensor, "*shape 3"], degree: int) -> Float[Tensor, "*shape k"]:
    """Basis functions at unit directions (from the camera to the Gaussian), degree 0 to 3. [..., 3] → [..., (d+1)²]"""
    x, y, z = directions.unbind(-1)
    basis = [torch.full_like(x, SH_C0)]
    if degree >= 1:
        c = 0.4886025119029199
        basis += [-c * y, c * z, -c * x]
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        basis += [
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (2 * zz - xx - yy),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (xx - yy),
        ]
    if degree >= 3:
        basis += [
            -0.5900435899266435 * y * (3 * xx - yy),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (4 * zz - xx - yy),
            0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
            -0.4570457994644658 * x * (4 * zz - xx - yy),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ]
    return torch.stack(basis, dim=-1)


def sh_to_rgb(sh: Float[Tensor, "*shape k 3"], directions: Float[Tensor, "*shape 3"]) -> Float[Tensor, "*shape 3"]:
    """Colour seen along unit `directions` (camera to Gaussian): max(0, 0.5 + Σ basis·sh), as in 3DGS."""
    degree = int(sh.shape[-2] ** 0.5) - 1
    return (0.5 + torch.einsum("...k,...kc->...c", sh_basis(directions, degree), sh)).clamp_min(0)


def rgb_to_sh(rgb: Float[Tensor, "*shape 3"]) -> Float[Tensor, "*shape 1 3"]:
    """Degree-0 coefficients that show the colour `rgb` from everywhere. [..., 3] → [..., 1, 3]"""
    return ((rgb - 0.5) / SH_C0)[..., None, :]
