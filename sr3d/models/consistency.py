"""Low-resolution consistency: colours of the fine Gaussians, corrected until their drawings reduce to the inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.gaussians import Gaussians
from sr3d.rendering import render
from sr3d.rendering.sh import SH_C0

_DAMPING = 0.1  # of a Gaussian that alone fills a pixel of the fine views: what is hardly seen is hardly changed


@dataclass(kw_only=True)
class ConsistencyConfig:
    """Corrections after the last residuals, in evaluation mode; nothing in them is learned.

    Attributes:
        rounds: Drawings that are compared with the inputs, 1 or more.
    """

    rounds: int = 4


def consistent(
    fine: Gaussians, images: Float[Tensor, "*b v h w 3"], cameras: Cameras, factor: int, rounds: int
) -> Gaussians:
    """Colours moved towards what the inputs say, by simultaneous algebraic reconstruction (SIRT).

    A drawing, reduced by area, is linear in the colours c of degree 0: the low-resolution term of GaussianZoom's loss
    is a least-squares problem ‖A c − I‖². Every round adds D Aᵀ R (I − A c), R dividing the error of a pixel by its
    alpha, and D what a Gaussian gathers by its weight in all pixels: a backward pass of the renderer, no optimiser.

    Args:
        fine: All Gaussians that the views show, none of which fades. [..., N]
        images: Inputs in [0, 1].
        cameras: Of the inputs. [..., V]
        factor: Ratio of the resolutions.
        rounds: 1 or more.

    Returns:
        The same Gaussians with other colours.
    """
    cameras = cameras.resized(cameras.width * factor, cameras.height * factor)
    base = fine.detach()
    base, given = replace(base, lod=None), base.sh
    shift = torch.zeros_like(given[..., :1, :])
    weight = shift[..., :1]
    with torch.enable_grad():
        for i in range(rounds):
            dc = (given[..., :1, :] + shift).requires_grad_()
            drawn = render(replace(base, sh=torch.cat([dc, given[..., 1:, :]], dim=-2)), cameras, lod=False)
            small, alpha = _reduced(drawn.rgb, factor), _reduced(drawn.alpha.detach()[..., None], factor)
            error = torch.where(alpha > 1e-3, images - small.detach() / alpha.clamp_min(1e-3), 0.0)
            if i == 0:
                (summed,) = torch.autograd.grad(small.sum(), dc, retain_graph=True)
                # Of one of the three channels; a clamped colour of exactly 0 has no gradient.
                weight = summed.amax(dim=-1, keepdim=True) + _DAMPING * SH_C0 / factor**2
            (gathered,) = torch.autograd.grad((small * error).sum(), dc)
            shift = shift + gathered / (weight * SH_C0)
    return replace(fine, sh=torch.cat([fine.sh[..., :1, :] + shift.detach(), fine.sh[..., 1:, :]], dim=-2))


def _reduced(images: Float[Tensor, "*b fh fw c"], factor: int) -> Float[Tensor, "*b h w c"]:
    """Means over `factor` × `factor` pixels."""
    split = images.unflatten(-2, (-1, factor)).unflatten(-4, (-1, factor))
    return split.mean(dim=(-4, -2))
