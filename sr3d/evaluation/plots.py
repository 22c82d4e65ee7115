"""Plots of an evaluation: quality against cost, differences scene by scene, quality level by level."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from sr3d.evaluation.results import Results, Scored
from sr3d.evaluation.sheets import heading, number
from sr3d.evaluation.statistics import Mean, Summary
from sr3d.io.atomic import atomic

Kind = Literal["svg", "png"]
Cost = Literal["seconds", "gaussians"]

_COLORS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#a855f7", "#06b6d4", "#ec4899", "#84cc16")
_MARKERS = "osD^vPX*"
_WIN, _LOSS, _TIE = "#10b981", "#ef4444", "#9ca3af"
_COST_TITLES = {"seconds": "seconds per case, coarse stage included", "gaussians": "Gaussians"}
_NAMED = 40  # scenes; more are drawn without their names


@dataclass
class _Canvas:
    """A figure with one axis, and its file once it is drawn."""

    axis: Any
    written: bytes = b""


@dataclass(kw_only=True)
class Focus:
    """What plots and pictures are about.

    Attributes:
        column: Covered PSNR where it was measured, else the first metric that was.
        level: The highest magnification at which it was measured.
        method: `sr3d`, else the last method.
        differences: Scene (case, where there is one scene only) → `method` − baseline, from best to worst.
    """

    column: str
    level: int
    method: str
    differences: dict[str, float] = field(default_factory=dict)


def focus_of(results: Results, summary: Summary) -> Focus | None:
    """What plots and pictures are about; None where no metric of single views has a value."""
    measured = {c: level for level in summary.levels for means in summary.means[level].values() for c in means}
    column = next((c for c in ("psnr_covered", *results.columns) if c in measured and c in results.columns), None)
    if column is None:
        return None
    named = [label for label, identity in results.methods.items() if "sr3d" in (label, identity.get("method"))]
    others = [label for label in results.methods if label != summary.baseline]
    method = [summary.baseline, *others, *(label for label in named if label in others)][-1]
    focus = Focus(column=column, level=measured[column], method=method)
    if method != summary.baseline:
        found = differences(results, summary, method, column, focus.level)
        sign = 1 if results.columns[column]["better"] == "higher" else -1
        focus.differences = dict(sorted(found.items(), key=lambda item: -sign * item[1]))
    return focus


def differences(results: Results, summary: Summary, method: str, column: str, level: int) -> dict[str, float]:
    """Scene (case, where there is one scene only) → `method` − baseline, over the views where both have a value.

    Their mean is that of `Summary.paired`.
    """
    pairs: dict[str, list[tuple[float, float]]] = {}
    for case in results.cases:
        own, base = (case.values.get(m, {}).get(column, []) for m in (method, summary.baseline))
        found = [(a, b) for a, b, at in zip(own, base, case.levels) if at == level and a is not None and b is not None]
        pairs.setdefault(unit_name(case, summary), []).extend(found)
    return {name: fmean(a for a, _ in found) - fmean(b for _, b in found) for name, found in pairs.items() if found}


def unit_name(case: Scored, summary: Summary) -> str:
    """Name of the scene of a case, or its own where there is one scene only."""
    return case.scene if summary.unit == "scene" else case.case


def quality_against(results: Results, summary: Summary, focus: Focus, cost: Cost, kind: Kind = "svg") -> bytes | None:
    """One point per method, with 95 % intervals of quality, over a logarithmic cost.

    Args:
        results: What was found.
        summary: Its statistics.
        focus: Level and metric.
        cost: Seconds from input views to Gaussians, or number of Gaussians; means over scenes (cases).
        kind: An SVG element for pages of any colour, or a PNG on white.

    Returns:
        None where no method has both.
    """
    means = summary.means[focus.level]
    both = {m: means[m] for m in results.methods if cost in means.get(m, {}) and focus.column in means[m]}
    points = {m: (found[cost].mean, found[focus.column]) for m, found in both.items() if found[cost].mean > 0}
    if not points:
        return None
    with _drawn(kind, (6.4, 3.5)) as canvas:
        for method, (x, mean) in points.items():
            _series(canvas.axis, results, method, [x], [mean], f"{cost}-{method}")
        canvas.axis.set(xlabel=_COST_TITLES[cost], ylabel=heading(focus.column, results.columns[focus.column]))
        _logarithmic(canvas.axis, [x for x, _ in points.values()])
        _legend(canvas.axis)
    return canvas.written


def quality_by_level(results: Results, summary: Summary, focus: Focus, kind: Kind = "svg") -> bytes | None:
    """A line per method with 95 % intervals: quality over magnification. None with fewer than two levels."""
    if len(summary.levels) < 2:
        return None
    with _drawn(kind, (6.4, 3.5)) as canvas:
        for place, method in enumerate(results.methods):
            found = {level: m for level in summary.levels if (m := summary.means[level][method].get(focus.column))}
            # A little aside of each other: intervals would hide those of other methods.
            xs = [level * 2 ** (0.07 * (place - (len(results.methods) - 1) / 2)) for level in found]
            _series(canvas.axis, results, method, xs, list(found.values()), f"level-{method}")
        canvas.axis.set_xscale("log", base=2)
        canvas.axis.set_xticks(summary.levels, [f"{level}×" for level in summary.levels])
        canvas.axis.xaxis.set_minor_locator(NullLocator())
        canvas.axis.set(xlabel="magnification", ylabel=heading(focus.column, results.columns[focus.column]))
        _legend(canvas.axis)
    return canvas.written


def paired_differences(results: Results, summary: Summary, focus: Focus, kind: Kind = "svg") -> bytes | None:
    """A bar per scene, the best on top, and the mean with its 95 % interval. None without differences."""
    if not focus.differences:
        return None
    about, names = results.columns[focus.column], list(focus.differences)
    named = len(names) <= _NAMED
    sign = 1 if about["better"] == "higher" else -1
    with _drawn(kind, (6.4, 1.5 + 0.22 * len(names) if named else 4.5)) as canvas:
        axis, rows = canvas.axis, range(len(names))
        values = list(focus.differences.values())
        colors = [_WIN if sign * v > 0 else _LOSS if v else _TIE for v in values]
        for row, bar in enumerate(axis.barh(rows, values, color=colors, height=0.72 if named else 1.0)):
            bar.set_gid(f"difference-{row}")
        paired = summary.paired[focus.level][focus.method][focus.column]
        if paired.low is not None and paired.high is not None:
            axis.axvspan(paired.low, paired.high, color=_COLORS[0], alpha=0.16, linewidth=0, label="95 % interval")
        axis.axvline(
            paired.difference, color=_COLORS[0], linewidth=1.4, label=f"mean {number(paired.difference, about, '+')}"
        )
        axis.axvline(0, color="#888888", linewidth=0.9)
        axis.set_yticks(rows if named else [], [shortened(n, 28) for n in names] if named else [])
        axis.tick_params(axis="y", length=0)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.set_xlabel(
            f"{heading(focus.column, about)}: {shortened(focus.method, 24)} minus {shortened(summary.baseline, 24)}"
        )
        if not named:
            axis.set_ylabel(f"{len(names)} {summary.unit}s")
        _legend(axis)
    return canvas.written


def save_plots(results: Results, summary: Summary, folder: Path) -> list[Path]:
    """Write every plot that there is as a PNG on white into `folder`, which is made where it is missing.

    Returns:
        `quality_seconds.png`, `quality_gaussians.png`, `differences.png` and `levels.png`, those that were written.
    """
    focus = focus_of(results, summary)
    if focus is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "quality_seconds": quality_against(results, summary, focus, "seconds", "png"),
        "quality_gaussians": quality_against(results, summary, focus, "gaussians", "png"),
        "differences": paired_differences(results, summary, focus, "png"),
        "levels": quality_by_level(results, summary, focus, "png"),
    }
    paths = []
    for name, content in found.items():
        if content is not None:
            with atomic(folder / f"{name}.png") as temporary:
                temporary.write_bytes(content)
            paths.append(folder / f"{name}.png")
    return paths


def shortened(name: str, longest: int) -> str:
    """A name without its middle where it has more than `longest` letters."""
    half = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[-half:]}"


def _series(axis: Any, results: Results, method: str, xs: list[Any], means: list[Mean], gid: str) -> None:
    """Points of one method, joined, with their intervals."""
    place = list(results.methods).index(method)
    color, marker = _COLORS[place % len(_COLORS)], _MARKERS[place % len(_MARKERS)]
    label = shortened(method, 28)
    (line,) = axis.plot(xs, [m.mean for m in means], color=color, marker=marker, linewidth=1.4, label=label, zorder=3)
    line.set_gid(gid)
    for x, mean in zip(xs, means):
        if mean.low is not None and mean.high is not None:
            ends = [mean.low, mean.high]
            (bar,) = axis.plot([x, x], ends, color=color, linewidth=1.4, alpha=0.55, marker="_", zorder=2)
            bar.set_gid(f"{gid}-interval")


def _logarithmic(axis: Any, values: list[float]) -> None:
    """A logarithmic x axis at least four times as long as where it begins, with ticks that are plain numbers."""
    low, high = min(values), max(values)
    margin = max((high / low) ** 0.08, (4 / min(4, high / low)) ** 0.5, 1.1)
    axis.set_xscale("log")
    axis.set_xlim(low / margin, high * margin)
    axis.xaxis.set_major_locator(
        LogLocator(subs=(1, 2, 5) if high / low < 20 else (1, 3) if high / low < 5000 else (1,))
    )
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _compact(value)))
    axis.xaxis.set_minor_locator(NullLocator())


def _legend(axis: Any) -> None:
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def _compact(value: float) -> str:
    """2, 20, 20 k, 2 M."""
    size, letter = next(((s, x) for s, x in ((1e6, " M"), (1e3, " k")) if value >= s), (1.0, ""))
    return f"{value / size:.6g}{letter}"


@contextmanager
def _drawn(kind: Kind, size: tuple[float, float]) -> Iterator[_Canvas]:
    """Draw in the block; the file is there after it. The same drawing gives the same bytes."""
    style = {"svg.fonttype": "none", "svg.hashsalt": "sr3d", "font.family": "sans-serif", "font.size": 10}
    ink = "#888888" if kind == "svg" else "#222222"
    parts = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    with matplotlib.rc_context({**style, "text.parse_math": False, **dict.fromkeys(parts, ink)}):
        figure = Figure(figsize=size, layout="constrained")
        canvas = _Canvas(figure.subplots())
        canvas.axis.set_facecolor("none")
        canvas.axis.spines[["top", "right"]].set_visible(False)
        canvas.axis.grid(alpha=0.25)
        canvas.axis.set_axisbelow(True)
        yield canvas
        buffer, metadata = io.BytesIO(), {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, transparent=kind == "svg", dpi=150, metadata=metadata)
    written = buffer.getvalue()
    canvas.written = written[written.index(b"<svg") :] if kind == "svg" else written
