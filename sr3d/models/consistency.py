"""Low-resolution consistency: colours of the fine Gaussians, corrected until their drawings reduce to the inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.gaussians import Gaussians
from sr3d.rendering.linear import linear_views
from sr3d.rendering.sh import SH_C0, sh_basis

_DAMPING = 0.1  # of a Gaussian that alone fills a pixel of the fine views: what is hardly seen is hardly changed


@dataclass(kw_only=True)
class ConsistencyConfig:
    """Corrections after the last residuals, in evaluation mode; nothing in them is learned.

    Attributes:
        rounds: Drawings that are compared with the inputs, 1 or more.
    """

    rounds: int = 8


def consistent(
    fine: Gaussians, images: Float[Tensor, "*b v h w 3"], cameras: Cameras, factor: int, rounds: int
) -> Gaussians:
    """Colours moved towards what the inputs say, by simultaneous algebraic reconstruction (SIRT).

    A drawing, reduced by area, is linear in the colours c of degree 0: the low-resolution term of GaussianZoom's loss
    is a least-squares problem ‖A c − I‖². Every round adds D Aᵀ R (I − A c), R dividing the error of a pixel by its
    alpha, and D what a Gaussian gathers by its weight in all pixels: no optimiser, and A is made once.

    Args:
        fine: All Gaussians that the views show, none of which fades. [..., N]
        images: Inputs in [0, 1].
        cameras: Of the inputs. [..., V]
        factor: Ratio of the resolutions.
        rounds: 1 or more.

    Returns:
        The same Gaussians with other colours.
    """
    with torch.no_grad():
        shift = _shift(fine, images, cameras, factor, rounds)
    sh = fine.sh[..., :1, :] + shift[..., None, :] / SH_C0
    return replace(fine, sh=torch.cat([sh, fine.sh[..., 1:, :]], dim=-2))


def _shift(
    fine: Gaussians, images: Float[Tensor, "*b v h w 3"], cameras: Cameras, factor: int, rounds: int
) -> Float[Tensor, "*b n 3"]:
    """What colours are changed by."""
    if fine.means.ndim > 2:
        return torch.stack([_shift(fine[b], images[b], cameras[b], factor, rounds) for b in range(len(images))])
    views = linear_views(fine, cameras, factor)
    away = fine.means - cameras.positions.to(fine.means)[:, None]
    basis = sh_basis(torch.nn.functional.normalize(away, dim=-1), fine.sh_degree)
    colors = 0.5 + torch.einsum("vnk,nkc->vnc", basis, fine.sh)
    ones = torch.ones_like(images)
    alphas = [view.draw(torch.ones_like(fine.means)) for view in views]
    weight = sum(view.collect(one) for view, one in zip(views, ones)) + _DAMPING / factor**2
    shift = torch.zeros_like(fine.means)
    for _ in range(rounds):
        gathered = torch.zeros_like(shift)
        for view, alpha, image, color in zip(views, alphas, images, colors):
            seen = (color + shift).clamp_min(0)
            error = torch.where(alpha > 1e-3, image - view.draw(seen) / alpha.clamp_min(1e-3), 0.0)
            gathered += view.collect(error) * (seen > 0)
        shift = shift + gathered / weight
    return shift
