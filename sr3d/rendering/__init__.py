"""Gaussians and cameras to images: one function, three backends that draw the same picture."""

from sr3d.rendering.api import Backend, Rendering, choose_backend, render
from sr3d.rendering.sh import rgb_to_sh, sh_to_rgb

__all__ = ["Backend", "Rendering", "choose_backend", "render", "rgb_to_sh", "sh_to_rgb"]
