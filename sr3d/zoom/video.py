"""The zoom as a video."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.io.atomic import atomic
from sr3d.lod import Forest
from sr3d.rendering import render

_BAR = 0.25  # longest scale bar, of the frame's width
_METRES = ("m", "metre", "metres", "meter", "meters")
_PREFIXES = {"km": 3, "m": 0, "cm": -2, "mm": -3, "um": -6, "nm": -9}


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


def scale_bar(
    frames: UInt8[Tensor, "f h w 3"],
    path: Cameras,
    depth: Float[Tensor, "*f"] | float | int,
    unit: str | None = None,
) -> UInt8[Tensor, "f h w 3"]:
    """Frames with the magnification and a scale bar at the target's depth, in the upper left corner.

    Players cover the lower edge with their controls. The bar is the longest of 1, 2, 5 × 10ᵏ that fits a
    quarter of the frame: length · fx / depth pixels. The magnification is that of lengths at the target, against the
    first frame.

    Args:
        frames: What the path shows; not changed.
        path: F cameras.
        depth: z-depth of the target, world units; one for all frames or one each. [] or [F]
        unit: Of the world: "m" is written with prefixes (km to nm), any other name as it is, None as "units".

    Raises:
        Sr3dError: The cameras are not those of the frames, or a depth is not positive and finite.
    """
    found = (len(path), path.height, path.width)
    if found != tuple(frames.shape[:3]):
        raise Sr3dError("sr3d.zoom.scale_bar", "path", f"{found} (cameras, height, width)", tuple(frames.shape[:3]))
    depths = torch.as_tensor(depth, dtype=torch.float64)
    if depths.ndim and len(depths) != len(path):
        raise Sr3dError("sr3d.zoom.scale_bar", "depth", f"{len(depths)} depths", f"one, or {len(path)}")
    if not ((depths > 0) & depths.isfinite()).all():
        raise Sr3dError("sr3d.zoom.scale_bar", "depth", depth, "positive finite numbers")
    pixels = (path.K[:, 0, 0].to("cpu", torch.float64) / depths.cpu()).tolist()  # per world unit
    out = torch.empty_like(frames, device="cpu")
    for i, per_unit in enumerate(pixels):
        mantissa, exponent = rounded_length(_BAR * path.width / per_unit)
        length = round(float(f"{mantissa}e{exponent}") * per_unit)
        magnification = per_unit / pixels[0]
        times = f"{magnification:,.{1 if magnification < 99.95 else 0}f}x"
        drawn = _with_bar(frames[i].cpu().numpy(), length, (times, length_label(mantissa, exponent, unit)))
        out[i] = torch.from_numpy(drawn)
    return out


def rounded_length(limit: float) -> tuple[int, int]:
    """The largest m · 10ᵏ that is at most `limit` > 0, m being 1, 2 or 5. Returns (m, k)."""
    start = math.floor(math.log10(limit)) - 1  # log10 may be off by a rounding error
    steps = [(mantissa, exponent) for exponent in range(start, start + 3) for mantissa in (1, 2, 5)]
    return [step for step in steps if float("{}e{}".format(*step)) <= limit * (1 + 1e-9)][-1]


def length_label(mantissa: int, exponent: int, unit: str | None) -> str:
    """Text of the length m · 10ᵏ: "20 cm" for 2, −1, "m"; "5e-6 units" where there is no unit.

    Metres have prefixes from nm to km. Lengths beyond those, and other units under 0.01 or from 1000 on, are written
    in scientific form.
    """
    if unit in _METRES:
        prefix = next((name for name, least in _PREFIXES.items() if exponent >= least), None)
        if prefix is not None and exponent < 6:
            return f"{mantissa * 10 ** (exponent - _PREFIXES[prefix])} {prefix}"
        return f"{mantissa}e{exponent} m"
    number = f"{float(f'{mantissa}e{exponent}'):g}" if -2 <= exponent <= 2 else f"{mantissa}e{exponent}"
    return f"{number} {unit or 'units'}"


def _with_bar(frame: np.ndarray, length: int, lines: tuple[str, ...]) -> np.ndarray:
    """White with a black outline: lines of text, and a bar of `length` pixels below them."""
    size = max(9, round(min(frame.shape[:2]) / 16))
    margin, thick, edge = round(0.8 * size), max(2, round(size / 5)), max(1, round(size / 10))
    picture = Image.fromarray(frame)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size)
    bottom = margin + round(1.25 * size * len(lines)) + 3 * thick
    parts = [
        (margin, bottom - thick, margin + length, bottom),
        (margin, bottom - 3 * thick, margin + thick, bottom),
        (margin + length - thick, bottom - 3 * thick, margin + length, bottom),
    ]
    for grow, color in ((edge, "black"), (0, "white")):
        for left, top, right, low in parts:  # the last column and row of a rectangle are drawn too
            draw.rectangle((left - grow, top - grow, right + grow - 1, low + grow - 1), fill=color)
    for row, text in enumerate(lines):
        place = (margin, margin + round(1.25 * size * row))
        draw.text(place, text, "white", font, anchor="lt", stroke_width=edge, stroke_fill="black")
    return np.array(picture)
