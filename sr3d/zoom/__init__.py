"""The zoom loop: one trained network, applied level after level; and what is shown and measured of the result."""

from sr3d.zoom.loop import ZoomLevel, target_point, zoom_into
from sr3d.zoom.path import zoom_centers, zoom_path

__all__ = ["ZoomLevel", "target_point", "zoom_centers", "zoom_into", "zoom_path"]
