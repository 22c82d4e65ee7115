"""SR3R's Table 3, repeated: what every part of the network adds, on places that were not trained on.

    python benchmarks/ablation.py [--quick] [--steps 700] [--long 0] [--jobs 2] [--study ladder views overfit]

ladder   every rung of configs/ablation is trained with the same samples, and tested on held-out procedural places with
         depth from stereo and with given depth; the error is split into texture and geometry
views    the last rung on 1, 2, 4 and 8 input views of other places, the same target views for all
overfit  the last rung on the views of a single place

Trainings go on where they were stopped. Tables and plots are written to docs/ablation.md and docs/images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from common import machine
from matplotlib import pyplot as plt
from rich.console import Console
from rich.progress import Progress

from sr3d.coarse import CoarseConfig
from sr3d.datasets.batch import Batch, make_batch
from sr3d.datasets.procedural import pack_procedural
from sr3d.datasets.reader import BatchConfig, ClipBatches, ShardDataset
from sr3d.datasets.views import ViewConfig
from sr3d.models import SuperResolver
from sr3d.training.evaluate import draw_methods
from sr3d.training.split import KINDS, split_error

matplotlib.use("agg")

ROOT = Path(__file__).resolve().parents[1]
RUNGS = {
    "upsampling": "1_upsampling",
    "+ cross-attention": "2_cross_attention",
    "+ offsets": "3_offsets",
    "+ point attention": "4_points",
    "+ geometry branch": "5_geometry",
    "+ recurrence": "6_recurrence",
}
FULL = "+ recurrence"
SOURCES = ("sweep", "depth")
BASELINES = ("coarse", "upsampled", "scaffold")
# Nested sets of inputs of a clip of 12 views; none of them is a target.
TARGETS = [2, 5, 8]
INPUTS = {1: [6], 2: [0, 11], 4: [0, 4, 7, 11], 8: [0, 1, 3, 4, 6, 7, 9, 11]}
CONSOLE = Console()


@dataclass(kw_only=True)
class Sizes:
    """How large the study is.

    Attributes:
        train: Places to train on.
        test: Places to test on.
        views: Places of the study of views.
        size: Pixels per side.
        steps: Optimiser steps of every rung.
        overfit: Of the training on one place.
    """

    train: int = 800
    test: int = 40
    views: int = 20
    size: int = 192
    steps: int = 700
    overfit: int = 1500


def write_shards(folder: Path, sizes: Sizes) -> None:
    """Photograph the places; what is there is kept."""
    for split, scenes, views in (("train", sizes.train, 6), ("validation", 8, 6), ("test", sizes.test, 6)):
        pack_procedural(folder / split, scenes=scenes, views=views, size=sizes.size, split=split, workers=0)
    pack_procedural(folder / "views", scenes=sizes.views, views=12, size=sizes.size, seed=1, split="test", workers=0)


def train(name: str, config: str, folder: Path, steps: int, *extra: str) -> tuple[Path, float]:
    """Train a rung in a process of its own; returns its checkpoint and the seconds it took."""
    output = folder / name
    # The configs write below the folder they are started in.
    checkpoint, stamp = output / "outputs" / "ablation" / config / "predictor.ckpt", output / "seconds.json"
    if stamp.exists():
        return checkpoint, json.loads(stamp.read_text())["seconds"]
    output.mkdir(parents=True, exist_ok=True)
    files = [ROOT / "configs" / "ablation" / f"{c}.yaml" for c in ("base", config)]
    command = [sys.executable, ROOT / "train.py", "fit", "--config", files[0], "--config", files[1], "--resume", "true"]
    command += [f"--trainer.max_steps={steps}", f"--model.warmup_steps={min(50, steps // 2)}"]
    command += [
        f"--data.train_shards={folder / 'shards' / 'train'}",
        f"--data.val_shards={folder / 'shards/validation'}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    with (output / "log.txt").open("a") as log:
        subprocess.run([*map(str, command), *extra], cwd=output, env=environment, stdout=log, stderr=log, check=True)
    seconds = time.perf_counter() - start
    stamp.write_text(json.dumps({"seconds": seconds}))
    return checkpoint, seconds


@torch.no_grad()
def score(network: SuperResolver, batches: list[Batch], source: str, *, split: bool) -> dict[str, dict[str, float]]:
    """Means over target views, for every method."""
    config = CoarseConfig(source=source)
    sums: dict[str, dict[str, list[float]]] = {}
    for batch in batches:
        drawn = draw_methods(network, batch, config)
        parts = split_error(drawn, config) if split else {}
        for method, gaussians in drawn.gaussians.items():
            values = {k: float(v.nanmean()) for k, v in drawn.metrics(method).items()}
            values |= {k: float(v.nanmean()) for k, v in parts.get(method, {}).items()}
            values["gaussians"] = float((gaussians.opacities > 0).sum())
            values["coverage"] = float(drawn.covered.float().mean())
            for key, value in values.items():
                sums.setdefault(method, {}).setdefault(key, []).append(value)
    return {m: {k: sum(v) / len(v) for k, v in values.items()} for m, values in sums.items()}


def test_batches(folder: Path) -> list[Batch]:
    """First and last view of every clip as inputs, three views between them as targets."""
    return list(ClipBatches(folder, BatchConfig(factor=4, views=ViewConfig(target=3)), shuffle=False, strict=True))


def ladder(folder: Path, sizes: Sizes, jobs: int, long: int) -> dict[str, object]:
    """Train and test every rung; the last one, where `long` is not 0, also for that many steps."""
    runs = {name: (config, sizes.steps) for name, config in RUNGS.items()}
    if long:
        runs = {f"{FULL}, {long} steps": (RUNGS[FULL], long), **runs}
    with ThreadPoolExecutor(jobs) as pool, Progress(console=CONSOLE) as progress:
        task = progress.add_task("training", total=len(runs))

        def run(item: tuple[str, tuple[str, int]]) -> tuple[str, tuple[Path, float]]:
            name, (config, steps) = item
            done = train(f"{config}-{steps}", config, folder, steps)
            progress.advance(task)
            return name, done

        trained = dict(pool.map(run, runs.items()))
    batches = test_batches(folder / "shards" / "test")
    rows: list[dict[str, object]] = []
    for source in SOURCES:
        for name in [*RUNGS, *(n for n in trained if n not in RUNGS)]:
            checkpoint, seconds = trained[name]
            network = SuperResolver.from_pretrained(checkpoint)
            scores = score(network, batches, source, split=True)
            if name == next(iter(RUNGS)):
                rows += [row(source, method, scores[method], scores) for method in BASELINES]
            steps = runs[name][1]
            parameters = sum(p.numel() for p in network.parameters())
            rows.append(
                row(source, name, scores["sr3d"], scores)
                | {"steps": steps, "parameters": parameters, "minutes": seconds / 60}
            )
            CONSOLE.print(source, name, {k: round(float(v), 2) for k, v in rows[-1].items() if isinstance(v, float)})
    return {"rows": rows, "places": len(batches)}


def row(source: str, name: str, scores: dict[str, float], all_scores: dict[str, dict[str, float]]) -> dict[str, object]:
    """One line of the table."""
    upsampled, coarse = all_scores["upsampled"], all_scores["coarse"]
    return {
        "source": source,
        "name": name,
        **scores,
        "gain": scores["psnr_covered"] - upsampled["psnr_covered"],
        "gain_coarse": scores["psnr_covered"] - coarse["psnr_covered"],
        "gain_whole": scores["psnr"] - upsampled["psnr"],
        "share": scores["gaussians"] / upsampled["gaussians"],
    }


def views_study(folder: Path, checkpoint: Path) -> list[dict[str, object]]:
    """More inputs of the same places, the same targets."""
    network = SuperResolver.from_pretrained(checkpoint)
    clips = list(ShardDataset(folder / "shards" / "views"))
    rows: list[dict[str, object]] = []
    for source in SOURCES:
        for count, inputs in INPUTS.items():
            if source == "sweep" and count == 1:
                continue  # one view has no parallax
            batches = [Batch.stack([make_batch(clip, inputs, TARGETS, 4, anywhere=True)]) for clip in clips]
            scores = score(network, batches, source, split=False)
            rows.append(
                {"source": source, "views": count}
                | {
                    f"{m} {k}": scores[m][k]
                    for m in ("coarse", "upsampled", "sr3d")
                    for k in ("psnr", "psnr_covered", "coverage", "gaussians")
                }
            )
            CONSOLE.print(rows[-1])
    return rows


def overfit(folder: Path, sizes: Sizes) -> dict[str, object]:
    """Train the last rung on one place whose every view is an input or a target."""
    shards = folder / "shards" / "one"
    pack_procedural(shards, scenes=1, views=4, size=sizes.size, seed=2, workers=1)
    pack_procedural(
        folder / "shards" / "other", scenes=1, views=4, size=sizes.size, seed=2, split="validation", workers=1
    )
    name = f"overfit-{sizes.overfit}"
    options = [f"--data.train_shards={shards}", f"--data.val_shards={folder / 'shards' / 'other'}"]
    options += [
        "--data.views.target=2",
        "--data.val_views.target=2",
        "--model.sources=[depth]",
        "--model.learning_rate=0.003",
    ]
    options += ["--model.network.scaffold.budget=null", "--model.network.head.color_bound=0.5"]
    options += ["--model.loss.texture=0.2", "--model.loss.context=0.0"]
    checkpoint, seconds = train(name, RUNGS[FULL], folder, sizes.overfit, *options)
    network = SuperResolver.from_pretrained(checkpoint)
    config = BatchConfig(factor=4, views=ViewConfig(target=2))
    scores = score(network, list(ClipBatches(shards, config, shuffle=False)), "depth", split=False)
    keys = ("psnr", "psnr_covered", "coverage", "gaussians")
    return {"steps": sizes.overfit, "minutes": seconds / 60} | {m: {k: v[k] for k in keys} for m, v in scores.items()}


def write_docs(results: dict[str, object], docs: Path) -> None:
    """Plots, and the tables between the markers of docs/ablation.md."""
    page = docs / "ablation.md"
    text = page.read_text()
    for name, table in {"ladder": ladder_table, "views": views_table, "overfit": overfit_table}.items():
        if name in results:
            start, end = f"<!-- {name} -->", f"<!-- end {name} -->"
            head, rest = text.split(start, 1)
            text = head + start + "\n" + table(results[name]) + "\n" + end + rest.split(end, 1)[1]
    partial = page.with_suffix(".part")
    partial.write_text(text)
    partial.replace(page)
    if "ladder" in results:
        plot_ladder(results["ladder"]["rows"], docs / "images" / "ablation.png")
    if "views" in results:
        plot_views(results["views"], docs / "images" / "views.png")


def ladder_table(found: dict) -> str:
    """Markdown."""
    lines = []
    for source in SOURCES:
        words = "depth by stereo" if source == "sweep" else "given depth"
        lines += [f"\n{found['places']} places, {words}:\n"]
        lines += [
            "| | psnr_covered | − coarse | − upsampled | psnr | − upsampled | ssim "
            "| true colours | true geometry | Gaussians / upsampled | parameters | steps | minutes |"
        ]
        lines += ["|---|" + "---|" * 12]
        for r in found["rows"]:
            if r["source"] != source:
                continue
            trained = f"{r['parameters'] / 1e6:.2f} M | {r['steps']} | {r['minutes']:.0f}" if "steps" in r else "| | "
            lines.append(
                f"| {r['name']} | {r['psnr_covered']:.2f} | {r['gain_coarse']:+.2f} | {r['gain']:+.2f} "
                f"| {r['psnr']:.2f} "
                f"| {r['gain_whole']:+.2f} | {r['ssim']:.3f} | {r['true colours']:.2f} | {r['true geometry']:.2f} "
                f"| {r['share']:.2f} | {trained} |"
            )
        both = next(r["both"] for r in found["rows"] if r["source"] == source)
        coverage = next(r["coverage"] for r in found["rows"] if r["source"] == source)
        lines.append(f"\nThe truth for both: {both:.2f} dB. Covered: {coverage:.3f} of the pixels.")
    return "\n".join(lines)


def views_table(rows: list[dict]) -> str:
    """Markdown."""
    lines = [
        "",
        "| depth | views | coverage | coarse | upsampled | sr3d (covered) "
        "| whole image: coarse | upsampled | sr3d | Gaussians |",
    ]
    lines += ["|---|" + "---|" * 9]
    for r in rows:
        covered = " | ".join(f"{r[f'{m} psnr_covered']:.2f}" for m in ("coarse", "upsampled", "sr3d"))
        whole = " | ".join(f"{r[f'{m} psnr']:.2f}" for m in ("coarse", "upsampled", "sr3d"))
        lines.append(
            f"| {r['source']} | {r['views']} | {r['sr3d coverage']:.3f} | {covered} | {whole} "
            f"| {r['sr3d gaussians']:,.0f} |"
        )
    return "\n".join(lines)


def overfit_table(found: dict) -> str:
    """Markdown."""
    lines = [
        "",
        f"{found['steps']} steps, {found['minutes']:.0f} minutes; coverage {found['sr3d']['coverage']:.3f}.",
        "",
    ]
    lines += ["| | psnr_covered | psnr |", "|---|---|---|"]
    lines += [f"| {m} | {found[m]['psnr_covered']:.2f} | {found[m]['psnr']:.2f} |" for m in (*BASELINES, "sr3d")]
    return "\n".join(lines)


def plot_ladder(rows: list[dict], path: Path) -> None:
    """Bars of PSNR, and of the two halves."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), sharey=True, layout="constrained")
    for axis, source in zip(axes, SOURCES):
        chosen = [r for r in rows if r["source"] == source]
        for offset, key, color in (
            (-0.27, "psnr_covered", "#1f77b4"),
            (0, KINDS[0], "#ff9f4a"),
            (0.27, KINDS[1], "#5ab45a"),
        ):
            axis.bar([i + offset for i in range(len(chosen))], [r[key] for r in chosen], 0.27, label=key, color=color)
        low = min(r[k] for r in chosen for k in ("psnr_covered", *KINDS[:2]))
        axis.set_ylim(low - 0.5)
        axis.set_xticks(range(len(chosen)), [r["name"] for r in chosen], rotation=35, ha="right")
        axis.set_title("depth by stereo" if source == "sweep" else "given depth")
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("PSNR on covered pixels, dB")
    axes[0].legend(["sr3d", "true colours on its geometry", "its colours on true geometry"], fontsize=8)
    figure.savefig(path, dpi=110)


