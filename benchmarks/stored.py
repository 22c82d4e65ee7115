"""Frame time and memory against stored Gaussians, with the visible ones the same."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from common import Report, measure, seconds
from matplotlib import pyplot as plt

import sr3d
from sr3d import Cameras, Gaussians
from sr3d.datasets import World
from sr3d.datasets.pyramid import pyramid
from sr3d.lod import Forest, Lod

SEED = 30_002  # a world of the procedural test split
ROOM = 20.0  # metres between copies: more than a room's size


def copies_of(base: Gaussians, count: int) -> Gaussians:
    """The scene `count` times, side by side in world x."""
    shifts = [torch.tensor([ROOM * i, 0, 0], dtype=base.means.dtype) for i in range(count)]
    return Gaussians.cat([replace(base, means=base.means + shift) for shift in shifts])


def views_of(camera: Cameras) -> dict[str, Cameras]:
    """What a four-level pyramid of factor 2 is looked at with: little, some, and most of what is in front of it."""
    return {
        "overview: the frame, between levels 1 and 2": camera.resized(3 * camera.width, 3 * camera.height),
        "close-up: a quarter of the width, finest level": camera.resized(2 * camera.width, 2 * camera.height).zoomed(
            4.0
        ),
        "most of the finest two levels": camera.resized(4 * camera.width, 4 * camera.height).zoomed(1.5),
    }


def stored_study(report: Report, copies: list[int], size: int, repeats: int) -> None:
    """Table, plot and JSON: the same frame of a four-level forest that is stored alone and among its copies.

    Every forest is timed in turn with the smallest one; the last is also written, mapped and drawn in a new process.
    """
    world = World.generate(SEED)
    camera = world.sample_cameras(1, size, size)[0].to(torch.float64)
    base = pyramid(world, camera, 4, 2).gaussians(torch.float64)
    alone = Forest.from_gaussians(base)
    rows: list[dict[str, object]] = []
    for count in copies:
        forest = Forest.from_gaussians(copies_of(base, count))
        for name, view in views_of(camera).items():
            expected, found = sr3d.render(alone, view).rgb, sr3d.render(forest, view).rgb
            timing = measure(partial(sr3d.render, forest, view), partial(sr3d.render, alone, view), repeats)
            rows.append(
                {
                    "view": name,
                    "stored": len(forest),
                    "ms": timing.ms,
                    "ratio to the smallest": timing.ratio,
                    "ms, every Gaussian tested": _flat_ms(forest, view) if count <= 4 else "-",
                    "dB to the smallest": -10 * math.log10(max((found - expected).square().mean().item(), 1e-15)),
                }
            )
    report.table("frame time, the same visible cut", rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.sr3d"
        appended = [_append(alone, Path(folder) / "small.sr3d"), _append(forest, path)]
        mapped = [_mapped(path, name, view, size) for name, view in views_of(camera).items()]
    report.table("10,240 children appended to a forest on disk", appended)
    report.table("mapped from files, each view in a new process", mapped)
    _plot(report.folder / "stored.png", rows)


def _append(forest: Forest, path: Path) -> dict[str, object]:
    """Write a forest, and time what it takes to make it one level longer: medians of five times."""
    whole = seconds(lambda: forest.save(path))
    forest = Forest.load(path)
    last, first = forest.levels[-1], forest.starts[-2]
    times = []
    for i in range(5):
        rows = torch.arange(640 * i, 640 * (i + 1)).repeat_interleave(16)
        children = last.gaussians.index(rows)
        assert children.lod is not None
        means = children.means.double() + last.origin
        children = replace(children, means=means, lod=Lod.roots(children.lod.native / 4))
        start = time.perf_counter()
        forest = forest.append(children, first + rows)
        middle = time.perf_counter()
        forest = forest.save(path)
        times.append((middle - start, time.perf_counter() - middle))
    append, write = (1e3 * sorted(t)[2] for t in zip(*times))
    return {"stored": len(forest), "ms, all written": 1e3 * whole, "ms, appended": append, "ms, written": write}


def _flat_ms(forest: Forest, view: Cameras) -> float:
    """One frame that tests every stored Gaussian, milliseconds."""
    flat = forest.gaussians()
    return measure(lambda: sr3d.render(flat, view), lambda: None, 3).ms


def _mapped(path: Path, name: str, view: Cameras, base: int) -> dict[str, object]:
    """Open and draw in a process of its own, whose memory nothing else has touched, from a file that is only on disk.

    Right after writing, the file lies in the page cache in chunks of up to 2 MB, and the kernel maps a whole chunk for
    every page that is touched.
    """
    for file in path.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    torch.save({"pose": view.world_to_cam, "K": view.K, "size": (view.width, view.height)}, path.parent / "view.pt")
    command = [sys.executable, __file__, str(path), str(path.parent / "view.pt"), str(base)]
    out = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    size = sum(file.stat().st_size for file in path.iterdir())
    return {
        "view": name.split(":")[0],
        "file MB": size / 1e6,
        "open ms": out["open_ms"],
        "first frame ms": out["first_ms"],
        "frame ms": out["frame_ms"],
        "ratio to the smallest in memory": out["ratio"],
        "file pages resident MB": out["mapped_mb"],
        "process grew MB": out["grew_mb"],
        "growth / file": out["grew_mb"] * 1e6 / size,
    }


def _memory(name: str, smaps: str | None = None) -> float:
    """MB of resident memory of this process: all of it, or the pages of files whose path contains `smaps`."""
    if smaps is None:
        line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(name))
        return int(line.split()[1]) / 1e3
    total, inside = 0, False
    for row in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in row.split()[0] and ":" not in row.split()[0]:
            inside = smaps in row
        elif inside and row.startswith(name):
            total += int(row.split()[1])
    return total / 1e3


def _child(path: str, view_file: str, base: str) -> None:
    """Measure one mapped forest, frame by frame in turn with the smallest one in memory, and print JSON."""
    saved = torch.load(view_file, weights_only=True)
    view = Cameras(world_to_cam=saved["pose"], K=saved["K"], width=saved["size"][0], height=saved["size"][1])
    world = World.generate(SEED)
    alone = pyramid(world, world.sample_cameras(1, int(base), int(base))[0].to(torch.float64), 4, 2)
    for _ in range(3):
        sr3d.render(alone, view)  # the frame's own images and splats are not the forest's memory
    before = _memory("VmRSS")
    forests: list[Forest] = []
    opened = seconds(lambda: forests.append(Forest.load(path)))
    first = seconds(lambda: sr3d.render(forests[0], view))
    mapped, grew = _memory("Rss", path), _memory("VmRSS") - before
    timing = measure(lambda: sr3d.render(forests[0], view), lambda: sr3d.render(alone, view), 15)
    result = {
        "open_ms": 1e3 * opened,
        "first_ms": 1e3 * first,
        "frame_ms": timing.ms,
        "ratio": timing.ratio,
        "mapped_mb": mapped,
        "grew_mb": grew,
    }
    print(json.dumps(result))


def _plot(path: Path, rows: list[dict[str, object]]) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for number, name in enumerate(dict.fromkeys(row["view"] for row in rows)):
        chosen = [row for row in rows if row["view"] == name]
        axes.plot([r["stored"] for r in chosen], [r["ms"] for r in chosen], f"C{number}o-", label=name)
        flat = [(r["stored"], r["ms, every Gaussian tested"]) for r in chosen if r["ms, every Gaussian tested"] != "-"]
        axes.plot(*zip(*flat), f"C{number}x:", label="the same, every Gaussian tested")
    axes.set(xscale="log", yscale="log", xlabel="stored Gaussians", ylabel="ms per frame")
    axes.set_title("Frame time with the same visible cut")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    _child(*sys.argv[1:])
