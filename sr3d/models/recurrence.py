"""Recurrence: what the fine Gaussians look like to the input cameras, against what those cameras saw."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.gaussians import Gaussians
from sr3d.rendering import render


@dataclass(kw_only=True)
class RecurrenceConfig:
    """Further rounds of the same network.

    Attributes:
        steps: Rounds after the first one, 1 or more.
    """

    steps: int = 1


@torch.no_grad()
def low_resolution_error(
    fine: Gaussians, images: Float[Tensor, "b v h w 3"], cameras: Cameras, factor: int
) -> Float[Tensor, "b v 3 H W"]:
    """Low-resolution input minus the drawn scene, reduced by area, repeated to the high resolution.

    Args:
        fine: [B, N]
        images: Inputs.
        cameras: Of the inputs, at high resolution. [B, V]
        factor: Ratio of the resolutions.
    """
    drawn = render(fine.detach(), cameras, lod=False).rgb.movedim(-1, 2).flatten(0, 1)
    reduced = torch.nn.functional.avg_pool2d(drawn, factor).unflatten(0, images.shape[:2])
    error = images.movedim(-1, 2) - reduced
    return error.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)
