"""docs/zoom.md, from what benchmarks/zoom.py has measured."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import bootstrap

from sr3d.io.atomic import atomic
from sr3d.models.consistency import ConsistencyConfig

ROOT = Path(__file__).resolve().parents[1]
LEVELS = (4, 16, 64)
WORDS = {"depth": "given depth", "sweep": "stereo depth"}
COLUMNS = ("level", "method", "PSNR, dB", "minus coarse", "minus optimise", "SSIM", "between views, dB", "reduced, dB",
           "Gaussians", "s", "optimise / it")  # fmt: skip
QUALITY = f"""Eight held-out procedural worlds (frozen in `sr3d/evaluation/protocols/procedural_zoom.yaml`), two
inputs of 48×48, a zoom about a pixel of the first one. The targets are frames of 48×48 whose truth is
drawn anew at every magnification: at 16×, three by three input pixels fill a frame, at 64× less than
one. `coarse` is the scene without any zoom, `scaffold` the same loop with an untrained network,
`corrected` that with the correction of colours ({ConsistencyConfig().rounds} rounds) that the trained networks have as
well: what is beyond it has been learned. `optimise` is the same loop, forest, cameras and correction
with per-scene optimisation of every level (100 steps; 200 were no better on training worlds). [95 % bootstrap interval
of the mean over worlds.] Between views: PSNR of what one frame shows against the other, warped by depth
with an occlusion test. Reduced: PSNR of the level, reduced 4×, against its input. Seconds: making a
level, checks included; last column: median of the ratio over worlds."""
GROWTH = """One level (4×) of the same view while the stored scene grows by Gaussians elsewhere; medians of three.
Extra MiB: high-water mark of the process over what it held before the level."""
COLORS = {"coarse": "#8a8f98", "scaffold": "#d08c2f", "corrected": "#7f6a3a", "optimise": "#b03a5b"}
NETWORKS = ("#2b6cb0", "#2f9e6e", "#7a4fb5")  # colours of networks, in their order
PICTURES = "images/zoom_pictures.jpg"  # below docs


@dataclass
class Picture:
    """What a method shows of a world at a magnification. [H, W, 3]"""

    world: int
    magnification: int
    method: str
    image: torch.Tensor


def picture_sheet(pictures: list[Picture], path: Path) -> None:
    """One row for each world and magnification, one column for each method."""
    rows = list(dict.fromkeys((p.world, p.magnification) for p in pictures))
    columns = list(dict.fromkeys(p.method for p in pictures))
    figure = Figure(figsize=(1.35 * len(columns), 1.35 * len(rows) + 0.3), dpi=110)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for p in pictures:
        ax = axes[rows.index((p.world, p.magnification)), columns.index(p.method)]
        ax.imshow(p.image.clamp(0, 1).numpy())
        ax.set_xticks([])
        ax.set_yticks([])
        if p.method == columns[0]:
            ax.set_ylabel(f"world {p.world + 1}, {p.magnification}×", fontsize=7)
        if (p.world, p.magnification) == rows[0]:
            ax.set_title(p.method, fontsize=8)
    _save(figure, path)


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval."""
    if len(set(values)) < 2:
        return float(np.mean(values)), values[0], values[0]
    found = bootstrap((np.array(values),), np.mean, method="percentile", rng=np.random.default_rng(0))
    return float(np.mean(values)), float(found.confidence_interval.low), float(found.confidence_interval.high)


def quality_table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: one line for each level and method."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    out = [
        f"| {' | '.join(COLUMNS)} |",
        "|" + "---|" * len(COLUMNS),
    ]
    for magnification in LEVELS:
        at = [row for row in rows if row["magnification"] == magnification]

        def column(method: str, name: str, at: list[dict[str, Any]] = at) -> list[float]:
            return [row[name] for row in at if row["method"] == method and row.get(name) is not None]

        for method in methods:
            own = column(method, "psnr")
            cells = [f"{magnification}×", method, f"{np.mean(own):.2f}"]
            for other in ("coarse", "optimise"):
                difference = [a - b for a, b in zip(own, column(other, "psnr"))]
                mean, low, high = interval(difference)
                cells.append("–" if method == other else f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]")
            cells.append(f"{np.mean(column(method, 'ssim')):.3f}")
            for name, digits in (("views_psnr", 1), ("low_psnr", 1), ("gaussians", 0)):
                values = column(method, name)
                cells.append(f"{np.mean(values):,.{digits}f}" if values else "–")
            times, others = column(method, "seconds"), column("optimise", "seconds")
            cells.append(f"{np.mean(times):.2f}" if times else "–")
            cells.append(f"{np.median([o / t for o, t in zip(others, times)]):.0f} ×" if times else "–")
            out.append(f"| {' | '.join(cells)} |")
    return out


