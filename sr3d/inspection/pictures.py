"""Pictures of an inspection: a contact sheet of the views, and the cameras seen from above."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.figures import depth_map, depth_range
from sr3d.inspection.shots import Shot
from sr3d.io.atomic import atomic

_TILE, _GAP, _TEXT = 200, 6, 18
_PAPER, _INK, _BAD = (250, 250, 250), (40, 40, 40), (210, 30, 30)
_MOST_TILES, _MOST_POINTS = 48, 60_000


def contact_sheet(shots: Sequence[Shot], path: Path, bad: Sequence[int] = ()) -> None:
    """Write a PNG with the views in order, their names, and their depth beneath; views in `bad` get a red frame.

    Raises:
        Sr3dError: The file cannot be written.
    """
    chosen = np.linspace(0, len(shots) - 1, min(len(shots), _MOST_TILES)).round().astype(int)
    shown = sorted({*chosen.tolist(), *bad})
    ratio = max(s.small.shape[0] / s.small.shape[1] for s in shots)
    width, height = (_TILE, round(_TILE * ratio)) if ratio <= 1 else (round(_TILE / ratio), _TILE)
    depths = any(s.depth is not None for s in shots)
    cell = (width + _GAP, _TEXT + height * (2 if depths else 1) + 2 * _GAP)
    columns = min(len(shown), max(4, round(math.sqrt(len(shown) * 1.6 * cell[1] / cell[0]))))
    rows = -(-len(shown) // columns)
    sheet = Image.new("RGB", (columns * cell[0] + _GAP, rows * cell[1] + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    known = [torch.from_numpy(s.depth) for s in shots if s.depth is not None]
    limits = depth_range(torch.cat([d.reshape(1, -1) for d in known], dim=1)) if known else (0.0, 1.0)
    for k, i in enumerate(shown):
        shot = shots[i]
        left, top = _GAP + k % columns * cell[0], _GAP + k // columns * cell[1]
        color = _BAD if i in bad else _INK
        draw.text((left, top), _fit(shot.name, width, font), fill=color, font=font)
        sheet.paste(_tile(shot.small, (width, height)), (left, top + _TEXT))
        if shot.depth is not None:
            picture = depth_map(torch.from_numpy(shot.depth), limits).numpy()
            sheet.paste(_tile(picture, (width, height)), (left, top + _TEXT + height + 2))
        if i in bad:
            draw.rectangle(
                (left - 2, top + _TEXT - 2, left + width + 1, top + cell[1] - _GAP - 4), outline=_BAD, width=3
            )
    with atomic(_in_folder(path)) as temporary:
        sheet.save(temporary)


def _tile(image: Float[np.ndarray, "h w 3"], box: tuple[int, int]) -> Image.Image:
    """An image in [0, 1] fitted into a box (width, height), on paper colour."""
    picture = Image.fromarray((image * 255).round().clip(0, 255).astype(np.uint8))
    scale = min(box[0] / picture.width, box[1] / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    out = Image.new("RGB", box, _PAPER)
    out.paste(picture.resize(size, Image.Resampling.BICUBIC), ((box[0] - size[0]) // 2, (box[1] - size[1]) // 2))
    return out


def _fit(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The end of a name that is too long for its tile: numbers are there."""
    while len(text) > 4 and font.getlength(text) > width:
        text = "…" + text[2:]
    return text


