"""Settings of the coarse stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

DepthEnlargement = Literal["nearest", "bilinear", "edge", "joint"]
DepthSource = Literal["depth", "sweep"]


@dataclass
class SweepConfig:
    """Plane-sweep stereo.

    Attributes:
        step: Largest distance of neighbouring planes, in pixels of parallax.
        max_planes: Upper bound of their number.
        sources: Views compared with every view: from the nearest to the farthest one that sees the same place.
        window: Side of the square matching window, pixels, odd.
        support: Colour difference, in [0, 1], at which a pixel of the window loses its say.
        balance: Weight of correlation (ZNCC) in the matching cost; the rest is absolute difference.
        truncation: Absolute difference, in [0, 1], beyond which two pixels are just different.
        noise: Variance of colour under which a window counts as flat.
        unseen: Matching cost, above the pixel's lowest, of planes that no other view sees.
        small_jump: Cost of a change of depth by one plane between neighbours (P1 of semi-global matching).
        large_jump: Cost of a larger change where colour is even (P2).
        edge: Colour difference at which a larger change costs little more than a small one.
        max_reprojection: Views agree where they predict each other's pixels to within this many pixels.
        speck: Patches of fewer agreeing pixels are not believed.
        smoothing: Rounds of local plane fitting after matching.
        tolerance: Neighbours whose parallax differs by more than this many pixels per pixel do not share a plane.
    """

    step: float = 0.35
    max_planes: int = 192
    sources: int = 4
    window: int = 3
    support: float = 0.4
    balance: float = 0.5
    truncation: float = 0.15
    noise: float = 2e-4
    unseen: float = 0.05
    small_jump: float = 0.05
    large_jump: float = 0.3
    edge: float = 0.4
    max_reprojection: float = 0.75
    speck: int = 12
    smoothing: int = 2
    tolerance: float = 0.15


@dataclass
class CoarseConfig:
    """How posed views become one Gaussian per pixel.

    The defaults of sizes and opacities are the best that `benchmarks/tune_baselines.py` finds on procedural training
    worlds, to within 0.01 dB.

    Attributes:
        source: Where depth comes from: "depth" takes `scene.depths`, "sweep" measures it by plane-sweep stereo.
        sigma: In-plane standard deviation in pixels of the view.
        thickness: Standard deviation along the normal as a fraction of the in-plane one.
        opacity: Of every Gaussian that has a depth.
        max_stretch: Largest 1/cos(slope) by which a Gaussian is stretched along the slope of its surface.
        upsampled_sigma: `sigma` of `upsampled_gaussians`, in pixels of the enlarged view.
        upsampled_opacity: `opacity` of `upsampled_gaussians`.
        sweep: Settings of source "sweep".
        enlargement: How `upsampled_gaussians` enlarges depth (see `sr3d.coarse.enlarge_depth`).
    """

    source: DepthSource = "depth"
    sigma: float = 0.45
    thickness: float = 0.1
    opacity: float = 0.99
    max_stretch: float = 3.0
    upsampled_sigma: float = 0.25
    upsampled_opacity: float = 0.99
    enlargement: DepthEnlargement = "edge"
    sweep: SweepConfig = field(default_factory=SweepConfig)
