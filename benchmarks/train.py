"""Training and inference by size of the network: time, where it goes, memory, and use of the hardware.

    python benchmarks/train.py [--quick]

Every measurement is made in a fresh process and trains through the real command line, on procedural shards that are
written to a temporary folder: 2 views, factor 4. Times are given beside those of a matrix product in the same process.
Memory is the most that a process needs beyond what it held before: of the GPU where it trains there, else resident
memory, after a training of two steps on small pictures has loaded and compiled everything. 1 GB is 10⁹ bytes.
What could not be measured here says so.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from common import Report
from train_job import FACTOR, VIEWS, Job

from sr3d.datasets.procedural import pack_procedural
from sr3d.models.registry import list_models

ON_CPU = ("tiny", "small")
# Dense bf16 FLOP/s by NVIDIA's data sheets.
DATASHEET = {"H200": 989e12, "H100 80GB HBM3": 989e12, "H100 PCIe": 756e12, "A100": 312e12, "L40S": 362e12}
BATCH = 8  # clips per step on a GPU
Measured = Sequence[tuple[Job, dict[str, Any]]]


def described(job: Job) -> dict[str, object]:
    """First columns of every table."""
    precision = "bf16" if job.device == "cuda" else "fp32"
    shape = f"{job.size // FACTOR}² → {job.size}²"
    return {"network": job.model, "on": f"{job.device}, {precision}", "low → high": shape}


def as_trained(job: Job) -> dict[str, object]:
    """Further columns about training."""
    return {"batch": f"{job.batch} in {job.accumulate}", "compiled": "yes" if job.compiled else "no"}


def add_table(report: Report, title: str, rows: Sequence[dict[str, object]]) -> None:
    """A table of rows of which some end early, where something was not measured."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if rows:
        report.table(title, [{name: row.get(name, "") for name in names} for row in rows])


def reading_of(job: Job) -> str:
    """How it reads."""
    if job.workers:
        return f"workers {job.workers}"
    return f"threads {job.threads}" if job.threads else "in the training process"


def about_reading(job: Job) -> bool:
    """Whether it differs from another one only by how it reads."""
    return job.device == "cpu" and bool(job.workers or job.threads)


def data_row(job: Job, found: dict[str, Any]) -> dict[str, object]:
    """Share of a step that waits for data."""
    row = {**described(job), **as_trained(job), "reading": reading_of(job)}
    if "failed" in found:
        return {**row, "waiting, %": found["failed"]}
    waiting, step = found["parts_s"]["data"], found["mean_step_s"]
    return {**row, "waiting, %": 100 * waiting / step, "waiting, ms": 1e3 * waiting, "step, ms": 1e3 * step}


def step_row(job: Job, found: dict[str, Any]) -> dict[str, object]:
    """Time of a training step, and the share of the matrix product's FLOP/s that it reaches."""
    row = {**described(job), **as_trained(job)}
    if "failed" in found:
        return {**row, "step, s": found["failed"]}
    use = 100 * utilisation(job, found, found["product_flops"])
    times = {"step, s": found["step_s"], "in products": found["step_s"] / found["product_s"]}
    return {**row, **times, "samples/s": found["samples_per_s"], "FLOP use, %": use}


def split_row(job: Job, found: dict[str, Any]) -> dict[str, object]:
    """Parts of a training step."""
    shares = {f"{part} %": 100 * s / found["mean_step_s"] for part, s in found["parts_s"].items()}
    return {**described(job), **as_trained(job), **shares}


def memory_row(job: Job, found: dict[str, Any] | None) -> dict[str, object]:
    """Estimate and measurement; None: not run here."""
    measured = found is not None and "failed" not in found
    needs = found["estimate"] if found is not None and measured else job.estimated()
    what = "inference" if job.kind == "inference" else f"training, batch {job.batch} in {job.accumulate}"
    row = {**described(job), "what": what, "million parameters": needs["parameters"] / 1e6}
    row |= {"forward TFLOP": needs["flops"] / 1e12, "estimate, GB": needs["bytes"] / 1e9}
    peak = None if found is None else found.get("peak_bytes")
    if peak is None:
        why = "estimate only" if found is None else found.get("failed", "not measured on this system")
        return {**row, "measured, GB": why}
    return {**row, "measured, GB": peak / 1e9, "estimate / measured": needs["bytes"] / peak}


def inference_row(job: Job, found: dict[str, Any]) -> dict[str, object]:
    """Seconds from two views to a finer scene."""
    if "failed" in found:
        return {**described(job), "network, s": found["failed"]}
    times = {"network, s": found["network_s"], "in products": found["network_s"] / found["product_s"]}
    return {**described(job), **times, "plane sweep, s": found["coarse_s"], "drawing one view, s": found["draw_s"]}


def utilisation(job: Job, found: dict[str, Any], peak: float) -> float:
    """Share of `peak` FLOP/s in training: the backward pass counts twice the forward pass, drawing counts nothing."""
    flops = 3 * found["estimate"]["flops"] * job.accumulate
    return float(flops / found["mean_step_s"] / peak)


