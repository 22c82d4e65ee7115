"""What the head is told about each child besides image features."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sr3d.gaussians import Gaussians
from sr3d.models.encoder import mean_axes
from sr3d.models.gather import Sight, fuse, sample
from sr3d.models.inputs import Views
from sr3d.rendering.sh import SH_C0

DESCRIPTION = 16  # channels of `describe`


def describe(scaffold: Gaussians, sight: Sight, views: Views) -> Float[Tensor, "b 16 n"]:
    """What is known of each child besides image features; nothing here depends on the world's frame or unit."""
    assert scaffold.lod is not None
    colors = sample(views.images, sight.uv)
    own = (0.5 + SH_C0 * scaffold.sh[..., 0, :]).clamp(0, 1).mT
    opacity = torch.logit(scaffold.opacities.clamp(1e-3, 1 - 1e-3))
    size = torch.log((scaffold.scales.prod(dim=-1) / scaffold.lod.native**3).clamp(1e-9, 1e9)) / 3
    footprint = views.cameras.footprint(sight.depth.clamp_min(1e-9)) / scaffold.lod.native[:, None]
    zoom = (torch.log(footprint.clamp(1e-3, 1e3)) * sight.weights).sum(dim=1)
    at_home = (sight.visible * sight.home).sum(dim=1)
    behind = (sight.behind * sight.home).sum(dim=1)
    numbers = [sight.visible.mean(dim=1), (sight.behind * sight.seen).sum(dim=1), opacity / 4, size, zoom, at_home]
    numbers.append(behind)
    return torch.cat(
        [fuse(colors, sight.home) - own, fuse(colors, sight.seen) - own, own, torch.stack(numbers, dim=1)], dim=1
    )


def to_surface(depths: Float[Tensor, "b v h w"], sight: Sight, bound: float) -> Float[Tensor, "b n"]:
    """How far the surface of a point's home view lies behind it, as a share of its depth; 0 where there is none.

    Args:
        depths: Predicted for the views.
        sight: Of the points.
        bound: Most that is returned, to either side.
    """
    # The nearest pixel: between two surfaces there is nothing.
    front = sample(depths[:, :, None], sight.uv, mode="nearest")[:, :, 0]
    gap = torch.where(front > 0, front / sight.depth.clamp_min(1e-9) - 1, torch.zeros_like(front))
    return (gap.clamp(-bound, bound) * sight.home).sum(dim=1)


def places(points: Float[Tensor, "b n 3"], mask: Bool[Tensor, "b n"], views: Views) -> Float[Tensor, "b n 3"]:
    """Points from their centre in the mean camera's axes, in input pixels at the mean depth: alike at any zoom.

    Args:
        points: World frame.
        mask: Points that count.
        views: Their views.
    """
    counted = mask[..., None].to(points.dtype)
    points = points * counted
    points = (points - points.sum(dim=1, keepdim=True) / counted.sum(dim=1, keepdim=True).clamp_min(1)) * counted
    pixel = views.factor * views.cameras.footprint(views.unit[:, None, None].expand(-1, views.images.shape[1], 1))
    return torch.einsum("bij,bnj->bni", mean_axes(views.cameras), points) / pixel.mean(dim=1)[..., None]
