"""The zoom as a video."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import imageio.v3 as iio
import torch
from jaxtyping import UInt8
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.io.atomic import atomic
from sr3d.lod import Forest
from sr3d.rendering import render


def video_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """Even width and height of about the aspect ratio of `width` × `height`, the longer side about `longest`."""
    scale = longest / max(width, height)
    return max(2, 2 * round(width * scale / 2)), max(2, 2 * round(height * scale / 2))


@torch.no_grad()
def draw_path(
    gaussians: Gaussians | Forest, path: Cameras, on_frame: Callable[[], None] | None = None
) -> UInt8[Tensor, "f h w 3"]:
    """One picture for each camera of a path, in CPU memory. Levels of detail fade by footprint: at twice the image size
    a level comes in at half the magnification.

    Args:
        gaussians: World frame; of a forest only what each frame sees is visited.
        path: F cameras.
        on_frame: Called after each.
    """
    frames = torch.empty(len(path), path.height, path.width, 3, dtype=torch.uint8)
    for i in range(len(path)):
        rgb = render(gaussians, path.index([i])).rgb[0]
        frames[i] = (rgb.clamp(0, 1) * 255).round().to("cpu", torch.uint8)
        if on_frame is not None:
            on_frame()
    return frames


def write_video(frames: UInt8[Tensor, "f h w 3"], path: str | Path, fps: int = 24) -> None:
    """Write an H.264 mp4 (yuv420p, plays everywhere); the file appears only when it is complete.

    Args:
        frames: Even height and width.
        path: File to make or replace, ending in .mp4.
        fps: Frames per second.

    Raises:
        Sr3dError: Another ending, odd size, no frames, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".mp4":
        raise Sr3dError(path, "name", repr(path.suffix), "'.mp4'")
    count, height, width = frames.shape[:3]
    if count == 0 or height % 2 or width % 2:
        raise Sr3dError(path, "frames", f"{count} of {width} x {height}", "at least one, of even width and height")
    with atomic(path) as temporary:
        iio.imwrite(
            temporary,
            frames.numpy(),
            plugin="FFMPEG",
            fps=fps,
            codec="libx264",
            pixelformat="yuv420p",
            quality=8,
            macro_block_size=2,
        )