def plot_views(rows: list[dict], path: Path) -> None:
    """Quality against the number of views."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
    for axis, key in zip(axes, ("psnr_covered", "psnr")):
        for source, style in zip(SOURCES, ("-", "--")):
            chosen = [r for r in rows if r["source"] == source]
            for method, color in (("coarse", "0.6"), ("upsampled", "#ff7f0e"), ("sr3d", "#1f77b4")):
                label = f"{method}, {'stereo' if source == 'sweep' else 'given'} depth"
                axis.plot(
                    [r["views"] for r in chosen],
                    [r[f"{method} {key}"] for r in chosen],
                    style,
                    marker="o",
                    color=color,
                    label=label,
                )
        axis.set_xscale("log", base=2)
        axis.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        axis.set_xlabel("input views")
        axis.set_title("covered pixels" if key == "psnr_covered" else "whole image")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("PSNR, dB")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Parse arguments, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps on small images, to see that it runs")
    parser.add_argument("--steps", type=int, default=Sizes.steps)
    parser.add_argument("--long", type=int, default=0, help="train the last rung for so many steps, too")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument(
        "--study", nargs="+", choices=["ladder", "views", "overfit"], default=["ladder", "views", "overfit"]
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/ablation"))
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    small = Sizes(train=4, test=2, views=2, size=64, steps=50, overfit=50)
    sizes = small if arguments.quick else Sizes(steps=arguments.steps)
    folder = arguments.output.resolve()
    CONSOLE.print(", ".join(f"{k} {v}" for k, v in machine().items()))
    write_shards(folder / "shards", sizes)
    path = folder / "results.json"
    results: dict[str, object] = json.loads(path.read_text()) if path.exists() else {}
    results["machine"] = machine()
    long = 0 if arguments.quick else arguments.long
    if "ladder" in arguments.study:
        results["ladder"] = ladder(folder, sizes, arguments.jobs, long)
    if "views" in arguments.study:
        results["views"] = views_study(
            folder, train(f"{RUNGS[FULL]}-{long or sizes.steps}", RUNGS[FULL], folder, long or sizes.steps)[0]
        )
    if "overfit" in arguments.study:
        results["overfit"] = overfit(folder, sizes)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(results, indent=2) + "\n")
    partial.replace(path)
    if not arguments.quick:
        write_docs(results, arguments.docs)
    CONSOLE.print(f"written: {path}")


if __name__ == "__main__":
    main()
