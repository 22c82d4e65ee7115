"""Posed low-resolution views to pixel-aligned coarse Gaussians, without training; and the baseline `upsampled`."""

from sr3d.coarse.config import CoarseConfig, DepthEnlargement, DepthSource
from sr3d.coarse.depth import estimate_depth
from sr3d.coarse.place import coarse_gaussians, pixel_gaussians, upsampled_gaussians
from sr3d.coarse.surface import enlarge, enlarge_depth

__all__ = [
    "CoarseConfig",
    "DepthEnlargement",
    "DepthSource",
    "coarse_gaussians",
    "enlarge",
    "enlarge_depth",
    "estimate_depth",
    "pixel_gaussians",
    "upsampled_gaussians",
]
