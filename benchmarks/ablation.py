"""SR3R's Table 3, repeated: what every part of the network adds, on places that were not trained on.

    python benchmarks/ablation.py [--quick] [--steps 700] [--long 0] [--jobs 2] [--study ladder views overfit]

ladder   every rung of configs/ablation is trained with the same samples, and tested on held-out procedural places with
         depth from stereo and with given depth; the error is split into texture and geometry
views    the last rung on 1, 2, 4 and 8 input views of other places, the same target views and pixels for all
overfit  the network with its geometry branch on the views of a single place

Trainings go on where they were stopped. Tables and plots are written to docs/ablation.md and docs/images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from ablation_docs import BASELINES, SOURCES, write_docs
from common import machine
from rich.console import Console
from rich.progress import Progress

from sr3d.coarse import CoarseConfig
from sr3d.datasets.batch import Batch, make_batch
from sr3d.datasets.procedural import pack_procedural
from sr3d.datasets.reader import BatchConfig, ClipBatches, ShardDataset
from sr3d.datasets.views import ViewConfig
from sr3d.models import SuperResolver
from sr3d.rendering import render
from sr3d.training.evaluate import Drawn, draw_methods
from sr3d.training.metrics import image_metrics
from sr3d.training.split import split_error

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
# Nested sets of inputs of a clip of 12 views; none of them is a target.
TARGETS = [2, 5, 8]
INPUTS = {1: [0], 2: [0, 11], 4: [0, 4, 7, 11], 8: [0, 1, 3, 4, 6, 7, 9, 11]}
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
    before = json.loads(stamp.read_text()) if stamp.exists() else {"seconds": 0.0, "done": False}
    if before["done"]:
        return checkpoint, before["seconds"]
    output.mkdir(parents=True, exist_ok=True)
    files = [ROOT / "configs" / "ablation" / f"{c}.yaml" for c in ("base", config)]
    command = [sys.executable, ROOT / "train.py", "fit", "--config", files[0], "--config", files[1], "--resume", "true"]
    command += [f"--trainer.max_steps={steps}", f"--model.warmup_steps={min(50, steps // 2)}"]
    shards = folder / "shards"
    command += [f"--data.train_shards={shards / 'train'}", f"--data.val_shards={shards / 'validation'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    done = False
    try:
        with (output / "log.txt").open("a") as log:
            subprocess.run(
                [*map(str, command), *extra], cwd=output, env=environment, stdout=log, stderr=log, check=True
            )
        done = True
    finally:
        # Time of all starts, except those after which this process was killed.
        seconds = before["seconds"] + time.perf_counter() - start
        stamp.write_text(json.dumps({"seconds": seconds, "done": done}))
    return checkpoint, seconds


@torch.no_grad()
def baselines(batches: list[Batch], source: str, network: SuperResolver) -> list[Drawn]:
    """What needs no training, drawn once for all rungs."""
    config = CoarseConfig(source=source)
    out = []
    for batch in batches:
        drawn = draw_methods(network, batch, config)
        del drawn.renderings["sr3d"], drawn.gaussians["sr3d"]
        out.append(drawn)
    return out


@torch.no_grad()
def with_network(drawn: Drawn, network: SuperResolver) -> Drawn:
    """The same batch drawn by a network, beside the coarse scene that says what is covered."""
    inputs = drawn.batch.context
    fine = network(drawn.gaussians["coarse"], inputs.images, inputs.posed())
    rendering = render(fine, drawn.batch.target.posed(), lod=False)
    return Drawn(drawn.batch, {"coarse": drawn.renderings["coarse"], "sr3d": rendering}, {"sr3d": fine})


def score(drawings: list[Drawn], methods: Sequence[str], split: CoarseConfig | None) -> dict[str, dict[str, float]]:
    """Means over target views, for every method; `split` places the two halves of the error."""
    sums: dict[str, dict[str, list[float]]] = {m: {} for m in methods}
    for drawn in drawings:
        parts = {} if split is None else split_error(drawn, split)
        for method in methods:
            values = {k: float(v.nanmean()) for k, v in drawn.metrics(method).items()}
            values |= {k: float(v.nanmean()) for k, v in parts.get(method, {}).items()}
            values["gaussians"] = float((drawn.gaussians[method].opacities > 0).sum())
            values["coverage"] = float(drawn.covered.float().mean())
            for key, value in values.items():
                sums[method].setdefault(key, []).append(value)
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
    networks = {name: SuperResolver.from_pretrained(checkpoint) for name, (checkpoint, _) in trained.items()}
    rows: list[dict[str, object]] = []
    for source in SOURCES:
        config = CoarseConfig(source=source)
        drawings = baselines(batches, source, networks[FULL])
        base = score(drawings, BASELINES, config)
        rows += [row(source, method, base[method], base) for method in BASELINES]
        for name in [*RUNGS, *(n for n in trained if n not in RUNGS)]:
            network = networks[name]
            found = score([with_network(d, network) for d in drawings], ["sr3d"], config)["sr3d"]
            size = {"steps": runs[name][1], "parameters": sum(p.numel() for p in network.parameters())}
            rows.append(row(source, name, found, base) | size | {"minutes": trained[name][1] / 60})
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
    """More inputs of the same places: the same target views, and the same pixels, those that are always covered."""
    network = SuperResolver.from_pretrained(checkpoint)
    clips = list(ShardDataset(folder / "shards" / "views"))
    rows: list[dict[str, object]] = []
    for source in SOURCES:
        counts = [n for n in INPUTS if source == "depth" or n > 1]  # one view has no parallax
        sums: dict[int, dict[str, list[float]]] = {n: {} for n in counts}
        for clip in clips:
            batches = {n: Batch.stack([make_batch(clip, INPUTS[n], TARGETS, 4, anywhere=True)]) for n in counts}
            drawn = {n: draw_methods(network, batch, CoarseConfig(source=source)) for n, batch in batches.items()}
            common = torch.stack([d.covered for d in drawn.values()]).all(dim=0)
            for n, d in drawn.items():
                found = {"coverage": d.covered.float().mean(), "common": common.float().mean()}
                for m in ("coarse", "upsampled", "sr3d"):
                    metrics = image_metrics(d.renderings[m].rgb, d.batch.target.images, common)
                    found |= {f"{m} {k}": metrics[k].nanmean() for k in ("psnr", "psnr_covered")}
                    found[f"{m} gaussians"] = (d.gaussians[m].opacities > 0).sum()
                for key, value in found.items():
                    sums[n].setdefault(key, []).append(float(value))
        means = {n: {k: sum(v) / len(v) for k, v in values.items()} for n, values in sums.items()}
        rows += [{"source": source, "views": n, **values} for n, values in means.items()]
        CONSOLE.print(*rows[-len(counts) :], sep="\n")
    return rows


def overfit(folder: Path, sizes: Sizes) -> dict[str, object]:
    """Train the last rung on one place whose every view is an input or a target."""
    shards = folder / "shards" / "one"
    pack_procedural(shards, scenes=1, views=4, size=sizes.size, seed=2, workers=1)
    pack_procedural(
        folder / "shards" / "other", scenes=1, views=4, size=sizes.size, seed=2, split="validation", workers=1
    )
    name = f"overfit-{sizes.overfit}"
    views = {"by": "span", "context": 2, "target": 2}
    changes = {
        "model": {
            "sources": ["depth"],
            "learning_rate": 0.003,
            "loss": {"texture": 0.2, "context": 0.0},
            "network": {"scaffold": {"budget": None}, "head": {"color_bound": 0.5}, "points": None},
        },
        "data": {"train_shards": str(shards), "val_shards": str(shards.parent / "other"), "views": views},
    }
    config = folder / f"{name}.yaml"
    config.write_text(json.dumps(changes))  # JSON is YAML
    options = ["--config", str(config)]
    checkpoint, seconds = train(name, RUNGS["+ geometry branch"], folder, sizes.overfit, *options)
    network = SuperResolver.from_pretrained(checkpoint)
    batches = ClipBatches(shards, BatchConfig(factor=4, views=ViewConfig(target=2)), shuffle=False)
    scores = score([draw_methods(network, b, CoarseConfig()) for b in batches], (*BASELINES, "sr3d"), None)
    keys = ("psnr", "psnr_covered", "coverage", "gaussians")
    return {"steps": sizes.overfit, "minutes": seconds / 60} | {m: {k: v[k] for k in keys} for m, v in scores.items()}


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
