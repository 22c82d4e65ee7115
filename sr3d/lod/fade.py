"""Visibility of a Gaussian at a render footprint, and the opacity cross-fade of parents and children.

A footprint is depth / sqrt(fx·fy): the world units that one pixel covers. Large footprint = coarse.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.gaussians import Lod

FadeMode = Literal["minimax", "linear"]

# The λ that minimises the worst error of the pair f(a), f(1−a) over all kernel values: 0.086, against 0.25 for λ = 0.
MINIMAX_LAMBDA = 2.0 * math.sqrt(2.0) - 2.0


def visibility(lod: Lod, footprint: Float[Tensor, "*views n"]) -> Float[Tensor, "*views n"]:
    """Visibility a(s) of each Gaussian at render footprint s (WonderZoom Eq. 3, with its boundary rule).

        a(s) = 1                                     at s = native, and on a side that has no neighbour
        a(s) = log(coarser/s) / log(coarser/native)  for native ≤ s ≤ coarser
        a(s) = log(s/finer)   / log(native/finer)    for finer  ≤ s ≤ native
        a(s) = 0                                     beyond a neighbour

    Args:
        lod: Fields of N Gaussians, broadcastable to `footprint`. [..., N]
        footprint: Depth / sqrt(fx·fy) in the camera that renders, world units per pixel, > 0. [..., N]

    Returns:
        Visibility in [0, 1]; differentiable in `footprint`. [..., N]
    """
    one = torch.ones((), dtype=footprint.dtype, device=footprint.device)
    has_parent, has_child = torch.isfinite(lod.coarser), lod.finer > 0
    # Neutral stand-ins keep logs finite (and their gradients free of NaN) where a side has no neighbour.
    coarser = torch.where(has_parent, lod.coarser, 2 * lod.native).to(footprint.dtype)
    finer = torch.where(has_child, lod.finer, 0.5 * lod.native).to(footprint.dtype)
    native = lod.native.to(footprint.dtype)
    # A neighbour of the same footprint leaves no room to fade: the step stays finite.
    up = torch.log(coarser / footprint) / torch.log(coarser / native).clamp_min(1e-6)
    down = torch.log(footprint / finer) / torch.log(native / finer).clamp_min(1e-6)
    up = torch.where(has_parent, up.clamp(0, 1), one)
    down = torch.where(has_child, down.clamp(0, 1), one)
    return torch.where(footprint >= native, up, down)


def fade(
    opacity: Float[Tensor, "*#shape"], a: Float[Tensor, "*#shape"], mode: FadeMode = "minimax"
) -> Float[Tensor, "*shape"]:
    """Opacity of a Gaussian whose visibility is `a`.

    `minimax` is f(a) = (1 − (1 − λo)^a) / λ with λ = 2√2 − 2: a parent at a and a child at 1 − a composite to the
    opacity o exactly where the kernel value is 0 or λ, and to within 0.086 everywhere. `linear` is a·o, as in
    WonderZoom Eq. 2 and GaussianZoom Eq. 9 (off by up to 0.25).

    Args:
        opacity: In [0, 1], broadcastable against `a`.
        a: Visibility in [0, 1], from `visibility`.
        mode: "minimax" or "linear".

    Raises:
        Sr3dError: Unknown mode.
    """
    if mode == "linear":
        return opacity * a
    if mode != "minimax":
        raise Sr3dError("sr3d.lod.fade", "mode", repr(mode), "'minimax' or 'linear'")
    faded = -torch.expm1(a * torch.log1p(-MINIMAX_LAMBDA * opacity)) / MINIMAX_LAMBDA
    # a = 1 must return the stored opacity bit for bit, so that a scene without neighbours renders unchanged.
    return torch.where(a >= 1, opacity.expand_as(faded), faded)
