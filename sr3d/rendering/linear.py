"""Drawings are linear in colours: views of fixed Gaussians as matrices from colours to low-resolution pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.gaussians import Gaussians
from sr3d.rendering import _weights
from sr3d.rendering import constants as const
from sr3d.rendering._project import TILE
from sr3d.rendering.api import Backend, render
from sr3d.rendering.cpu import as_array, project_scene
from sr3d.rendering.job import Views
from sr3d.rendering.sh import SH_C0
from sr3d.threads import share


class LinearView(ABC):
    """One view of N Gaussians: a matrix of the weights that each has in each low-resolution pixel, h × w of them."""

    @abstractmethod
    def draw(self, colors: Float[Tensor, "n 3"]) -> Float[Tensor, "h w 3"]:
        """Matrix times colours, 0 or more: the drawing, reduced by area. [N, 3] → [h, w, 3]"""

    @abstractmethod
    def collect(self, image: Float[Tensor, "h w 3"]) -> Float[Tensor, "n 3"]:
        """Transposed matrix times an image. [h, w, 3] → [N, 3]"""


def linear_views(gaussians: Gaussians, cameras: Cameras, factor: int, *, backend: Backend = "auto") -> list[LinearView]:
    """Views of fixed Gaussians, to be drawn many times in other colours.

    Args:
        gaussians: All of one scene that the views show, drawn without levels of detail; their colours do not count. [N]
        cameras: V views, of the low resolution.
        factor: Fine pixels per low-resolution one, along an axis.
        backend: "cpu" ("auto" in CPU memory) composites once and keeps the matrix; the other backends of `render` draw
            again for every product.

    Raises:
        Sr3dError: The backend cannot run here (see `render`).
    """
    fine = cameras.resized(cameras.width * factor, cameras.height * factor)
    if backend == "cpu" or (backend == "auto" and gaussians.means.device.type == "cpu"):
        return [_stored(gaussians, fine.index([i]), factor) for i in range(len(fine))]
    bare = replace(gaussians.detach(), features=None, lod=None)
    return [_Drawn(bare, fine.index([i]), factor, backend) for i in range(len(fine))]


@dataclass
class _Stored(LinearView):
    """The matrix, sparse: the weights of every pair (tile, Gaussian) in the tile's cells (`_weights.pair_weights`)."""

    count: int
    size: tuple[int, int]
    width: int
    factor: int
    start: np.ndarray
    members: np.ndarray
    weights: np.ndarray

    def draw(self, colors: Float[Tensor, "n 3"]) -> Float[Tensor, "h w 3"]:
        image = np.zeros((*self.size, 3), np.float32)
        _weights.spread(self.start, self.members, self.weights, self.factor, self.width, as_array(colors), image)
        return torch.from_numpy(image).to(colors.dtype)

    def collect(self, image: Float[Tensor, "h w 3"]) -> Float[Tensor, "n 3"]:
        values = np.zeros((self.count, 3), np.float32)
        _weights.collect(self.start, self.members, self.weights, self.factor, self.width, as_array(image), values)
        return torch.from_numpy(values).to(image.dtype)


def _stored(gaussians: Gaussians, camera: Cameras, factor: int) -> _Stored:
    """One fine camera's matrix."""
    g, none = gaussians, np.empty(0, np.float32)
    fields = (g.means, g.quats, g.scales, g.opacities, g.sh)
    views = Views(
        world_to_cam=camera.world_to_cam[None].detach(), K=camera.K[None], width=camera.width, height=camera.height,
        antialias=False, near=const.NEAR, fade=None, inspect=False,
    )  # fmt: skip
    arrays = [as_array(g.means, keep_double=True), *(as_array(t) for t in fields[1:]), none, none, none, none]
    tiled = project_scene(arrays, 0, views, 0, 0, np.zeros(1, np.int64))
    # A tile that does not begin with a whole pixel can have one more of them.
    side = TILE // factor if TILE % factor == 0 else (TILE - 2) // factor + 2
    weights = np.zeros((len(tiled.members), side, side), np.float32)
    share(
        _weights.pair_weights, (len(tiled.start) - 1) // 4, tiled.splats, tiled.start, tiled.members, views.width,
        views.height, factor, weights,
    )  # fmt: skip
    weights /= factor**2
    size = (views.height // factor, views.width // factor)
    return _Stored(len(g), size, views.width, factor, tiled.start, tiled.members, weights)


class _Drawn(LinearView):
    """By the renderer and its gradients."""

    def __init__(self, gaussians: Gaussians, camera: Cameras, factor: int, backend: Backend) -> None:
        self._gaussians, self._camera, self._factor, self._backend = gaussians, camera, factor, backend

    def draw(self, colors: Float[Tensor, "n 3"]) -> Float[Tensor, "h w 3"]:
        gaussians = replace(self._gaussians, sh=((colors - 0.5) / SH_C0)[:, None])
        drawn = render(gaussians, self._camera, lod=False, backend=self._backend).rgb[0]
        return drawn.unflatten(1, (-1, self._factor)).unflatten(0, (-1, self._factor)).mean(dim=(1, 3))

    def collect(self, image: Float[Tensor, "h w 3"]) -> Float[Tensor, "n 3"]:
        with torch.enable_grad():
            colors = torch.full_like(self._gaussians.means, 0.5).requires_grad_()
            (gathered,) = torch.autograd.grad((self.draw(colors) * image).sum(), colors)
        return gathered