def datasheet() -> float | None:
    """Dense bf16 FLOP/s of this GPU, where its name is known."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((flops for key, flops in DATASHEET.items() if key in name), None)


def verdicts(models: Sequence[str], results: Measured) -> list[dict[str, object]]:
    """Targets beside what was found on this machine.

    Args:
        models: Names of sizes.
        results: Jobs that ended well.
    """
    rows: list[dict[str, object]] = []
    missing = "not measured: see above" if torch.cuda.is_available() else "not measured: no GPU"

    def add(what: str, values: Sequence[float], limit: float, more: bool = False) -> None:
        row: dict[str, object] = {"what": what, "target": f"{'at least' if more else 'at most'} {limit:g}"}
        if not values:
            rows.append({**row, "found": missing})
            return
        best = max(values) if more else min(values)
        rows.append({**row, "found": best, "met": "yes" if (best >= limit if more else best <= limit) else "no"})

    training = [(job, found) for job, found in results if job.kind == "training"]
    for job, found in training:
        if job.accumulate == 1:
            what = f"{job.model} on {job.device}, % of a step waiting for data, {reading_of(job)}"
            add(what + ", compiled" * job.compiled, [100 * found["parts_s"]["data"] / found["mean_step_s"]], 5)
    base = [(job, found) for job, found in training if job.device == "cuda" and job.model == "base"]
    whole, sheet = [(job, found) for job, found in base if job.accumulate == 1], datasheet()
    what = "base, FLOP use in training, % of a large bf16 product"
    add(what, [100 * utilisation(job, found, found["product_flops"]) for job, found in whole], 35, more=True)
    if sheet is not None:
        what = f"base, FLOP use in training, % of the data sheet's {sheet / 1e12:g} TFLOP/s"
        add(what, [100 * utilisation(job, found, sheet) for job, found in whole], 35, more=True)
    for name in models:
        times = [f["network_s"] for j, f in results if (j.kind, j.device, j.model) == ("inference", "cuda", name)]
        add(f"{name}, inference on a GPU, s", times, 0.1)
    for text, passes in (("in one pass", 1), ("accumulated", BATCH)):
        peaks = [found["peak_bytes"] / 1e9 for job, found in base if job.accumulate == passes]
        add(f"base, GB of training on a GPU, batch {BATCH} {text}", peaks, 12.9)
    return rows


def plan(models: Sequence[str], shards: dict[int, Path], rows: int) -> list[Job]:
    """All measurements, those that need a GPU too.

    Args:
        models: Names of sizes.
        shards: Folders by full-resolution pixels: the first for training on the CPU, the last for all else.
        rows: Steps or passes that count.
    """
    sizes = list(shards)
    small = partial(Job, size=sizes[0], shards=str(shards[sizes[0]]), rows=rows)
    large = partial(Job, size=sizes[-1], shards=str(shards[sizes[-1]]))
    # On a GPU only one step of a row is timed in parts.
    gpu = partial(large, kind="training", device="cuda", batch=BATCH, threads=4, rows=max(2, rows // 3), every=10)
    return [
        *(small(kind="training", model=name) for name in models),
        *(small(kind="training", model=name, workers=1) for name in models if name == ON_CPU[0]),
        *(small(kind="training", model=name, threads=1) for name in models if name == ON_CPU[0]),
        *(large(kind="inference", model=name, rows=rows) for name in models),
        *(gpu(model=name) for name in models),
        *(gpu(model=name, accumulate=BATCH) for name in models),
        *(gpu(model=name, compiled=True) for name in models if name not in ON_CPU),
        *(large(kind="inference", model=name, rows=rows, device="cuda") for name in models),
    ]


def study(report: Report, models: Sequence[str], folder: Path, sizes: Sequence[int], rows: int) -> None:
    """Measure what this machine can, and print all tables.

    Args:
        report: Where tables go.
        models: Names of sizes.
        folder: Where shards are written.
        sizes: Full-resolution pixels of training on the CPU, and of all else.
        rows: Steps or passes that count.
    """
    report.table("Libraries", [{name: version(name) for name in ("lightning", "timm", "gsplat")}])
    shards = {size: folder / str(size) for size in sizes}
    for size, path in shards.items():
        pack_procedural(path / "train", scenes=8, views=6, size=size, workers=0, progress=False)
        pack_procedural(path / "val", scenes=1, views=6, size=size, split="validation", workers=0, progress=False)
    jobs = plan(models, shards, rows)
    here = [j for j in jobs if (torch.cuda.is_available() if j.device == "cuda" else j.model in ON_CPU)]
    found: dict[Job, dict[str, Any]] = {}
    for i, job in enumerate(here):
        report.console.print(f"{i + 1} of {len(here)}: {job.kind} of {job.model} on {job.device}", style="dim")
        found[job] = job.fresh()

    results = list(found.items())
    well = [(job, f) for job, f in results if "failed" not in f]
    trained = [(job, f) for job, f in results if job.kind == "training"]
    direct = [(job, f) for job, f in trained if not about_reading(job)]
    read = [(job, f) for job, f in trained if job.accumulate == 1]
    add_table(report, "Training steps that wait for data", [data_row(*pair) for pair in read])
    title = "Training steps (products of matrices: 2000³ fp32 on a CPU, 8192³ bf16 on a GPU; FLOP use: share of theirs)"
    add_table(report, title, [step_row(*pair) for pair in direct])
    title = "Parts of a training step"
    add_table(report, title, [split_row(*pair) for pair in direct if "failed" not in pair[1]])
    inference = [inference_row(*pair) for pair in results if pair[0].kind == "inference"]
    add_table(report, f"Inference from {VIEWS} views (SR3R: 1.69 s for 64² → 256²)", inference)
    listed = [job for job in jobs if not job.compiled and not about_reading(job)]
    add_table(
        report, "Memory; forward: without drawing, of one pass", [memory_row(job, found.get(job)) for job in listed]
    )
    add_table(report, "Targets", verdicts(models, well))
    # Everything that the tables are made of.
    report.results["measurements"] = [{"job": job.settings(), "found": f} for job, f in results]
    report.write()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--models", nargs="+", choices=list_models(), default=list_models(), help="sizes; default: all")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks"), help="folder of train.json")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        rows = 5 if options.quick else 30
        study(Report(options.output, "train"), options.models, Path(temporary), (192, 256), rows)


if __name__ == "__main__":
    main()
