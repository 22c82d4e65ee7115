"""A new level may not show gaps where there was a surface."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.gaussians import Gaussians
from sr3d.rendering import render
from sr3d.zoom.warping import locate

_SOLID = 0.9  # alpha from which there was a surface
_GAP = 0.85  # share of it below which there is a gap now
_WIDER = 1.4  # of the standard deviations in the plane, each round
_ROUNDS = 3
_REACH = 2  # fine pixels around a gap, whose Gaussians are widened


def without_gaps(
    children: Gaussians, others: Gaussians, cameras: Cameras, alphas: Float[Tensor, "c h w"], factor: int, near: float
) -> Gaussians:
    """Children, those next to a gap wider than they were.

    Surfaces are closed at the resolution of their own level, where the renderer's low-pass helps. Where neighbours lie
    at different depths they stand apart, and their children leave black lines between them.

    Args:
        children: All that a level adds. [N]
        others: What else belongs to it, of earlier branches. [M]
        cameras: Frames of the level at low resolution. [C]
        alphas: What they showed before. [C, h, w]
        factor: Ratio of the resolutions.
        near: z-depth below which nothing is drawn, world units.
    """
    fine = cameras.resized(factor * cameras.width, factor * cameras.height)
    before = torch.nn.functional.interpolate(alphas[None], scale_factor=factor, mode="nearest")[0]
    least = torch.where(before > _SOLID, _GAP * before, 0.0)
    uv, _, inside = locate(children.means, cameras.to(children.means.dtype))
    size = uv.new_tensor([fine.width, fine.height])
    column, row = (uv * size).long().unbind(dim=-1)
    view = torch.arange(len(fine))[:, None]
    rest = replace(others, lod=None, features=None)
    for _ in range(_ROUNDS):
        drawn = Gaussians.cat([replace(children, lod=None, features=None), rest])
        gaps = render(drawn, fine, near=near).alpha < least
        if not bool(gaps.any()):
            break
        about = torch.nn.functional.max_pool2d(gaps.float(), 2 * _REACH + 1, stride=1, padding=_REACH) > 0
        chosen = (about[view, row, column] & inside).any(dim=0)
        thin = torch.nn.functional.one_hot(children.scales.argmin(dim=-1), 3).bool()
        children = replace(
            children, scales=torch.where(chosen[:, None] & ~thin, _WIDER * children.scales, children.scales)
        )
    return children