def top_view(
    world_to_cam: Float64[np.ndarray, "v 4 4"],
    K: Float64[np.ndarray, "v 3 3"],
    width: int,
    path: Path,
    *,
    title: str,
    points: Float[Tensor, "p 3"] | None = None,
    depth: float | None = None,
    bad: Sequence[int] = (),
) -> None:
    """Write a PNG of the cameras seen from above, in the order of the views from dark to bright.

    Up is the mean of the cameras' own up (-y). Points are drawn in grey.

    Args:
        world_to_cam: Rigid poses, OpenCV axes.
        K: Pixels of images of `width`.
        width: Of the images in pixels.
        path: File to make or replace.
        title: Printed on top.
        points: World frame; scene points. [P, 3]
        depth: Typical depth in world units; sets the length of the wedges.
        bad: Views drawn in red.

    Raises:
        Sr3dError: The file cannot be written.
    """
    to_world = np.linalg.inv(world_to_cam)
    axes_2d = _ground(to_world)
    centres = to_world[:, :3, 3]
    flat = centres @ axes_2d.T
    extent = float(np.linalg.norm(flat.max(0) - flat.min(0)))
    length = max(0.05 * extent, 0.12 * depth if depth else 0.0, 1e-9)
    wedges = [_wedge(m, k, width, length) @ axes_2d.T for m, k in zip(to_world, K)]
    cloud = None
    low = high = flat[0]
    if points is not None and len(points):
        cloud = points[:: max(1, len(points) // _MOST_POINTS)].double().numpy() @ axes_2d.T
        low, high = np.quantile(cloud, [0.01, 0.99], axis=0)
    corners = np.concatenate([*wedges, flat, [low], [high]])
    margin = 0.05 * max(float(np.ptp(corners, axis=0).max()), 1e-9)
    low, high = corners.min(0) - margin, corners.max(0) + margin
    figure = Figure(figsize=_figure_size(high - low), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    if cloud is not None:
        axes.scatter(cloud[:, 0], cloud[:, 1], s=1.5, c="0.55", alpha=0.3, linewidths=0)
    order = np.arange(len(flat))
    axes.plot(flat[:, 0], flat[:, 1], color="0.35", linewidth=0.7, zorder=3)
    collection = PolyCollection(
        wedges, array=order, cmap="viridis", edgecolors="black", linewidths=0.4, alpha=0.75, zorder=4
    )
    axes.add_collection(collection)
    marked = flat[list(bad)]
    axes.scatter(marked[:, 0], marked[:, 1], s=160, facecolors="none", edgecolors="red", linewidths=2, zorder=6)
    for i in {0, len(flat) - 1}:
        axes.annotate(str(i), flat[i], fontsize=9, zorder=7, xytext=(4, 4), textcoords="offset points")
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", title=title)
    axes.set_xticks([])
    axes.set_yticks([])
    _scale_bar(axes, low, high)
    if len(flat) > 1:
        figure.colorbar(collection, ax=axes, label="view", shrink=0.6, ticks=MaxNLocator(integer=True))
    write_figure(figure, path)


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, making its folder.

    Raises:
        Sr3dError: The file cannot be written.
    """
    with atomic(_in_folder(path)) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def _in_folder(path: Path) -> Path:
    """A path whose folder exists now."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Sr3dError(path.parent, "output", error.strerror or error, "a folder that can be written") from error
    return path


def _figure_size(extent: Float64[np.ndarray, 2]) -> tuple[float, float]:
    """Inches for a map of this extent, with room for the title and the colour bar."""
    scale = 8 / float(extent.max())
    return max(3.0, scale * float(extent[0])) + 1.2, max(2.0, scale * float(extent[1])) + 0.5


def _ground(to_world: Float64[np.ndarray, "v 4 4"]) -> Float64[np.ndarray, "2 3"]:
    """Right and ahead of the mean camera, in the plane across the cameras' mean up."""
    up = -to_world[:, :3, 1].mean(0)
    up = up / np.linalg.norm(up) if np.linalg.norm(up) > 1e-6 else np.array([0.0, 0.0, 1.0])
    ahead = to_world[:, :3, 2].mean(0)
    ahead = ahead - (ahead @ up) * up
    if np.linalg.norm(ahead) < 0.05:  # views all around, or straight down
        ahead = np.eye(3)[int(np.abs(up).argmin())]
        ahead = ahead - (ahead @ up) * up
    ahead = ahead / np.linalg.norm(ahead)
    return np.stack([np.cross(ahead, up), ahead])


def _wedge(
    to_world: Float64[np.ndarray, "4 4"], K: Float64[np.ndarray, "3 3"], width: int, length: float
) -> Float64[np.ndarray, "3 3"]:
    """Camera centre, and the ends of its field of view at half height. [3, 3]"""
    left, right = -K[0, 2] / K[0, 0], (width - K[0, 2]) / K[0, 0]
    corners = np.array([[0, 0, 0], [left, 0, 1], [right, 0, 1]]) * length
    return corners @ to_world[:3, :3].T + to_world[:3, 3]


def _scale_bar(axes: Axes, low: Float64[np.ndarray, 2], high: Float64[np.ndarray, 2]) -> None:
    """A bar of 1, 2 or 5 times a power of ten, about a fifth of the width."""
    wanted = 0.2 * (high[0] - low[0])
    power = 10 ** math.floor(math.log10(wanted))
    bar = max(f for f in (1, 2, 5) if f * power <= wanted) * power
    start = low + 0.04 * (high - low)
    axes.plot([start[0], start[0] + bar], [start[1]] * 2, color="black", linewidth=3, solid_capstyle="butt", zorder=8)
    axes.text(
        start[0] + bar / 2, start[1] + 0.012 * (high[1] - low[1]), f"{bar:g} units", ha="center", va="bottom", zorder=8
    )
