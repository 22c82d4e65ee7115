"""A new level may not be more opaque than what was there."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.gaussians import Gaussians
from sr3d.models.gather import sample
from sr3d.rendering import render

_FAINT = 0.9  # alpha from which a pixel counts as a surface, which may become as opaque as it likes
_MOST = 1 - 1e-4


def as_opaque(
    children: Gaussians, cameras: Cameras, alphas: Float[Tensor, "c h w"], near: float
) -> Float[Tensor, " n"]:
    """Opacities of children that are no more than what was there where that was faint.

    Haze (a large, weak Gaussian) splits into children that overlap and are sharpened like a surface: from level to
    level it would grow into streaks. Optical depth, −log(1 − alpha), adds up along a ray, so a child of opacity o gets
    1 − (1 − o)^r, r being the ratio of the optical depths before and after, where it is less than 1, at the child's
    place in the view that leaves it most.

    Args:
        children: All that a level adds. [N]
        cameras: Frames of the level at low resolution. [C]
        alphas: What they showed before. [C, h, w]
        near: z-depth below which nothing is drawn, world units.
    """
    if not bool((alphas < _FAINT).any()):
        return children.opacities
    after = render(replace(children, lod=None), cameras, near=near).alpha
    before, after = (-torch.log1p(-a.clamp(0, _MOST)) for a in (alphas, after))
    allowed = torch.where(alphas < _FAINT, (before / after.clamp_min(1e-6)).clamp(max=1.0), 1.0)
    pixels, depth = cameras.project(children.means)
    size = torch.tensor([cameras.width, cameras.height], dtype=pixels.dtype)
    uv = pixels / size
    inside = (depth > near) & (uv > 0).all(dim=-1) & (uv < 1).all(dim=-1)
    found = sample(allowed[None, :, None], torch.where(inside[..., None], uv, 0.5)[None])[0, :, 0]
    share = torch.where(inside, found, 0.0).amax(dim=0)
    share = torch.where(inside.any(dim=0), share, 1.0)
    return torch.where(share < 1, 1 - (1 - children.opacities) ** share, children.opacities)
