"""Where a Gaussian is seen: projection into every view, occlusion test, and sampling of image-aligned maps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sr3d.cameras import Cameras


@dataclass(kw_only=True)
class GatherConfig:
    """Occlusion test and choice between views.

    Attributes:
        occlusion_tolerance: A point is hidden where it lies more than this fraction of the depth behind the surface.
        color_tolerance: A view whose low-resolution colour differs by this much from the Gaussian's loses weight
            (standard deviation, colours in 0..1): it looks at something else there.
    """

    occlusion_tolerance: float = 0.03
    color_tolerance: float = 0.05


@dataclass(kw_only=True)
class Sight:
    """Projections of N points into V views.

    Attributes:
        uv: Pixels divided by image size, 0..1 inside the frame. [B, V, N, 2]
        depth: z-depth, world units. [B, V, N]
        behind: Relative distance behind the surface of the coarse scene, in units of four occlusion tolerances and
            clipped to −1..1; 0 outside the frame or where there is no surface. [B, V, N]
        visible: 1 where inside the frame and not hidden, else 0. [B, V, N]
        raw: Weight of each view before it is normalised, 0 outside its frame. [B, V, N]
        home: 1 for the view whose pixels the point's parent follows, where the point is inside its frame (hidden or
            not), else 0. [B, V, N]
    """

    uv: Float[Tensor, "b v n 2"]
    depth: Float[Tensor, "b v n"]
    behind: Float[Tensor, "b v n"]
    visible: Float[Tensor, "b v n"]
    raw: Float[Tensor, "b v n"]
    home: Float[Tensor, "b v n"]

    @property
    def weights(self) -> Float[Tensor, "b v n"]:
        """Share of each view in a fused value; sums to 1 over views, or to 0 outside all frames. [B, V, N]"""
        return normalised(self.raw)

    @property
    def seen(self) -> Float[Tensor, "b v n"]:
        """Equal shares of the views that see a point. [B, V, N]"""
        return self.visible / self.visible.sum(dim=1, keepdim=True).clamp_min(1)


def normalised(raw: Float[Tensor, "b v n"]) -> Float[Tensor, "b v n"]:
    """Weights that sum to 1 over the views, or to 0 where all are 0."""
    return raw / raw.sum(dim=1, keepdim=True).clamp_min(1e-12)


def sample(
    maps: Float[Tensor, "b v c h w"], uv: Float[Tensor, "b v n 2"], mode: str = "bilinear"
) -> Float[Tensor, "b v c n"]:
    """Read image-aligned maps at positions in 0..1 (pixel centres at +0.5); the border value outside."""
    grid = (2 * uv - 1).flatten(0, 1)[:, None]
    out = torch.nn.functional.grid_sample(
        maps.flatten(0, 1), grid, mode=mode, padding_mode="border", align_corners=False
    )
    return out[:, :, 0].unflatten(0, uv.shape[:2])


def locate(
    points: Float[Tensor, "b n 3"],
    colors: Float[Tensor, "b n 3"],
    cameras: Cameras,
    surface: Float[Tensor, "b v h w"],
    images: Float[Tensor, "b v 3 hl wl"],
    home: Int[Tensor, "b n"],
    config: GatherConfig,
) -> Sight:
    """Project points into every view and decide which views see them.

    Args:
        points: World frame. [B, N, 3]
        colors: Their colour before super-resolution. [B, N, 3]
        cameras: V views for each scene. [B, V]
        surface: z-depth of the coarse scene drawn into the views, 0 where it has none. [B, V, H, W]
        images: Views at low resolution. [B, V, 3, h, w]
        home: The view whose pixels each point's parent follows. [B, N]
        config: Tolerances.
    """
    pixels, depth = cameras.project(points)
    uv = pixels / torch.tensor([cameras.width, cameras.height], dtype=points.dtype, device=points.device)
    # Points behind a camera have meaningless pixels, possibly infinite: they read the frame's centre at weight 0.
    inside = (depth > 0) & (uv > 0).all(dim=-1) & (uv < 1).all(dim=-1)
    uv = torch.where(inside[..., None], uv, torch.full_like(uv, 0.5))
    front = sample(surface[:, :, None], uv, mode="nearest")[:, :, 0]
    behind = torch.where(front > 0, depth / front.clamp_min(1e-9) - 1, torch.zeros_like(depth))
    visible = (inside & (behind < config.occlusion_tolerance)).to(points.dtype)
    difference = (sample(images, uv) - colors.mT[:, None]).square().mean(dim=2)
    affinity = torch.exp(-difference / (2 * config.color_tolerance**2)) + 1e-3
    raw = affinity * (visible + 1e-4 * inside.to(points.dtype))
    at_home = torch.nn.functional.one_hot(home, uv.shape[1]).mT.to(points.dtype)
    clip = config.occlusion_tolerance * 4
    return Sight(
        uv=uv,
        depth=depth,
        behind=(behind * inside).clamp(-clip, clip) / clip,
        visible=visible,
        raw=raw,
        home=at_home * inside,
    )


def fuse(values: Float[Tensor, "b v c n"], weights: Float[Tensor, "b v n"]) -> Float[Tensor, "b c n"]:
    """Weighted sum over views."""
    return (values * weights[:, :, None]).sum(dim=1)
