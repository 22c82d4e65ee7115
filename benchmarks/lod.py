"""Level of detail: what it saves, whether the zoom has seams, and how deep it goes.

    python benchmarks/lod.py [--quick] [--study levels|sweep|deep|gpu ...]

levels  five levels over the whole view: a frame at the finest one with level of detail, and with all Gaussians drawn
sweep   400 frames over three level changes: error of the cross-fade, change from frame to frame, distance to truth
deep    2²⁰× by focal length and by dolly against the float64 reference, and what plain float32 makes of it
gpu     frames per second at 1080p for up to 50 M stored Gaussians (where there is a CUDA device)
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from common import Report, measure, seconds
from matplotlib import pyplot as plt
from stored import copies_of
from torch import Tensor

import sr3d
from sr3d import Cameras, Gaussians
from sr3d.datasets import World
from sr3d.datasets.pyramid import pyramid
from sr3d.lod import Forest, fade, visibility
from sr3d.rendering import rgb_to_sh

matplotlib.use("agg")

SEED = 30_002  # a world of the procedural test split


def psnr(a: Tensor, b: Tensor) -> float:
    """dB of two images in [0, 1]."""
    return -10 * math.log10(max((a.double() - b.double()).square().mean().item(), 1e-20))


def levels_study(report: Report, quick: bool) -> None:
    """Five levels over whole frames of four rooms, seen at the finest: with level of detail against drawing everything.

    What is saved follows stored / visible, so windows of three sizes are shown.
    """
    size, windows = (48, [48, 24]) if quick else (200, [200, 128, 64])
    world = World.generate(SEED)
    camera = world.sample_cameras(1, size, size)[0].to(torch.float64)
    flat = copies_of(pyramid(world, camera, 5, 2).gaussians(torch.float64), 4)
    forest = Forest.from_gaussians(flat)
    flat = flat.to(torch.float32)
    rows, panels = [], {}
    for window in windows:
        # Magnified to the finest level: one Gaussian for each pixel of the window.
        center = (0.55 * size, 0.5 * size)
        whole = camera.zoomed(16.0, center)
        view = whole.cropped(int(center[0] - window / 2), int(center[1] - window / 2), window, window)
        truth = world.render(view, samples=16).images[0]
        ways: dict[str, Callable[[], sr3d.Rendering]] = {
            "forest, level of detail": lambda v=view: sr3d.render(forest, v),
            "forest, all levels": lambda v=view: sr3d.render(forest, v, lod=False),
            "all Gaussians, level of detail": lambda v=view: sr3d.render(flat, v),
            "all Gaussians, all levels": lambda v=view: sr3d.render(flat, v, lod=False),
        }
        forest_way = ways["forest, level of detail"]
        for name, call in ways.items():
            timing = measure(call, forest_way, 7)
            rows.append(
                {
                    "way": name,
                    "window": f"{window}x{window}",
                    "stored": len(forest),
                    "ms": timing.ms,
                    "times slower than the forest": timing.ratio,
                    "PSNR to truth, dB": psnr(call().rgb[0], truth),
                }
            )
        panels |= {f"truth, {window} px": truth}
        panels |= {
            f"{name}, {window} px": ways[name]().rgb[0]
            for name in ("forest, level of detail", "all Gaussians, all levels")
        }
    report.table("five levels, view at the finest", rows)
    _panels(report.folder / "levels.png", panels)


def sweep_study(report: Report, quick: bool) -> None:
    """A zoom from 1× to 64× through a four-level forest, factor 4: three level changes."""
    size, frames = (64, 100) if quick else (128, 400)
    world = World.generate(SEED)
    camera = world.sample_cameras(1, size, size)[0].to(torch.float64)
    center = (0.55 * size, 0.52 * size)
    forest = pyramid(world, camera, 4, 4, center=center)
    factors = np.geomspace(1, 64, frames)
    views = [camera.zoomed(float(f), center) for f in factors]
    truth = [world.render(view, samples=4).images[0] for view in views[:: max(1, frames // 50)]]
    pairs = _pairs(forest, 2000)
    curves: dict[str, dict[str, np.ndarray]] = {}
    rows = []
    for mode in ("minimax", "linear"):
        images = [sr3d.render(forest, view, lod=mode) for view in views]
        rgb = torch.stack([image.rgb[0] for image in images])
        change = (rgb[1:] - rgb[:-1]).abs().mean(dim=(1, 2, 3)).numpy()
        error = np.array([_pair_error(pairs, view, mode) for view in views])
        own = np.array([_pair_error(pairs, view, mode, own_depth=True) for view in views])
        quality = np.array([psnr(image, t) for image, t in zip(rgb[:: max(1, frames // 50)], truth)])
        low = np.array([image.alpha.min().item() for image in images])
        curves[mode] = {"error": error, "change": change, "psnr": quality, "alpha": low}
        rows.append(
            {
                "fade": mode,
                "frames": frames,
                "largest alpha error of a pair": float(error.max()),
                "the same, each at its own depth": float(own.max()),
                "largest change / median change": float(change.max() / np.median(change)),
                "largest change / mean of its neighbours": _spike(change),
                "lowest alpha": float(low.min()),
                "mean PSNR to truth, dB": float(quality.mean()),
                "lowest PSNR": float(quality.min()),
            }
        )
    report.table("zoom sweep, three level changes", rows)
    _sweep_plot(report.folder / "sweep.png", factors, curves)


def _spike(change: np.ndarray) -> float:
    """Largest ratio of one frame's change to the mean of the two frames around: a pop, whatever the content does."""
    return float((change[1:-1] / (0.5 * (change[:-2] + change[2:]))).max())


