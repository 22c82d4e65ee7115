"""Depth of posed views: taken from the scene or measured by stereo, with holes filled along the image."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.coarse.config import CoarseConfig
from sr3d.coarse.fill import fill_holes
from sr3d.coarse.sweep import sweep_depth
from sr3d.errors import Sr3dError
from sr3d.scene import Scene

FILLED = 0.25  # confidence of a pixel whose depth was taken over from its neighbours
LOST = 0.1  # share of confirmed pixels under which stereo is taken as it is


def estimate_depth(scene: Scene, config: CoarseConfig) -> tuple[Float[Tensor, "v h w"], Float[Tensor, "v h w"]]:
    """z-depth of every pixel, and how far to trust it.

    Args:
        scene: V posed views of one size.
        config: Source of depth and its settings.

    Returns:
        z-depth in world units, 0 where nothing is known [V, H, W], and confidence: 1 given or measured, 0.25 filled
        in from neighbours of similar colour (or, in a view that hardly any other confirms, measured without
        confirmation), 0 unknown [V, H, W].

    Raises:
        Sr3dError: No poses; source "depth" and the scene has none.
    """
    if config.source == "sweep":
        swept, agree = sweep_depth(scene, config.sweep)
        # Filling a whole view from a few islands is worse than what stereo found without confirmation.
        lost = agree.mean(dim=(1, 2), keepdim=True) < LOST
        measured = swept * agree
        depth = torch.where(lost, swept, fill_holes(measured, scene.images))
    elif config.source == "depth":
        measured = _given(scene)
        depth = fill_holes(measured, scene.images)
    else:
        raise Sr3dError("sr3d.coarse.estimate_depth", "source", repr(config.source), "'depth' or 'sweep'")
    return depth, torch.where(measured > 0, 1.0, torch.where(depth > 0, FILLED, 0.0)).to(depth)


def _given(scene: Scene) -> Float[Tensor, "v h w"]:
    scene.posed().check(scene.name)
    if scene.depths is None:
        raise Sr3dError(scene.name, "depths", "none", "depth maps, or source 'sweep' to measure them from the views")
    return torch.where(torch.isfinite(scene.depths) & (scene.depths > 0), scene.depths, 0)
