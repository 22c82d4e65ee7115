"""Draws the folder of a training run (metrics.csv, panels/, worst/) as pages of curves and pictures.

python benchmarks/dashboard.py RUN_FOLDER docs/images
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from sr3d.figures import read_curves
from sr3d.io.atomic import atomic
from sr3d.training.timing import PARTS

Curves = dict[str, list[tuple[float, float]]]
_LINES = {"coarse": ":", "upsampled": "--", "scaffold": "-.", "sr3d": "-"}
_WIDEST = 1500


def losses(axis: Axes, curves: Curves) -> None:
    """Every part of the loss, logarithmic, as a running mean over its noise."""
    colors = iter(matplotlib.colormaps["tab10"].colors)
    for name in sorted(curves):
        part = name.removeprefix("train/")
        values = np.array(curves[name])
        if part == name or part in ("psnr", "skipped") or not (values[:, 1] > 0).any():
            continue
        color, width = next(colors), max(1, len(values) // 20)
        axis.plot(*values.T, color=color, alpha=0.25, linewidth=0.8)
        smooth = np.convolve(values[:, 1], np.ones(width) / width, mode="valid")
        axis.plot(values[width - 1 :, 0], smooth, color=color, label=part)
    axis.set(title="losses by part", yscale="log")


def validation(axis: Axes, curves: Curves, metric: str = "psnr_covered") -> None:
    """One metric of every data set, factor and source (colours), by every method (lines)."""
    names = [m for name in sorted(curves) if (m := re.fullmatch(rf"val/(.+)/([^/]+)/{metric}", name))]
    colors = dict(zip(sorted({m[1] for m in names}), matplotlib.colormaps["tab10"].colors))
    for match in names:
        group, method = match.groups()
        axis.plot(*zip(*curves[match[0]]), _LINES.get(method, "-"), color=colors[group], marker=".")
    for group, color in colors.items():
        axis.plot([], [], color=color, label=group)
    for method in sorted({m[2] for m in names}):
        axis.plot([], [], _LINES.get(method, "-"), color="#555555", label=method)
    axis.set(title=f"validation: {metric}, dB")


def gains(axis: Axes, curves: Curves) -> None:
    """Gain over `upsampled`: mean of every source, and the worst clip."""
    for name in sorted(curves):
        if match := re.fullmatch(r"val/([^/]+)/gain|val/(worst)_gain", name):
            axis.plot(*zip(*curves[name]), marker=".", label=match[1] or match[2])
    axis.axhline(0, color="#888888", linewidth=0.8)
    axis.set(title="validation: gain over upsampled, dB")


def step_times(axis: Axes, curves: Curves) -> None:
    """Seconds of the parts of a step, one upon the other."""
    names = [f"time/{part}" for part in (*PARTS, "other") if f"time/{part}" in curves]
    if not names:
        return
    steps = sorted({s for name in names for s, _ in curves[name]})
    heights = [[dict(curves[name]).get(s, 0.0) for s in steps] for name in names]
    axis.stackplot(
        steps, heights, labels=[n.removeprefix("time/") for n in names], colors=matplotlib.colormaps["tab10"].colors
    )
    # The first steps compile; they would flatten the rest.
    top = np.quantile(np.sum(heights, axis=0), 0.95)
    axis.set(title="seconds of a step", ylim=(0, 1.2 * float(top)))


def speed(axis: Axes, curves: Curves) -> None:
    """Samples per second."""
    if "samples_per_second" in curves:
        axis.plot(*zip(*curves["samples_per_second"]), color="#3b82f6")
    axis.set(title="samples per second", ylim=(0, None))


def memory(axis: Axes, curves: Curves) -> None:
    """Gibibytes by kind."""
    for name in sorted(curves):
        if name.startswith("memory/"):
            axis.plot(*zip(*curves[name]), label=name.removeprefix("memory/"))
    axis.set(title="memory, GiB", ylim=(0, None))


def residual(axis: Axes, curves: Curves, kind: str) -> None:
    """Median, and bands that hold 50 % and 90 % of the residuals of one kind."""
    steps = [s for s, _ in curves[f"residual/{kind}/q50"]]
    low, lower, middle, upper, high = (
        [v for _, v in curves[f"residual/{kind}/q{q}"]] for q in ("05", "25", "50", "75", "95")
    )
    axis.fill_between(steps, low, high, color="#3b82f6", alpha=0.2, label="90 %")
    axis.fill_between(steps, lower, upper, color="#3b82f6", alpha=0.4, label="50 %")
    axis.plot(steps, middle, color="#1e3a8a", label="median")
    axis.set(title=f"residual: {kind}")


def page(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with three axes to a row."""
    rows = -(-count // 3)
    figure = Figure(figsize=(15, 4 * rows), layout="constrained", dpi=80)
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, 3, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def save(figure: Figure, axes: list[Axes], path: Path) -> None:
    """Finish the axes and write the page."""
    for axis in axes:
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize="small", ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    with atomic(path) as temporary:
        figure.savefig(temporary, metadata={"Software": None})


def newest(folder: Path, last: int) -> list[Path]:
    """Pictures of the last validation at or before step `last`: an earlier, longer run may have left others."""
    steps = [(int(m[1]), p) for p in sorted(folder.glob("*.png")) if (m := re.match(r"step(\d+)", p.name))]
    final = max((step for step, _ in steps if step <= last), default=None)
    return [p for step, p in steps if step == final]


def copy_small(source: Path, path: Path) -> None:
    """Copy a picture, small enough for a page on the web."""
    image = Image.open(source).convert("RGB")
    image.thumbnail((_WIDEST, 10 * _WIDEST), Image.Resampling.LANCZOS)
    with atomic(path) as temporary:
        image.save(temporary, quality=85, optimize=True)


def draw(run: Path, output: Path) -> list[Path]:
    """Draw all pages of a run that it has numbers or pictures for.

    Raises:
        Sr3dError: The run has no log, or a page cannot be written.
    """
    curves = read_curves(run / "metrics.csv")
    output.mkdir(parents=True, exist_ok=True)
    figure, axes = page(6)
    for axis, plot in zip(axes, (losses, validation, gains, step_times, speed, memory)):
        plot(axis, curves)
    written = [output / "dashboard-curves.png"]
    save(figure, axes, written[0])
    kinds = sorted({name.split("/")[1] for name in curves if name.startswith("residual/")})
    if kinds:
        figure, axes = page(len(kinds))
        for axis, kind in zip(axes, kinds):
            residual(axis, curves, kind)
        written.append(output / "dashboard-residuals.png")
        save(figure, axes, written[-1])
    last = max(int(step) for values in curves.values() for step, _ in values)
    for name in ("panels", "worst"):
        for source in newest(run / name, last):
            written.append(output / re.sub(r"^step\d+", f"dashboard-{name}", f"{source.stem}.jpg"))
            copy_small(source, written[-1])
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder with metrics.csv")
    parser.add_argument("output", type=Path, help="folder for the pages")
    arguments = parser.parse_args()
    for path in draw(arguments.run, arguments.output):
        print(path)