def _pairs(forest: Forest, count: int) -> tuple[Gaussians, Gaussians]:
    """Parents and children of the forest, drawn at random."""
    g = forest.gaussians(torch.float64)
    linked = (forest.parents >= 0).nonzero()[:, 0]
    chosen = linked[torch.randint(len(linked), (count,), generator=torch.Generator().manual_seed(0))]
    return g.index(forest.parents[chosen]), g.index(chosen)


def _pair_error(pairs: tuple[Gaussians, Gaussians], view: Cameras, mode: str, own_depth: bool = False) -> float:
    """Largest difference of a composited pair to one of them alone, over all kernel values.

    The two share a place, as in the derivation of the fade; with `own_depth` each is where it is.
    """
    parent, child = pairs
    depth = view.project(child.means)[1]
    depths = [view.project(parent.means)[1] if own_depth else depth, depth]
    assert parent.lod is not None and child.lod is not None
    seen = [visibility(p.lod, view.footprint(d)[0]) for p, d in zip((parent, child), depths)]
    opacity = child.opacities.double()
    kernel = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    front, back = (fade(opacity, a, mode) * kernel for a in seen)
    between = (seen[0] > 0) & (seen[1] > 0)
    error = (1 - (1 - front) * (1 - back) - opacity * kernel).abs()
    return float(error[:, between].max()) if between.any() else 0.0


def _sweep_plot(path: Path, factors: np.ndarray, curves: dict[str, dict[str, np.ndarray]]) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(11, 7))
    panels = [
        ("error", "largest alpha error of a parent-child pair", 0.25),
        ("change", "mean change from frame to frame", None),
        ("alpha", "lowest alpha in the frame", None),
        ("psnr", "PSNR to truth, dB", None),
    ]
    for axis, (name, title, line) in zip(axes.flat, panels):
        for mode, curve in curves.items():
            values = curve[name]
            axis.plot(np.geomspace(1, 64, len(values)), values, label=mode)
        if line:
            axis.axhline(line, color="grey", linestyle=":")
        for change in (1, 4, 16, 64):
            axis.axvline(change, color="grey", linewidth=0.5)
        axis.set(xscale="log", xlabel="magnification", title=title)
        axis.set_xticks([1, 4, 16, 64], ["1", "4", "16", "64"])
        axis.set_ylim(bottom=0 if name in ("error", "change") else None)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def deep_study(report: Report, quick: bool) -> None:
    """2²⁰× against the float64 reference, by focal length and by moving the camera towards the target."""
    size = 16 if quick else 32
    world = World.generate(SEED)
    camera = world.sample_cameras(1, size, size)[0].to(torch.float64)
    center = (0.55 * size, 0.52 * size)
    forest = _noisy(pyramid(world, camera, 11, 4, center=center))
    rows, panels = [], {}
    for way in ("focal length", "dolly"):
        view = camera.zoomed(2.0**20, center) if way == "focal length" else _dolly(forest, camera, center, 2.0**20)
        start = time.perf_counter()
        expected = sr3d.render(forest, view, backend="reference")
        reference_s = time.perf_counter() - start
        found = sr3d.render(forest, view)
        plain = sr3d.render(forest.gaussians(), view.to(torch.float32), near=1e-8)
        rows.append(
            {
                "way": way,
                "focal length, px": float(view.K[0, 0, 0]),
                "stored": len(forest),
                "mean alpha": float(expected.alpha.mean()),
                "forest, dB": psnr(found.rgb, expected.rgb),
                "plain float32, dB": psnr(plain.rgb, expected.rgb),
                "forest ms": 1e3 * seconds(partial(sr3d.render, forest, view)),
                "reference ms": 1e3 * reference_s,
            }
        )
        panels |= {
            f"{way}: float64 reference": expected.rgb[0],
            f"{way}: forest": found.rgb[0],
            f"{way}: plain float32": plain.rgb[0],
        }
    report.table("2²⁰× against the float64 reference", rows)
    _panels(report.folder / "deep.png", panels)


