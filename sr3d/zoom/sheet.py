"""The contact sheet: every method at every magnification, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sr3d.errors import Sr3dError
from sr3d.io.atomic import atomic
from sr3d.zoom.measure import Magnified

_ROWS = {"truth": "truth", "bicubic": "input view,\nbicubic", "coarse": "coarse", "sr3d": "sr3d"}


def contact_sheet(columns: Sequence[Magnified], path: str | Path, title: str = "") -> None:
    """Write a PNG: one column for each magnification; rows truth (where known), bicubic, coarse, sr3d, and its depth.

    Tiles have the pixels of the low-resolution input and are enlarged without interpolation.

    Args:
        columns: From `magnify`, one image size.
        path: File to make or replace.
        title: Printed on top.

    Raises:
        Sr3dError: No columns, or the file cannot be written.
    """
    if not columns:
        raise Sr3dError(path, "columns", "none", "at least one magnification")
    rows = [name for name in _ROWS if any(name in c.images for c in columns)]
    height, width = columns[0].depth.shape
    tile = 2.2
    figure = Figure(figsize=(tile * len(columns) + 1.4, tile * height / width * (len(rows) + 1) + 1.0), dpi=110)
    axes = figure.subplots(len(rows) + 1, len(columns), squeeze=False)
    for j, column in enumerate(columns):
        scores = column.scores()
        axes[0, j].set_title(f"{column.magnification:g}x", fontsize=11)
        for i, name in enumerate(rows):
            _tile(axes[i, j], _ROWS[name] if j == 0 else "")
            if name not in column.images:
                axes[i, j].text(
                    0.5, 0.5, "not known", ha="center", va="center", fontsize=8, transform=axes[i, j].transAxes
                )
                continue
            axes[i, j].imshow(column.images[name].clamp(0, 1).cpu().numpy(), interpolation="nearest")
            if "psnr" in scores.get(name, {}):
                axes[i, j].set_xlabel(f"{scores[name]['psnr']:.2f} dB", fontsize=8, labelpad=2)
        _depth_tile(figure, axes[-1, j], column, "depth" if j == 0 else "")
    figure.suptitle(title, fontsize=11)
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    with atomic(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def _tile(axes: Axes, label: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_ylabel(label, fontsize=9)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _depth_tile(figure: Figure, axes: Axes, column: Magnified, label: str) -> None:
    """Depth with a colour bar of its own: the range shrinks as the frame does."""
    _tile(axes, label)
    depth = column.depth.cpu()
    known = depth[depth > 0]
    shown = torch.where(depth > 0, depth, torch.nan).numpy()
    low, high = (float(known.quantile(q)) for q in (0.03, 0.97)) if len(known) else (0.0, 1.0)
    picture = axes.imshow(shown, cmap="turbo", vmin=low, vmax=max(high, low + 1e-6 * abs(low)), interpolation="nearest")
    bar = figure.colorbar(picture, ax=axes, orientation="horizontal", fraction=0.06, pad=0.03)
    bar.set_ticks([low, high], labels=[f"{low:.3g}", f"{high:.3g}"])
    bar.ax.tick_params(labelsize=7, length=2)