def quality_plot(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """PSNR against the coarse scene for each level, and seconds for each level."""
    methods = [m for m in dict.fromkeys(row["method"] for row in next(iter(found.values()))) if m != "coarse"]
    colors = COLORS | dict(zip((m for m in methods if m not in COLORS), NETWORKS))
    figure = Figure(figsize=(10, 3.4), dpi=110)
    axes = figure.subplots(1, len(found) + 1, squeeze=False)[0]
    for ax, (source, rows) in zip(axes, found.items()):
        for method in methods:
            means = []
            for magnification in LEVELS:
                own, base = (
                    [r["psnr"] for r in rows if r["method"] == m and r["magnification"] == magnification]
                    for m in (method, "coarse")
                )
                means.append(interval([a - b for a, b in zip(own, base)]))
            middle, low, high = (np.array(v) for v in zip(*means))
            x = np.arange(len(LEVELS)) + 0.06 * (methods.index(method) - 1)
            ax.errorbar(x, middle, [middle - low, high - middle], marker="o", color=colors[method], label=method)
        ax.axhline(0, color=COLORS["coarse"], lw=1)
        ax.set_xticks(range(len(LEVELS)), [f"{m}×" for m in LEVELS])
        ax.set_title(f"PSNR minus coarse, dB: {WORDS[source]}", fontsize=9)
        ax.legend(fontsize=8)
    rows = next(iter(found.values()))
    for i, method in enumerate(methods):
        times = [
            np.mean([r["seconds"] for r in rows if r["method"] == method and r["magnification"] == m]) for m in LEVELS
        ]
        axes[-1].bar(np.arange(len(LEVELS)) + 0.2 * (i - 1), times, 0.19, color=colors[method], label=method)
    axes[-1].set_yscale("log")
    axes[-1].set_xticks(range(len(LEVELS)), [f"{m}×" for m in LEVELS])
    axes[-1].set_title("seconds for a level", fontsize=9)
    _save(figure, path)


def smoothness_plot(found: dict[str, Any], path: Path) -> None:
    """Alpha, colour and change from frame to frame against magnification."""
    figure = Figure(figsize=(10, 3.2), dpi=110)
    axes = figure.subplots(1, 3)
    x = np.array(found["magnification"])
    axes[0].plot(x, found["alpha"], label="mean", color=NETWORKS[0])
    axes[0].plot(x, found["least_alpha"], label="0.1 % quantile", color=COLORS["scaffold"])
    axes[0].set_ylim(0, 1.02)
    axes[0].set_title("alpha", fontsize=9)
    axes[0].legend(fontsize=8)
    for channel, color in enumerate(("#c0392b", "#27ae60", "#2b6cb0")):
        axes[1].plot(x, np.array(found["spot"])[:, channel], color=color)
    axes[1].set_title("colour of the middle sixteenth", fontsize=9)
    axes[2].plot(x[1:], found["switched"], color=COLORS["coarse"], lw=0.8, label="levels switched")
    axes[2].plot(x[1:], found["steps"], color=NETWORKS[0], label="cross-fade")
    axes[2].set_title("mean change from frame to frame", fontsize=9)
    axes[2].legend(fontsize=8)
    for ax in axes:
        ax.set_xscale("log", base=2)
        for m in (4, 16):
            ax.axvline(m, color="#cccccc", lw=0.8, zorder=0)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    with atomic(path) as temporary:
        FigureCanvasAgg(figure).print_figure(temporary, format=path.suffix[1:])


def write(found: dict[str, Any], checkpoints: str, docs: Path) -> None:
    """docs/zoom.md and its plots."""
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    hardware = ", ".join(f"{k} {v}" for k, v in machine().items())
    out = [
        "# The zoom loop, measured",
        "",
        f"`python benchmarks/zoom.py --checkpoints {checkpoints}` (commit {commit.strip()}) writes this page:",
        hardware,
        "",
    ]  # fmt: skip
    if "quality" in found:
        quality_plot(found["quality"], docs / "images" / "zoom_quality.png")
        out += [
            "## Quality and time for a level", "",
            QUALITY, "",
        ]  # fmt: skip
        for source, rows in found["quality"].items():
            out += [f"### {WORDS[source].capitalize()}", "", *quality_table(rows), ""]
        out += ["![PSNR against the coarse scene; seconds](images/zoom_quality.png)", ""]
        out += ["Given depth, drawn at four times the resolution that is compared:", "", f"![Drawings]({PICTURES})", ""]
    if "smoothness" in found:
        smoothness_plot(found["smoothness"], docs / "images" / "zoom_smoothness.png")
        s = found["smoothness"]
        steps = np.array(s["steps"])
        out += [
            "## Smoothness", "",
            f"{len(s['alpha'])} frames of 192×192 from 1× to {LEVELS[-1]}×, world 1.",
            f"Least mean alpha {min(s['alpha']):.4f};",
            f"at most {100 * max(s['holes']):.2f} % of pixels have less than 0.5.",
            f"Largest change from frame to frame {steps.max() / np.median(steps):.2f} times the median;",
            f"levels switched instead of faded: {max(s['switched']) / np.median(s['switched']):.1f} times.", "",
            "![Alpha, colour and change along the zoom](images/zoom_smoothness.png)", "",
        ]  # fmt: skip
    if "growth" in found:
        names = list(found["growth"][0])
        out += [
            "## Growing scenes", "",
            GROWTH, "",
            f"| {' | '.join(names)} |", "|" + "---|" * len(names),
        ]  # fmt: skip
        out += [
            "| " + " | ".join(f"{v:,.2f}" if isinstance(v, float) else f"{v:,}" for v in r.values()) + " |"
            for r in found["growth"]
        ]
        out.append("")
    with atomic(docs / "zoom.md") as temporary:
        temporary.write_text("\n".join(out), encoding="utf-8")
