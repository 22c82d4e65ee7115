"""What `render` asks of a backend, and what it gets back."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from sr3d.lod import FadeMode, Lod


@dataclass(kw_only=True, frozen=True)
class Views:
    """C cameras for each of B scenes, and how to draw.

    Attributes:
        world_to_cam: OpenCV axes; float64 where the caller has it. [B, C, 4, 4]
        K: Pixels; float64 where the caller has it. [B, C, 3, 3]
        width: Pixels.
        height: Pixels.
        antialias: Scale opacity by the area that the 0.3 px² low-pass adds (gsplat's antialiased mode).
        near: z-depth below which nothing is drawn, world units.
        fade: Cross-fade of levels, None to draw all of them.
        inspect: Also return `Raster.median_depth` and `Raster.ids`.
    """

    world_to_cam: Float[Tensor, "b c 4 4"]
    K: Float[Tensor, "b c 3 3"]
    width: int
    height: int
    antialias: bool
    near: float
    fade: FadeMode | None
    inspect: bool


@dataclass(kw_only=True, frozen=True)
class Splats:
    """Gaussians of B scenes end to end, world frame: scene b is rows `offsets[b]` to `offsets[b + 1]`.

    Attributes:
        means: World units. [N, 3]
        quats: wxyz, any norm > 0. [N, 4]
        scales: World units. [N, 3]
        opacities: Before the cross-fade. [N]
        sh: Spherical-harmonic colour. [N, K, 3]
        features: Further channels. [N, D]
        lod: Footprints; None draws everything at full opacity. [N]
        offsets: First row of each scene, then N. [B + 1]
    """

    means: Float[Tensor, "n 3"]
    quats: Float[Tensor, "n 4"]
    scales: Float[Tensor, "n 3"]
    opacities: Float[Tensor, " n"]
    sh: Float[Tensor, "n k 3"]
    features: Float[Tensor, "n d"] | None
    lod: Lod | None
    offsets: list[int]


@dataclass(kw_only=True, frozen=True)
class Raster:
    """Images as they leave a backend.

    Attributes:
        image: Accumulated (alpha-weighted, no background) rgb, z-depth and features. [B, C, H, W, 4 + D]
        alpha: 1 − transmittance. [B, C, H, W]
        median_depth: z-depth of the splat that brings the transmittance to ½ or below, 0 where none does. [B, C, H, W]
        ids: Row, counted from the scene's first, of the splat with the largest weight, the nearest of equals; −1
            where nothing is drawn. [B, C, H, W]
    """

    image: Float[Tensor, "b c h w channels"]
    alpha: Float[Tensor, "b c h w"]
    median_depth: Float[Tensor, "b c h w"] | None = None
    ids: Int[Tensor, "b c h w"] | None = None
