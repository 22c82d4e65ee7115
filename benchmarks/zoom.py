"""The zoom loop measured: docs/zoom.md, with its plots.

    python benchmarks/zoom.py --checkpoints sr3d=small.ckpt,sr3d-zoom=large.ckpt     # a quarter of an hour on two cores
    python benchmarks/zoom.py --checkpoints sr3d=small.ckpt --parts quality,smoothness,growth

quality: eight held-out procedural worlds (those of the protocol procedural_zoom), truth drawn anew at 4x, 16x, 64x.
smoothness: 600 frames from 1x to 64x. growth: a level of the same view while the scene grows to ten million Gaussians.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, matrix_product, seconds
from zoom_docs import LEVELS, PICTURES, WORDS, Picture, picture_sheet, write

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
SOURCES: tuple[DepthSource, ...] = ("depth", "sweep")
SHOWN = 3  # worlds whose drawings are shown


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


def quality(
    networks: dict[str, SuperResolver], source: DepthSource, limit: int, pictures: Path
) -> list[dict[str, Any]]:
    """One row for each world, method and level; drawings of the first worlds, with given depth, are written."""
    rows: list[dict[str, Any]] = []
    drawn: list[Picture] = []
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
            if number < SHOWN:
                large = camera.resized(4 * camera.width, 4 * camera.height)
                images = {name: render(gaussians, large).rgb[0] for name, (gaussians, _) in made.items()}
                images["truth"] = world.render(large).images[0]
                drawn += [Picture(number, magnification, name, image) for name, image in images.items()]
        print(f"{WORDS[source]}: world {number + 1} done", flush=True)
    if source == "depth":
        picture_sheet(drawn, pictures)
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
        "quality": lambda: {s: quality(networks, s, options.limit, options.docs / PICTURES) for s in SOURCES},
        "smoothness": lambda: smoothness(network, options.frames),
        "growth": lambda: growth(network, options.most),
    }
    for folder in (options.results.parent, options.docs / "images"):
        folder.mkdir(parents=True, exist_ok=True)
    found = json.loads(options.results.read_text()) if options.results.is_file() else {}
    for name in options.parts.split(","):
        found[name] = parts[name]()
        with atomic(options.results) as temporary:
            temporary.write_text(json.dumps(found))
    write(found, ",".join(f"{name}={Path(path).name}" for name, path in named.items()), options.docs)


if __name__ == "__main__":
    main()
