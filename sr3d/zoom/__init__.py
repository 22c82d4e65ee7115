"""The zoom loop: one trained network, applied level after level; and what is shown and measured of the result."""

from sr3d.zoom.level import ZoomLevel
from sr3d.zoom.loop import ZoomConfig, zoom_into
from sr3d.zoom.makers import LevelMaker, Optimiser, Predictor, Untrained, level_maker
from sr3d.zoom.path import zoom_centers, zoom_path
from sr3d.zoom.target import Box, Pixel, Point, Query, target_point

__all__ = [
    "Box",
    "LevelMaker",
    "Optimiser",
    "Pixel",
    "Point",
    "Predictor",
    "Query",
    "Untrained",
    "ZoomConfig",
    "ZoomLevel",
    "level_maker",
    "target_point",
    "zoom_centers",
    "zoom_into",
    "zoom_path",
]
