"""Newly inserted objects: what an editor painted into a frame, as Gaussians with a depth of their own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.coarse import CoarseConfig, pixel_gaussians
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.rendering import render
from sr3d.zoom.frontier import Visible, around
from sr3d.zoom.guides import Guides, Told
from sr3d.zoom.providers.base import ask, check_depth
from sr3d.zoom.registration import RegistrationConfig, register

_SIGMA = 0.8  # pixels, as children are at least: what is thinner falls apart when the zoom goes on
_TRUSTED = 0.8  # alpha from which a drawn depth is a target of registration (WonderZoom)


@dataclass(kw_only=True)
class Inserted:
    """Gaussians of inserted objects.

    Attributes:
        gaussians: One for each inserted pixel, relative to the level's origin. [N]
        rows: Row of the Gaussian that each one hides, which fades out as it fades in; −1 where there is none that can.
            [N]
    """

    gaussians: Gaussians
    rows: Int[Tensor, " n"]


def insert(guides: Guides, told: Told, seen: Visible, frames: Cameras, level: int) -> Inserted | None:
    """Surfels on what was inserted into the first frame, in contact with the surface behind it.

    Args:
        guides: With a monocular depth.
        told: With the edited picture.
        seen: What the frames see. [M]
        frames: World frame, float64. [K]
        level: Number of the level that the hidden Gaussians are of.

    Returns:
        None where nothing was inserted.

    Raises:
        Sr3dError: No monocular depth, or it fails or does not fit what is there (see `register`).
    """
    if told.inserted is None or told.picture is None or not bool(told.inserted.any()):
        return None
    if guides.depth is None:
        raise Sr3dError("sr3d zoom", "depth provider", "none", "one, for what the editor inserts")
    height, width = told.inserted.shape
    fine = frames.index([0]).resized(width, height)
    local, picture, depth = around(fine, seen.origin), told.picture, guides.depth
    behind = render(seen.gaussians, local, ids=True, near=seen.near)
    guess = check_depth(depth, ask(depth, "depth", lambda: depth.guess(picture, float(fine.focal[0]))), (height, width))
    segmenter = guides.segmenter
    segments = None
    if segmenter is not None:
        segments = ask(segmenter, "segments", lambda: segmenter.segments(picture))
        if tuple(segments.shape) != (height, width) or bool((segments < 0).any()):
            parts = f"{tuple(segments.shape)}, from {int(segments.min()) if segments.numel() else 'nothing'} on"
            raise Sr3dError(f"segmenter provider {segmenter.name}", "segments", parts, f"{(height, width)}, from 0 on")
    found = register(
        guess,
        behind.depth[0],
        (behind.alpha[0] >= _TRUSTED) & ~told.inserted,
        segments=segments,
        inserted=told.inserted,
        config=RegistrationConfig(),
    )
    known = torch.where(told.inserted, found.depth, 0.0)[None]
    config = CoarseConfig()
    surfels = pixel_gaussians(picture[None], local.to(torch.float32), known, _SIGMA, config.opacity, config)
    assert behind.ids is not None and seen.gaussians.lod is not None
    hidden = behind.ids[0].flatten()
    lod = seen.gaussians.lod
    assert surfels.lod is not None
    can = (hidden >= 0) & (lod.level[hidden] == level) & (lod.finer[hidden] == 0)
    can &= surfels.lod.native < lod.native[hidden]
    rows = torch.where(can, seen.rows[hidden.clamp_min(0)], -1)
    chosen = told.inserted.flatten()
    return Inserted(gaussians=surfels.index(chosen), rows=rows[chosen])
