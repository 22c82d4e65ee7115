"""The level sheet of a zoom: what every level was given, what it made, and how well the views agree on it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.figures import ERROR_RANGE
from sr3d.io.atomic import atomic

_COLUMNS = ("rendered before", "guidance", "new level", "depth, world units", "difference of views")
_DPI = 100
_AREA = 300.0**2  # of a tile; pixels here and below
_WIDTHS = (210, 380)
_TALLEST = 620
_GAP, _MARGIN = 14, 20
_TOP, _HEADING, _FOOT, _LINE = 76, 44, 56, 20
_MOST_LINES = 7
_GREY = "#b4b9c2"  # no value: in neither colour map


@dataclass(kw_only=True)
class LevelPictures:
    """What one level of a zoom was given and what it made, in the frame of its first view.

    Attributes:
        level: 0 for the coarse scene.
        magnification: Of the frame after this level.
        rendered: The forest before this level, drawn in the level's frame at low resolution. [h, w, 3]
        guidance: The guiding picture, enlarged or edited by a provider; None without. [gh, gw, 3]
        words: What guided the level in words: of the vision-language model, of the user.
        new: The forest after this level, at its full resolution. [fh, fw, 3]
        depth: Of `new`; world units, 0 unknown. [fh, fw]
        error: Mean absolute colour difference between the views, 0 to 1. [fh, fw]
        seen: Whether another view sees the pixel. [fh, fw]
        gaussians: Number that the level added.
        seconds: Wall time.
        scores: Agreement of the views: `psnr` (dB), `color`, `depth`, `shared`; `low_psnr` (dB) of the new level,
            reduced, against what was there. None where it cannot be measured.
    """

    level: int
    magnification: int | float
    rendered: Float[Tensor, "h w 3"]
    guidance: Float[Tensor, "gh gw 3"] | None = None
    words: str = ""
    new: Float[Tensor, "fh fw 3"]
    depth: Float[Tensor, "fh fw"]
    error: Float[Tensor, "fh fw"]
    seen: Bool[Tensor, "fh fw"]
    gaussians: int
    seconds: int | float
    scores: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class _Row:
    """Place of one level on the sheet, in pixels from the top."""

    top: int
    height: int
    foot: int

    @property
    def bottom(self) -> int:
        return self.top + _HEADING + self.height + self.foot


def level_sheet(levels: Sequence[LevelPictures], path: str | Path, title: str = "") -> None:
    """Write a PNG with a row for each level: rendered, guidance with its words, new, depth, difference between views.

    Depth has a colour bar for each level, as the range shrinks with the frame; differences have one range for all.
    Both are grey where there is no value.

    Args:
        levels: From the first to the last.
        path: File to make or replace.
        title: Printed on top.

    Raises:
        Sr3dError: No levels, or the file cannot be written.
    """
    if not levels:
        raise Sr3dError(path, "levels", "none", "at least one level of a zoom")
    width = _tile_width(levels)
    rows: list[_Row] = []
    for pictures in levels:
        h, w = pictures.new.shape[:2]
        lines = len(_wrapped(pictures.words, width))
        foot = max(_FOOT, _LINE * lines + 16)
        top = rows[-1].bottom if rows else _TOP
        rows.append(_Row(top, max(24, min(_TALLEST, round(width * h / w))), foot))
    size = 2 * _MARGIN + len(_COLUMNS) * width + (len(_COLUMNS) - 1) * _GAP, rows[-1].bottom
    figure = Figure(figsize=(size[0] / _DPI, size[1] / _DPI), dpi=_DPI, facecolor="white")
    _text(figure, _MARGIN, 14, textwrap.shorten(title, size[0] // 11, placeholder=" …"), fontsize=14, fontweight="bold")
    for column, name in enumerate(_COLUMNS):
        _text(figure, _MARGIN + column * (width + _GAP), 48, name, fontsize=12)
    for pictures, row in zip(levels, rows):
        _draw_row(figure, pictures, row, width)
    with atomic(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def _tile_width(levels: Sequence[LevelPictures]) -> int:
    """Tiles of every aspect ratio have about the same area; one width for the sheet."""
    aspect = float(np.median([p.new.shape[1] / p.new.shape[0] for p in levels]))
    return round(min(max(math.sqrt(_AREA * aspect), _WIDTHS[0]), _WIDTHS[1]))


def _wrapped(words: str, width: int) -> list[str]:
    """Lines that fit a tile; what is too long ends in an ellipsis."""
    return textwrap.wrap(words, max(10, round(width / 8.8)), max_lines=_MOST_LINES, placeholder=" …")


def _draw_row(figure: Figure, pictures: LevelPictures, row: _Row, width: int) -> None:
    lefts = [_MARGIN + column * (width + _GAP) for column in range(len(_COLUMNS))]
    tiles = [_tile(figure, left, row.top + _HEADING, width, row.height) for left in lefts]
    foot = row.top + _HEADING + row.height + 6
    _text(figure, _MARGIN, row.top + 16, _label(pictures), fontsize=12, fontweight="bold")

    _image(tiles[0], pictures.rendered)
    _text(figure, lefts[0], foot, _size(pictures.rendered))
    if pictures.guidance is None:
        tiles[1].set_facecolor("#f2f4f7")
        tiles[1].text(0.5, 0.5, "no guidance", ha="center", va="center", color="#667085", transform=tiles[1].transAxes)
    else:
        _image(tiles[1], pictures.guidance)
    _text(figure, lefts[1], foot, "\n".join(_wrapped(pictures.words, width)), linespacing=1.25)
    _image(tiles[2], pictures.new)
    low = pictures.scores.get("low_psnr")
    reduced = "" if low is None else f"\nreduced: {low:.1f} dB"
    _text(figure, lefts[2], foot, _size(pictures.new) + reduced)

    depth = pictures.depth.detach().cpu().double().numpy()
    depth = np.where((depth > 0) & np.isfinite(depth), depth, np.nan)
    known = depth[np.isfinite(depth)]
    near, far = np.quantile(known, [0.03, 0.97]).tolist() if known.size else (0.0, 1.0)
    shown = _map(tiles[3], depth, "turbo", near, max(far, near + 1e-6 * abs(near)))
    digits = 3 + max(0, math.floor(math.log10(far / (far - near)))) if far > near else 3
    _bar(figure, shown, lefts[3], foot, width, {near: f"{near:.{digits}g}", far: f"{far:.{digits}g}"})

    error = np.where(pictures.seen.cpu().numpy(), pictures.error.detach().cpu().double().numpy(), np.nan)
    shown = _map(tiles[4], error, "magma", 0.0, ERROR_RANGE)
    ticks = {0.0: "0", ERROR_RANGE / 2: f"{ERROR_RANGE / 2:g}", ERROR_RANGE: f"≥ {ERROR_RANGE:g}"}
    _bar(figure, shown, lefts[4], foot, width, ticks)


def _label(pictures: LevelPictures) -> str:
    psnr = pictures.scores.get("psnr")
    agreement = "no other view to compare" if psnr is None else f"PSNR between views {psnr:.1f} dB"
    parts = (
        f"Level {pictures.level}, {pictures.magnification:,g}x",
        f"+{pictures.gaussians:,} Gaussians",
        f"{pictures.seconds:.3g} s",
        agreement,
    )
    return "    ".join(parts)


def _size(image: Tensor) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


def _text(figure: Figure, left: int, top: int, text: str, **style: Any) -> None:
    """Text at pixels from the left and the top; a dollar sign is a dollar sign."""
    width, height = figure.get_size_inches() * _DPI
    options: dict[str, Any] = {"fontsize": 11, "color": "#344054", **style}
    figure.text(left / width, 1 - top / height, text, va="top", parse_math=False, **options)


def _tile(figure: Figure, left: int, top: int, width: int, height: int) -> Axes:
    """Axes without ticks at pixels from the left and the top."""
    across, down = figure.get_size_inches() * _DPI
    axes = figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
    axes.set(xticks=[], yticks=[], anchor="NW")
    axes.spines[:].set_visible(False)
    return axes


def _image(axes: Axes, image: Tensor) -> None:
    values = image.detach().cpu().clamp(0, 1).numpy()
    axes.imshow(values, interpolation=_sampling(axes, values))


def _sampling(axes: Axes, values: np.ndarray) -> str:
    """Pixels stay visible where they are enlarged; many small ones are averaged."""
    return "nearest" if values.shape[1] <= axes.bbox.width and values.shape[0] <= axes.bbox.height else "antialiased"


def _map(axes: Axes, values: np.ndarray, colors: str, low: float, high: float) -> AxesImage:
    """Values in colours, grey where they are NaN."""
    shown = axes.imshow(values, cmap=colors, vmin=low, vmax=high, interpolation=_sampling(axes, values))
    shown.set_cmap(shown.get_cmap().with_extremes(bad=_GREY))
    return shown


def _bar(figure: Figure, shown: AxesImage, left: int, top: int, width: int, ticks: dict[float, str]) -> None:
    """A colour bar below a tile; the outer labels end with it."""
    axes = _tile(figure, left, top, width, 9)
    bar = figure.colorbar(shown, cax=axes, orientation="horizontal")
    bar.outline.set_visible(False)
    bar.set_ticks(list(ticks), labels=list(ticks.values()))
    axes.tick_params(labelsize=10.5, length=3, labelcolor="#344054")
    labels = axes.get_xticklabels()
    labels[0].set_horizontalalignment("left")
    labels[-1].set_horizontalalignment("right")
