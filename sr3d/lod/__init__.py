"""Level of detail: visibility and cross-fade of parents and children, and the forest that keeps them in blocks."""

from sr3d.gaussians import Lod
from sr3d.lod.fade import MINIMAX_LAMBDA, FadeMode, fade, visibility
from sr3d.lod.forest import Forest
from sr3d.lod.level import BLOCK, Blocks, Level, Split

__all__ = [
    "BLOCK",
    "MINIMAX_LAMBDA",
    "Blocks",
    "FadeMode",
    "Forest",
    "Level",
    "Lod",
    "Split",
    "fade",
    "visibility",
]
