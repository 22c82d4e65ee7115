"""The zoom loop measured: docs/zoom.md, with its plots.

    python benchmarks/zoom.py --checkpoints sr3d=small.ckpt,sr3d-zoom=large.ckpt     # a quarter of an hour on two cores
    python benchmarks/zoom.py --checkpoints sr3d=small.ckpt --parts quality,smoothness,growth

quality: eight held-out procedural worlds (those of the protocol procedural_zoom), truth drawn anew at 4x, 16x, 64x.
smoothness: 600 frames from 1x to 64x. growth: a level of the same view while the scene grows to ten million Gaussians.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, matrix_product, seconds
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import bootstrap

from sr3d.cameras import Cameras
from sr3d.coarse import CoarseConfig, DepthSource, coarse_gaussians
from sr3d.datasets.world import World
from sr3d.evaluation.cases.procedural import open_procedural
from sr3d.evaluation.data_config import ProceduralData, data_from_dict
from sr3d.evaluation.protocol import read_protocol
from sr3d.gaussians import Gaussians
from sr3d.io.atomic import atomic
from sr3d.lod import Forest
from sr3d.models import SuperResolver
from sr3d.rendering import render
from sr3d.scene import Scene
from sr3d.training.losses import ssim
from sr3d.training.metrics import psnr
from sr3d.zoom import LevelMaker, Predictor, ZoomConfig, ZoomLevel, level_maker, zoom_into, zoom_path
from sr3d.zoom.level import grow
from sr3d.zoom.loop import next_step, plant
from sr3d.zoom.makers import bare
from sr3d.zoom.target import target_point
from sr3d.zoom.video import draw_path

ROOT = Path(__file__).resolve().parents[1]
LEVELS = (4, 16, 64)
SOURCES: tuple[DepthSource, ...] = ("depth", "sweep")
WORDS = {"depth": "given depth", "sweep": "stereo depth"}
COLUMNS = ("level", "method", "PSNR, dB", "minus coarse", "minus optimise", "SSIM", "between views, dB", "reduced, dB",
           "Gaussians", "s", "optimise / it")  # fmt: skip
QUALITY = """Eight held-out procedural worlds (frozen in `sr3d/evaluation/protocols/procedural_zoom.yaml`), two
inputs of 48×48, a zoom about a pixel of the first one. The targets are frames of 48×48 whose truth is
drawn anew at every magnification: at 16×, three by three input pixels fill a frame, at 64× less than
one. `coarse` is the scene without any zoom, `scaffold` the same loop with an untrained network,
`corrected` that with the correction of colours (4 rounds) that the trained networks have as well: what
is beyond it has been learned. `optimise` is the same loop, forest and cameras with per-scene
optimisation of every level (100 steps; 200 were no better on training worlds). [95 % bootstrap interval
of the mean over worlds.] Between views: PSNR of what one frame shows against the other, warped by depth
with an occlusion test. Reduced: PSNR of the level, reduced 4×, against its input. Seconds: making a
level, checks included; last column: median of the ratio over worlds."""
GROWTH = """One level (4×) of the same view while the stored scene grows by Gaussians elsewhere; medians of three.
Extra MiB: high-water mark of the process over what it held before the level."""
COLORS = {"coarse": "#8a8f98", "scaffold": "#d08c2f", "corrected": "#7f6a3a", "optimise": "#b03a5b"}
NETWORKS = ("#2b6cb0", "#2f9e6e", "#7a4fb5")  # colours of networks, in their order


def worlds() -> list[tuple[World, Scene, tuple[float, float]]]:
    """World, low-resolution inputs and target of every case of the frozen index."""
    protocol = read_protocol("procedural_zoom")
    data = data_from_dict("procedural", protocol.data)
    assert isinstance(data, ProceduralData)
    cases = open_procedural(data, protocol.factor)
    out = []
    for i, entry in enumerate(data.worlds):
        case = cases.load(i)
        assert case.context is not None and case.center is not None
        out.append((World.generate(entry.seed, entry.kind), case.context, case.center))
    return out


def quality(networks: dict[str, SuperResolver], source: DepthSource, limit: int) -> list[dict[str, Any]]:
    """One row for each world, method and level."""
    rows: list[dict[str, Any]] = []
    first = next(iter(networks.values()))
    makers: dict[str, LevelMaker] = {name: level_maker("sr3d", network) for name, network in networks.items()}
    # The correction of colours without any learning: what is left to the network.
    corrected = Predictor(SuperResolver(bare(first.config)))
    makers = {
        "scaffold": level_maker("scaffold", first), "corrected": corrected, **makers,
        "optimise": level_maker("optimise", first),
    }  # fmt: skip
    for number, (world, low, center) in enumerate(worlds()[:limit]):
        coarse = coarse_gaussians(low, CoarseConfig(source=source))
        if number == 0:  # compiles what is compiled on first use
            for maker in makers.values():
                zoom_into(low, center, LEVELS[0], maker=maker, coarse=coarse)
        made: dict[str, tuple[Gaussians, list[ZoomLevel]]] = {"coarse": (replace(coarse, lod=None), [])}
        for name, maker in makers.items():
            levels: list[ZoomLevel] = []
            made[name] = zoom_into(low, center, LEVELS[-1], maker=maker, coarse=coarse, on_level=levels.append), levels
        for depth, magnification in enumerate(LEVELS, 1):
            camera = low.posed().index([0]).zoomed(float(magnification), center)
            truth = world.render(camera).images
            for name, (gaussians, levels) in made.items():
                shown = render(gaussians, camera).rgb.clamp(0, 1)
                row = {"world": number, "method": name, "magnification": magnification}
                row |= {"psnr": float(psnr(shown, truth)[0]), "ssim": float(ssim(shown, truth)[0])}
                if levels:
                    level = levels[depth]
                    agreed = {f"views_{k}": v for k, v in level.scores.items() if k != "low_psnr"}
                    row |= {"seconds": level.seconds, "gaussians": level.gaussians, **agreed}
                    row["low_psnr"] = level.scores["low_psnr"]
                rows.append(row)
        print(f"{WORDS[source]}: world {number + 1} done", flush=True)
    return rows


def smoothness(network: SuperResolver, frames: int) -> dict[str, Any]:
    """Alpha and colour along a zoom through all levels, and a switch of levels for comparison."""
    _, low, center = worlds()[0]
    forest = zoom_into(low, center, LEVELS[-1], network=network, coarse=CoarseConfig(source="depth"))
    first = low.posed().index([0])
    path = zoom_path(first, center, float(LEVELS[-1]), frames).resized(192, 192)
    shown = [render(forest, path.index([i])) for i in range(frames)]
    colors = torch.stack([r.rgb[0].mean(dim=(0, 1)) for r in shown])
    spot = torch.stack([r.rgb[0, 88:104, 88:104].mean(dim=(0, 1)) for r in shown])
    alpha = torch.stack([r.alpha[0] for r in shown])
    film = draw_path(forest, path).float() / 255
    steps = (film[1:] - film[:-1]).abs().mean(dim=(1, 2, 3))
    lod = forest.lod
    assert lod is not None
    # The same levels switched half-way between their magnifications: what a pop looks like.
    finest = [replace(forest.index(lod.level == k), lod=None) for k in range(len(LEVELS) + 1)]
    number = (torch.arange(frames) / (frames - 1) * len(LEVELS)).round().long().tolist()
    hard = torch.stack([draw_path(finest[k], path.index([i]))[0].float() / 255 for i, k in enumerate(number)])
    switched = (hard[1:] - hard[:-1]).abs().mean(dim=(1, 2, 3))
    return {
        "magnification": (LEVELS[-1] ** (torch.arange(frames) / (frames - 1))).tolist(),
        "alpha": alpha.mean(dim=(1, 2)).tolist(),
        "least_alpha": alpha.flatten(1).quantile(0.001, dim=1).tolist(),
        "holes": (alpha < 0.5).float().mean(dim=(1, 2)).tolist(),
        "color": colors.tolist(),
        "spot": spot.tolist(),
        "steps": steps.tolist(),
        "switched": switched.tolist(),
    }


def growth(network: SuperResolver, most: int) -> list[dict[str, Any]]:
    """One level of the same view, while more and more Gaussians surround the room."""
    _, low, center = worlds()[0]
    maker, config = level_maker("sr3d", network), ZoomConfig()
    rows: list[dict[str, Any]] = []
    yardstick = matrix_product()
    views, small = plant(low, None, CoarseConfig(source="depth"), network)
    base = small.gaussians()
    point = target_point(base, views, center).double()
    for total in [int(n) for n in (1e5, 1e6, 1e7) if n <= most]:
        forest = Forest.from_gaussians(Gaussians.cat([base, _elsewhere(base, views, total - len(base))]))
        assert len(forest) == total
        times, products, peaks, made = [], [], [], 0
        for _ in range(4):
            before = _reset_peak()
            times.append(seconds(lambda forest=forest: _level(forest, views, low, point, maker, config)))
            peaks.append(_peak() - before)
            products.append(seconds(yardstick))
        made = len(_level(forest, views, low, point, maker, config)) - total
        ratios = [t / p for t, p in zip(times[1:], products[1:])]
        rows.append({
            "Gaussians": total, "added": made, "seconds": float(np.median(times[1:])),
            "2000³ products": float(np.median(ratios)), "extra MiB": float(np.median(peaks[1:])),
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def _level(
    forest: Forest, views: Cameras, low: Scene, point: torch.Tensor, maker: LevelMaker, config: ZoomConfig
) -> Forest:
    """The forest with the first level of a zoom."""
    step = next_step(forest, 1, views, low.images, point, maker, config, True)
    return grow(forest, step, maker, config.reject, None, None, 0)[0]


def _elsewhere(base: Gaussians, views: Cameras, count: int) -> Gaussians:
    """Copies of a scene behind the cameras, scattered: stored, but not in view."""
    rows = torch.arange(count) % len(base)
    generator = torch.Generator().manual_seed(0)
    back = views.world_to_cam[0, 2, :3]
    away = 20 + 80 * torch.rand(count, 1, generator=generator)
    side = 20 * (torch.rand(count, 3, generator=generator) - 0.5)
    copies = base.index(rows)
    return replace(copies, means=copies.means - away * back + side)


def _reset_peak() -> float:
    """MiB resident now; the kernel's high-water mark starts again from here."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> float:
    return _status("VmHWM")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


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
        FigureCanvasAgg(figure).print_png(temporary)


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


