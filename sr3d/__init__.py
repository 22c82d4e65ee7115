"""sr3d: feed-forward 3D super-resolution of Gaussian-splatting scenes."""

from typing import TYPE_CHECKING, Any

from sr3d import lod
from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.io import load_scene
from sr3d.rendering import Rendering, render
from sr3d.scene import Scene

if TYPE_CHECKING:
    from sr3d.models import SuperResolver, SuperResolverConfig
    from sr3d.zoom import zoom_into

__version__ = "0.1.0"

__all__ = [
    "Cameras",
    "Gaussians",
    "Rendering",
    "Scene",
    "Sr3dError",
    "SuperResolver",
    "SuperResolverConfig",
    "load_scene",
    "lod",
    "render",
    "zoom_into",
]

# Names whose modules import timm, which takes seconds: they are imported when first used.
_LAZY = {"SuperResolver": "sr3d.models", "SuperResolverConfig": "sr3d.models", "zoom_into": "sr3d.zoom"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'sr3d' has no attribute {name!r}")
