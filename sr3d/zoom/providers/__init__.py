"""Networks that propose pixels, depths, masks and words for a zoom: each behind a small interface, none of them needed.

What they propose is lifted to Gaussians by the loop, under its own checks, so that one can take the place of another.
`load_provider` makes one from `NAME` or `NAME:ARGUMENT`; the first name of every kind needs no download.
"""

from sr3d.zoom.providers.base import (
    AuxiliaryViews,
    DepthGuess,
    Edit,
    Editor,
    ImageSuperResolution,
    MonocularDepth,
    Segmenter,
    VisionLanguage,
)
from sr3d.zoom.providers.registry import load_provider, provider_names

__all__ = [
    "AuxiliaryViews",
    "DepthGuess",
    "Edit",
    "Editor",
    "ImageSuperResolution",
    "MonocularDepth",
    "Segmenter",
    "VisionLanguage",
    "load_provider",
    "provider_names",
]
