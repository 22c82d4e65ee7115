"""The Fréchet distance of two sets of features."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def frechet_distance(drawn: Float[Tensor, "n d"], true: Float[Tensor, "m d"]) -> float:
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½) of Gaussians fitted to both sets, in float64 (Heusel et al. 2017, Eq. 6).

    With Σ₁ = AᵀA and Σ₂ = BᵀB the trace of the root is the sum of the singular values of A Bᵀ: exact for singular
    covariances too, where the root of a matrix is not.

    NaN where a set has fewer than two members, hence no covariance.
    """
    if min(len(drawn), len(true)) < 2:
        return torch.nan
    first, second = (x.double() for x in (drawn, true))
    mean = (first.mean(dim=0) - second.mean(dim=0)).square().sum()
    a, b = ((x - x.mean(dim=0)) / (len(x) - 1) ** 0.5 for x in (first, second))
    # Triangular factors have the same covariance, and at most d rows.
    a, b = (torch.linalg.qr(x, mode="r").R for x in (a, b))
    root = torch.linalg.svdvals(a @ b.T).sum()
    return (mean + a.square().sum() + b.square().sum() - 2 * root).clamp_min(0).item()