def main() -> None:
    """Measure what is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", required=True, help="NAME=FILE, separated by commas")
    parser.add_argument("--parts", default="quality,smoothness,growth")
    parser.add_argument("--limit", type=int, default=8, help="worlds")
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--most", type=int, default=10_000_000, help="Gaussians")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--results", type=Path, default=ROOT / "outputs/benchmarks/zoom.json")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    print(machine())
    named = dict(pair.split("=", 1) for pair in options.checkpoints.split(","))
    networks = {name: SuperResolver.from_pretrained(path).eval() for name, path in named.items()}
    network = next(iter(networks.values()))
    parts: dict[str, Callable[[], Any]] = {
        "quality": lambda: {source: quality(networks, source, options.limit) for source in SOURCES},
        "smoothness": lambda: smoothness(network, options.frames),
        "growth": lambda: growth(network, options.most),
    }
    options.results.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(options.results.read_text()) if options.results.is_file() else {}
    for name in options.parts.split(","):
        found[name] = parts[name]()
        with atomic(options.results) as temporary:
            temporary.write_text(json.dumps(found))
    options.docs.joinpath("images").mkdir(parents=True, exist_ok=True)
    write(found, ",".join(f"{name}={Path(path).name}" for name, path in named.items()), options.docs)


if __name__ == "__main__":
    main()
