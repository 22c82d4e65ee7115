"""Do the views of a level show one scene? Scores across views, and the children that contradict what was seen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.rendering.sh import sh_to_rgb
from sr3d.training.metrics import psnr
from sr3d.zoom.warping import TOLERANCE, check_views, locate, warp

_SOLID = 0.5  # alpha above which a pixel shows a surface
_RADII = (1, 2, 4, 8)  # half sides of windows, pixels: a Gaussian is compared with all that it may cover


@dataclass(kw_only=True)
class Agreement:
    """How far C views agree about the surface points that they share (see `warp`).

    Attributes:
        error: Mean absolute difference of colour to what the other views show at the same surface point; 0 where none
            sees it. [C, H, W]
        seen: Solid pixels whose surface point another view sees. [C, H, W]
        color: Mean of `error` over seen pixels; None where nothing is seen twice.
        psnr: In dB, over all pairs of a seen pixel and a view that sees it, at most 100; None as above.
        depth: Median relative difference of depth over pairs of views that both have a depth there, those that hide
            the point included; None if there are none.
        feature: Mean of 1 − cosine of the features over the pairs of `psnr` in which neither is zero; None without.
        shared: Share of solid pixels that are seen; 0 if none is solid.
    """

    error: Float[Tensor, "c h w"]
    seen: Bool[Tensor, "c h w"]
    color: float | None
    psnr: float | None
    depth: float | None
    feature: float | None
    shared: float

    def to_dict(self) -> dict[str, float | None]:
        """The scores, without the maps: plain numbers for JSON."""
        return {name: getattr(self, name) for name in ("color", "psnr", "depth", "feature", "shared")}


@torch.no_grad()
def agreement(
    images: Float[Tensor, "c h w 3"],
    depths: Float[Tensor, "_ _ _"],
    alphas: Float[Tensor, "_ _ _"],
    cameras: Cameras,
    features: Float[Tensor, "_ _ _ d"] | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> Agreement:
    """Warp every view into every other one and compare colours, depths and features.

    Args:
        images: In [0, 1]; where alpha is below 1 divided by it, so that nothing is darker for being thin. [C, H, W, 3]
        depths: z-depths, world units. [C, H, W]
        alphas: A pixel counts above 0.5: below, depth is that of no surface. [C, H, W]
        cameras: C views.
        features: Drawn semantic features, of any length. [C, H, W, D]
        tolerance: Of the relative difference of depth, see `warp`. Relief flatter than that hides nothing: frames of
            large magnification may need less.

    Raises:
        Sr3dError: Sizes that differ, values that are not finite, or a tolerance that is not positive.
    """
    extra = {} if features is None else {"features": features}
    _check("sr3d.zoom.agreement", cameras, images=images, depths=depths, alphas=alphas, **extra)
    solid = (alphas > _SOLID) & (depths > 0)
    surface = torch.where(solid, depths, 0)
    layers = images if features is None else torch.cat([images, features.to(images)], dim=-1)
    error, seen = torch.zeros_like(depths), torch.zeros_like(solid)
    mine, theirs, depth_errors = [], [], []
    for i in range(len(cameras)):
        warped = warp(layers, surface, cameras, i, tolerance=tolerance)
        off = (warped.maps[..., :3] - images[i]).abs().mean(dim=-1) * warped.valid
        error[i] = off.sum(dim=0) / warped.valid.sum(dim=0).clamp_min(1)
        seen[i] = warped.valid.any(dim=0)
        mine.append(layers[i].expand_as(warped.maps)[warped.valid])
        theirs.append(warped.maps[warped.valid])
        depth_errors.append(warped.depth_error[warped.depth_error.isfinite()])
    a, b, depth_error = torch.cat(mine), torch.cat(theirs), torch.cat(depth_errors)
    return Agreement(
        error=error,
        seen=seen,
        color=float(error[seen].mean()) if len(a) else None,
        psnr=float(psnr(b[None, :, :3], a[None, :, :3])) if len(a) else None,
        depth=float(depth_error.median()) if len(depth_error) else None,
        feature=_feature_difference(a[:, 3:], b[:, 3:]),
        shared=float(seen.sum() / solid.sum().clamp_min(1)),
    )


@dataclass(kw_only=True)
class RejectConfig:
    """When a child contradicts a view. Between tolerance and limit its opacity fades linearly.

    Attributes:
        depth_tolerance: Up to this distance in front of a surface, relative to the surface's depth and beyond its own
            extent, a child belongs to it.
        depth_limit: Distance from which it floats in front of it.
        color_tolerance: Mean absolute difference, colours in 0..1, up to which a child has a view's colour.
        color_limit: Difference from which it has not.
        extent: Standard deviations that a child reaches, in depth and across the image.
    """

    depth_tolerance: float = 0.03
    depth_limit: float = 0.06
    color_tolerance: float = 0.06
    color_limit: float = 0.15
    extent: float = 2.0

    def __post_init__(self) -> None:
        for kind in ("depth", "color"):
            low, high = getattr(self, f"{kind}_tolerance"), getattr(self, f"{kind}_limit")
            if not 0 < low < 1:
                raise Sr3dError("zoom.reject", f"{kind}_tolerance", low, "above 0 and below 1")
            if not low < high <= 1:
                raise Sr3dError("zoom.reject", f"{kind}_limit", high, f"above {kind}_tolerance ({low}), at most 1")
        if not 0 < self.extent < float("inf"):
            raise Sr3dError("zoom.reject", "extent", self.extent, "a positive number of standard deviations")


@torch.no_grad()
def reject(
    children: Gaussians,
    cameras: Cameras,
    images: Float[Tensor, "c h w 3"],
    depths: Float[Tensor, "_ _ _"],
    alphas: Float[Tensor, "_ _ _"],
    config: RejectConfig,
) -> Float[Tensor, " n"]:
    """Factors for the opacities of new children, from what the views showed before they were made. [N]

    A view contradicts a child that hangs in the air before a solid surface and would show there in another colour. In
    the air: nearer than every surface in the window of pixels that the child covers (and the next ones), by more than
    a relative tolerance and the child's own extent. Another colour: unlike the view's pixel. The factor is 1 − the
    product of both faults, of the view with the strongest contradiction.

    It is exactly 1 for children that agree in depth or in colour, that a view hides or does not have in its frame, and
    for those that fewer than two views have in their frame and not hidden, since the one view is where they come from.

    Args:
        children: Of this level. [N]
        cameras: C frames.
        images: In [0, 1], of what the frames saw before this level; see `agreement`. [C, H, W, 3]
        depths: z-depths, world units, of the same. [C, H, W]
        alphas: Of the same; below 0.5 there is no surface. [C, H, W]
        config: Tolerances.

    Raises:
        Sr3dError: Sizes that differ, values that are not finite, or children with a batch axis.
    """
    _check("sr3d.zoom.reject", cameras, images=images, depths=depths, alphas=alphas)
    if children.means.ndim != 2:
        raise Sr3dError("sr3d.zoom.reject", "children", tuple(children.means.shape), "means [N, 3], no batch axis")
    exact = cameras.to(depths.device).to(torch.float64)
    uv, depth, inside = locate(children.means.to(exact.K), exact)
    size = uv.new_tensor([cameras.width, cameras.height])
    column, row = (uv * size).long().unbind(dim=-1)
    view = torch.arange(len(cameras), device=row.device)[:, None]
    solid = torch.where((alphas > _SOLID) & (depths > 0), depths, 0)
    nearest = _nearest(solid)
    reach = config.extent * children.scales.amax(dim=-1).to(depth)
    window = _window(reach / exact.footprint(depth.clamp_min(1e-12)))
    surface, behind = nearest[window, view, row, column], solid[view, row, column]
    hidden = (behind > 0) & (depth > behind * (1 + config.depth_tolerance))
    judged = (inside & ~hidden).sum(dim=0) > 1
    gap = (surface - depth - reach) / surface.clamp_min(1e-12)
    floating = _ramp(gap, config.depth_tolerance, config.depth_limit) * (inside & judged)

    views, which = floating.nonzero(as_tuple=True)
    there = torch.nn.functional.normalize(children.means[which].to(exact.K) - exact.positions[views], dim=-1)
    color = sh_to_rgb(children.sh[which], there.to(children.sh)).clamp(0, 1)
    shown = images[views, row[views, which], column[views, which]].to(color)
    fault = _ramp((color - shown).abs().mean(dim=-1), config.color_tolerance, config.color_limit)
    floating[views, which] *= fault.to(floating)
    return (1 - floating.amax(dim=0)).to(children.opacities)


def _window(reach: Float[Tensor, "c n"]) -> Tensor:
    """Index of the smallest window that holds a Gaussian wherever it lies in its pixel, and one pixel more."""
    radii = torch.tensor(_RADII, dtype=reach.dtype, device=reach.device)
    return torch.bucketize(reach + 0.5, radii).clamp_max(len(_RADII) - 1)


def _nearest(solid: Float[Tensor, "c h w"]) -> Float[Tensor, "r c h w"]:
    """Least depth in the windows of `_RADII` about every pixel: 0, which nothing is in front of, if one has none."""
    out, negative = [], -solid
    for smaller, radius in zip((0, *_RADII), _RADII):
        # A minimum of minima: each window is made of the next smaller ones.
        step = radius - smaller
        negative = torch.nn.functional.max_pool2d(negative, 2 * step + 1, stride=1, padding=step)
        out.append(-negative)
    return torch.stack(out)


def _ramp(values: Float[Tensor, "*n"], low: float, high: float) -> Float[Tensor, "*n"]:
    """0 up to `low`, 1 from `high` on, linear between."""
    return ((values - low) / (high - low)).clamp(0, 1)


def _feature_difference(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"]) -> float | None:
    """Mean of 1 − cosine over rows of which neither is zero."""
    both = (a != 0).any(dim=-1) & (b != 0).any(dim=-1)
    if not both.any():
        return None
    return float(1 - torch.nn.functional.cosine_similarity(a[both], b[both]).mean())


def _check(source: str, cameras: Cameras, **maps: Float[Tensor, ...]) -> None:
    """Sizes of the maps, and that all are finite."""
    check_views(source, cameras, **maps)
    for name, values in maps.items():
        if not bool(values.isfinite().all()):
            raise Sr3dError(source, name, "NaN or infinity", "finite numbers")
