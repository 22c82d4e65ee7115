"""Where a zoom looks: the centre in every view, and the cameras on the way."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError


def zoom_centers(point: Float[Tensor, 3], cameras: Cameras) -> tuple[Float[Tensor, "c 2"], Bool[Tensor, " c"]]:
    """Pixel of a world point in every view, and whether the view has it in its frame.

    `cameras.zoomed(factor, centers)` keeps these pixels in place, so for factor ≥ 1 the zoomed frame of a view that
    has the point lies inside its original frame, and inside the frame of every smaller factor.

    Args:
        point: World frame. [3]
        cameras: C views.
    """
    pixels, depth = cameras.project(point[None].to(cameras.K))
    pixels, depth = pixels[:, 0], depth[:, 0]
    size = torch.tensor([cameras.width, cameras.height], dtype=pixels.dtype, device=pixels.device)
    return pixels, (depth > 0) & (pixels >= 0).all(dim=-1) & (pixels <= size).all(dim=-1)


def zoom_path(camera: Cameras, center: tuple[float, float], factor: float, frames: int) -> Cameras:
    """Equal steps of the logarithm of magnification from 1 to `factor`, about a pixel that stays in place.

    Args:
        camera: One view; its whole frame is the first.
        center: Fixed pixel (u, v) of that view.
        factor: Magnification of the last frame, > 0.
        frames: Number of cameras, ≥ 2.

    Returns:
        `frames` cameras of the view's pose and image size.

    Raises:
        Sr3dError: Not exactly one camera, fewer than two frames, or a factor that is not positive.
    """
    if len(camera) != 1:
        raise Sr3dError("sr3d.zoom.zoom_path", "camera", f"{len(camera)} cameras", "one")
    if frames < 2:
        raise Sr3dError("sr3d.zoom.zoom_path", "frames", frames, "2 or more")
    if not factor > 0:
        raise Sr3dError("sr3d.zoom.zoom_path", "factor", factor, "a positive magnification")
    return Cameras.cat([camera.zoomed(factor ** (i / (frames - 1)), center) for i in range(frames)])
