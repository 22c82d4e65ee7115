"""sr3d: feed-forward 3D super-resolution of Gaussian-splatting scenes."""

from sr3d import lod
from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.io import load_scene
from sr3d.rendering import Rendering, render
from sr3d.scene import Scene

__version__ = "0.1.0"

__all__ = ["Cameras", "Gaussians", "Rendering", "Scene", "Sr3dError", "load_scene", "lod", "render"]