def _noisy(forest: Forest) -> Forest:
    """The forest with random colours: at 2²⁰× a world has no texture left that could show an error."""
    g = torch.Generator().manual_seed(0)
    levels = [
        replace(level, gaussians=replace(level.gaussians, sh=rgb_to_sh(torch.rand(len(level), 3, generator=g))))
        for level in forest.levels
    ]
    return Forest(levels=tuple(levels))


def _dolly(forest: Forest, camera: Cameras, center: tuple[float, float], factor: float) -> Cameras:
    """The camera moved along the ray of a pixel until the surface there is `factor` times closer."""
    zoomed = camera.zoomed(factor, center)
    column, row = int(center[0]), int(center[1])
    depth = sr3d.render(forest, zoomed, median_depth=True, backend="reference").median_depth
    assert depth is not None
    ray = torch.tensor([*center, 1.0], dtype=torch.float64)
    cam = torch.linalg.inv(camera.K[0]) @ ray * depth[0, row, column]
    moved = camera.world_to_cam.clone()
    moved[0, :3, 3] -= cam * (1 - 1 / factor)
    return replace(camera, world_to_cam=moved)


def gpu_study(report: Report, quick: bool) -> None:
    """Frames per second at 1080p, the visible cut the same: stored Gaussians, memory, and whose time it is."""
    if not torch.cuda.is_available():
        report.console.print("gpu: no CUDA device, nothing measured")
        return
    import gsplat

    world = World.generate(SEED)
    camera = world.sample_cameras(1, 480, 270)[0].to(torch.float64)
    base = pyramid(world, camera, 3, 2)  # the finest level has one Gaussian for each pixel of 1080p
    view = camera.resized(1920, 1080)
    rows = []
    for stored in [1_000_000] if quick else [1_000_000, 10_000_000, 50_000_000]:
        many = copies_of(base.gaussians(torch.float64), max(1, stored // len(base)))
        forest = Forest.from_gaussians(many).to("cuda")
        for lod in (True, False):
            torch.cuda.reset_peak_memory_stats()
            call = partial(sr3d.render, forest, view, lod=lod)
            frame = measure(call, lambda: None, 30)
            spent = _inside_gsplat(gsplat, call)
            rows.append(
                {
                    "stored": len(forest),
                    "level of detail": lod,
                    "FPS": 1e3 / frame.ms,
                    "ms": frame.ms,
                    "share outside gsplat": 1 - spent * 1e3 / frame.ms,
                    "peak memory GB": torch.cuda.max_memory_allocated() / 1e9,
                }
            )
        del forest
    report.table("1080p on the GPU", rows)


def _inside_gsplat(gsplat: object, call: Callable[[], object]) -> float:
    """Seconds that one call spends in gsplat's kernels."""
    names = ["fully_fused_projection", "isect_tiles", "isect_offset_encode", "rasterize_to_pixels"]
    kept, spent = {name: getattr(gsplat, name) for name in names}, []

    def timed(original: Callable[..., object]) -> Callable[..., object]:
        def inner(*args: object, **options: object) -> object:
            out: list[object] = []
            spent.append(seconds(lambda: out.append(original(*args, **options))))
            return out[0]

        return inner

    try:
        for name, original in kept.items():
            setattr(gsplat, name, timed(original))
        call()
    finally:
        for name, original in kept.items():
            setattr(gsplat, name, original)
    return sum(spent)


def _panels(path: Path, images: dict[str, Tensor]) -> None:
    """Images side by side, enlarged without smoothing."""
    columns = min(3, len(images))
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 4.3 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, image) in zip(axes.flat, images.items()):
        axis.imshow(image.clamp(0, 1).numpy(), interpolation="nearest")
        axis.set_title(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


STUDIES = {"levels": levels_study, "sweep": sweep_study, "deep": deep_study, "gpu": gpu_study}


def main() -> None:
    """Run the studies, print their tables, write JSON and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small scenes")
    parser.add_argument("--study", nargs="+", choices=list(STUDIES), default=list(STUDIES), help="which ones")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks"), help="folder for JSON and pictures")
    options = parser.parse_args()
    report = Report(options.output, "lod")
    for name in options.study:
        STUDIES[name](report, options.quick)


if __name__ == "__main__":
    main()
