"""Settings of the coarse stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DepthEnlargement = Literal["nearest", "bilinear", "edge", "joint"]


@dataclass
class CoarseConfig:
    """How posed views become one Gaussian per pixel.

    Attributes:
        source: Where depth comes from: "depth" takes `scene.depths`, "sweep" measures it by plane-sweep stereo.
        sigma: In-plane standard deviation in pixels of the view.
        thickness: Standard deviation along the normal as a fraction of the in-plane one.
        opacity: Of every Gaussian that has a depth.
        max_stretch: Largest 1/cos(slope) by which a Gaussian is stretched along the slope of its surface.
        upsampled_sigma: `sigma` of `upsampled_gaussians`, in pixels of the enlarged view.
        upsampled_opacity: `opacity` of `upsampled_gaussians`.
        enlargement: How `upsampled_gaussians` enlarges depth (see `sr3d.coarse.enlarge_depth`).
    """

    source: Literal["depth", "sweep"] = "depth"
    sigma: float = 0.5
    thickness: float = 0.1
    opacity: float = 0.9
    max_stretch: float = 3.0
    upsampled_sigma: float = 0.5
    upsampled_opacity: float = 0.9
    enlargement: DepthEnlargement = "edge"
