"""What the other views show of the surface that one view sees: backward warping with an occlusion test."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.models.gather import sample

TOLERANCE = 0.02  # relative difference of depth up to which two views see one surface


@dataclass(kw_only=True)
class Warped:
    """Maps of S views at the surface points of the pixels of one other view, S = C − 1, in the order of the views.

    Attributes:
        maps: What each view shows there; 0 where not valid. [S, H, W, K]
        valid: Whether the view sees the same surface point. [S, H, W]
        depth_error: |z / surface − 1|, z being the point's depth in the view and `surface` what the view has there;
            infinite where there is nothing to compare: outside the frame, behind the camera, no depth. [S, H, W]
    """

    maps: Float[Tensor, "s h w k"]
    valid: Bool[Tensor, "s h w"]
    depth_error: Float[Tensor, "s h w"]


def warp(
    maps: Float[Tensor, "c h w k"],
    depths: Float[Tensor, "_ _ _"],
    cameras: Cameras,
    target: int,
    *,
    tolerance: float = TOLERANCE,
) -> Warped:
    """Maps of all other views as the target view sees them (GaussianZoom Eq. 5-6, backward, with the target's depth).

    Every pixel centre of the target is lifted to its surface point and projected into the other views, where the maps
    are read bilinearly. The paper has no occlusion test; here a view counts where its own depth is the point's z-depth
    within `tolerance`. That depth is taken twice and the closer one counts:
    - between the pixels, as the bilinear mean of the inverse depths, which is exact on planes however grazing;
    - of the nearest pixel, which holds at depth edges, where a mean lies on no surface. There the maps are read at the
      nearest pixel too, so that nothing of the other surface bleeds in.
    Pixels without depth take no part in any mean. Geometry is computed in float64: frames of large magnification have
    focal lengths of 10⁶ pixels.

    Args:
        maps: Colours or features, any number of channels. [C, H, W, K]
        depths: z-depths, world units; 0 or not finite where unknown. [C, H, W]
        cameras: C views, of any precision.
        target: Index of the view to warp into.
        tolerance: Of the relative difference of depth, > 0.

    Raises:
        Sr3dError: Sizes that differ, a target that is no view, a tolerance that is not positive.
    """
    check_views("sr3d.zoom.warp", cameras, maps=maps, depths=depths)
    if not 0 <= target < len(cameras):
        raise Sr3dError("sr3d.zoom.warp", "target", target, f"0 to {len(cameras) - 1}, one of {len(cameras)} views")
    if not tolerance > 0:
        raise Sr3dError("sr3d.zoom.warp", "tolerance", tolerance, "a positive relative difference")
    size = maps.shape[1:3]
    others = [i for i in range(len(cameras)) if i != target]
    if not others:
        nothing = depths.new_zeros(0, *size)
        return Warped(maps=maps[:0], valid=nothing.bool(), depth_error=nothing)
    known = (depths > 0) & depths.isfinite()
    exact = cameras.to(depths.device).to(torch.float64)
    surface = torch.where(known, depths, 0)[[target]].double()
    uv, depth, inside = locate(exact[[target]].unproject(surface).reshape(-1, 3), exact[others])

    # Products with `known`, divided by its own mean: pixels without depth have no weight.
    inverse = torch.where(known, depths.reciprocal(), 0)[others, ..., None]
    weight = known[others, ..., None].to(maps)
    layers = torch.cat([weight, inverse.to(maps), maps[others] * weight], dim=-1).movedim(-1, 1)[None]
    mean, nearest = (sample(layers, uv[None].to(maps), mode)[0] for mode in ("bilinear", "nearest"))
    mean = mean / mean[:, :1].clamp_min(1e-6)
    off_mean, off_nearest = ((depth * layer[:, 1] - 1).abs() for layer in (mean, nearest))
    comparable = inside & (nearest[:, 0] > 0) & known[target].flatten()
    error = torch.where(comparable, torch.minimum(off_mean, off_nearest), torch.inf)
    valid = error <= tolerance
    values = torch.where((off_mean <= tolerance)[:, None], mean[:, 2:], nearest[:, 2:])
    return Warped(
        maps=torch.where(valid[:, None], values, 0).mT.unflatten(1, size),
        valid=valid.unflatten(1, size),
        depth_error=error.to(depths).unflatten(1, size),
    )


def locate(
    points: Float[Tensor, "n 3"], cameras: Cameras
) -> tuple[Float[Tensor, "c n 2"], Float[Tensor, "c n"], Bool[Tensor, "c n"]]:
    """Where points appear in every view.

    Args:
        points: World frame, in the precision of the cameras. [N, 3]
        cameras: C views.

    Returns:
        Pixels divided by the image size, the middle for points outside [C, N, 2]; z-depths in world units [C, N]; and
        whether points are in front of the camera and inside the frame [C, N].
    """
    pixels, depth = cameras.project(points)
    uv = pixels / pixels.new_tensor([cameras.width, cameras.height])
    inside = (depth > 0) & (uv > 0).all(dim=-1) & (uv < 1).all(dim=-1)
    return torch.where(inside[..., None], uv, 0.5), depth, inside


def check_views(source: str, cameras: Cameras, **maps: Float[Tensor, ...]) -> None:
    """Raise for the first map that does not have one image per camera, of the cameras' size.

    Raises:
        Sr3dError: Names the map.
    """
    if cameras.K.ndim != 3:
        raise Sr3dError(source, "cameras", f"batch axes {tuple(cameras.K.shape[:-3])}", "none")
    expected = (len(cameras), cameras.height, cameras.width)
    for name, values in maps.items():
        if tuple(values.shape[:3]) != expected:
            raise Sr3dError(source, f"{name} [c, h, w]", tuple(values.shape), f"{expected}, as the cameras")
