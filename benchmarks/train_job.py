"""One measurement of `benchmarks/train.py`: training steps or forward passes in the process that runs this file.

python benchmarks/train_job.py '{"kind": "training", "model": "tiny", "size": 192, "shards": "SHARDS"}'
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from common import matrix_product, seconds

from sr3d.coarse import CoarseConfig, coarse_gaussians
from sr3d.datasets.reader import BatchConfig, ClipBatches, ClipLoader
from sr3d.datasets.shards import read_index
from sr3d.datasets.views import ViewConfig
from sr3d.figures import read_curves
from sr3d.models.estimate import estimate
from sr3d.models.registry import create_model, model_config
from sr3d.rendering import render
from sr3d.training.cli import main as train_by_command
from sr3d.training.timing import PARTS

FACTOR, VIEWS, TARGETS = 4, 2, 2
SMALL = 32  # pixels of the pictures that load and compile everything
WARM_ROWS = 3


@dataclass(frozen=True, kw_only=True)
class Job:
    """One measurement, made in a process of its own.

    Attributes:
        kind: Training steps, or a forward pass.
        model: Name of a size.
        size: Width and height of the full-resolution views.
        shards: Folder with `train` and `val`.
        device: Where.
        batch: Clips per optimiser step.
        accumulate: Passes that they are divided into.
        workers: Processes that read.
        threads: Threads that read ahead, without workers.
        compiled: torch.compile of the dense parts.
        rows: Rows of step times, or forward passes, that count.
        every: Optimiser steps per row.
    """

    kind: Literal["training", "inference"]
    model: str
    size: int
    shards: str
    device: Literal["cpu", "cuda"] = "cpu"
    batch: int = 1
    accumulate: int = 1
    workers: int = 0
    threads: int = 0
    compiled: bool = False
    rows: int = 10
    every: int = 1

    def settings(self) -> dict[str, Any]:
        """As a dictionary."""
        return asdict(self)

    def run(self) -> dict[str, Any]:
        """Measure in this process."""
        found = measure_training(self) if self.kind == "training" else measure_inference(self)
        return {**found, "estimate": self.estimated()}

    def fresh(self) -> dict[str, Any]:
        """Measure in a new process; `{"failed": reason}` where that ends badly."""
        command = [sys.executable, __file__, json.dumps(self.settings())]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            return {"failed": lines[-1][:200]}
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def estimated(self) -> dict[str, int]:
        """The network's `parameters`, `flops` of a forward pass of one batch, and `bytes` of memory, by estimate."""
        low, batch, training = self.size // FACTOR, self.batch // self.accumulate, self.kind == "training"
        precision: Literal["fp32", "bf16"] = "bf16" if self.device == "cuda" else "fp32"
        config = model_config(self.model)
        needs = estimate(config, low, low, VIEWS, batch, training=training, precision=precision, targets=TARGETS)
        size = needs.training_bytes if training else needs.inference_bytes
        return {"parameters": needs.parameters, "flops": needs.flops, "bytes": size}


class Peak:
    """Most memory that this process needs from here on, beyond what it holds now."""

    def __init__(self, device: str) -> None:
        self._device = device
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
            self.before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        else:
            if sys.platform == "linux":
                # Freed memory that glibc keeps would be used first and not be seen.
                trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
                if trim is not None:
                    trim(0)
                Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
            self.before = psutil.Process().memory_info().rss

    def found(self) -> int | None:
        """Bytes; None where the system does not tell."""
        if self._device == "cuda":
            return torch.cuda.max_memory_allocated() - self.before
        if sys.platform != "linux":
            return None
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) - self.before


def product(device: str) -> tuple[float, float]:
    """Median seconds of a matrix product (2000³ in 32 bits on a CPU, 8192³ in bf16 on a GPU), and its FLOP/s."""
    if device == "cuda":
        n, (a, b) = 8192, torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
        times = [seconds(lambda: [a @ b for _ in range(10)]) / 10 for _ in range(5)]
    else:
        n, call = 2000, matrix_product()
        times = [seconds(call) for _ in range(5)]
    typical = statistics.median(times[1:])
    return typical, 2 * n**3 / typical


def training_config(job: Job, folder: Path, model: str, size: int, rows: int, every: int) -> Path:
    """A configuration file for the command line; each row of its log holds the times of `every` steps."""
    # Passes over the shards that make one epoch: none begins while the time is taken, nor while threads read ahead.
    passes = math.ceil(rows * every * job.batch / read_index(f"{job.shards}/train").clips) + 1
    cuda = job.device == "cuda"
    times = {"class_path": "sr3d.training.timing.StepTimes", "init_args": {"every_n_steps": every}}
    values = {
        "trainer": {
            "max_steps": rows * every, "accelerator": "gpu" if cuda else "cpu", "devices": 1,
            "precision": "bf16-mixed" if cuda else "32-true", "gradient_clip_val": 1.0,
            "accumulate_grad_batches": job.accumulate, "log_every_n_steps": every, "limit_val_batches": 0,
            "num_sanity_val_steps": 0, "enable_checkpointing": False, "enable_progress_bar": False,
            "enable_model_summary": False, "default_root_dir": str(folder), "callbacks": [times],
            "logger": [{"class_path": "sr3d.training.loggers.CSVLogger", "init_args": {"save_dir": str(folder)}}],
        },
        "model": {
            "network": model, "sources": ["depth"], "warmup_steps": 0, "compile": job.compiled,
            "coarse": {"source": "depth"}, "loss": {"mse": 1.0, "dssim": 0.02, "context": 0.5},
            "augmentation": {"depth_noise": 0.007, "depth_edges": 0.25, "gain": 0.7, "exposure": 0.1, "noise": 0.005},
        },
        "data": {
            "train_shards": [f"{job.shards}/train"] * passes, "val_shards": f"{job.shards}/val", "factor": FACTOR,
            "views": {"context": VIEWS, "target": TARGETS}, "global_batch_size": job.batch,
            "image_size": None if size == job.size else [size, size],
            "workers": job.workers, "threads": job.threads,
        },
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.json"
    path.write_text(json.dumps(values))
    return path


def measure_training(job: Job) -> dict[str, Any]:
    """Train for a few steps.

    Returns:
        `step_s` median, `parts_s` means, `product_s`, `product_flops` per second, `samples_per_s`, `peak_bytes`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        small, run = Path(temporary) / "small", Path(temporary) / "run"
        train_by_command(["fit", "--config", str(training_config(job, small, "tiny", SMALL, 2, 1))])
        before = product(job.device)
        peak = Peak(job.device)
        path = training_config(job, run, job.model, job.size, WARM_ROWS + job.rows, job.every)
        train_by_command(["fit", "--config", str(path)])
        most = peak.found()
        curves = read_curves(run / "metrics.csv")
    if job.device == "cuda":  # the log starts the count anew in every row
        most = max(round(v * 2**30) for _, v in curves["memory/gpu_allocated"]) - peak.before
    after = product(job.device)
    rows = {name: [v for _, v in values][WARM_ROWS:] for name, values in curves.items()}
    parts = {part: statistics.mean(rows.get(f"time/{part}", [0.0])) for part in (*PARTS, "other")}
    return {
        "step_s": statistics.median(rows["time/step"]),
        "mean_step_s": statistics.mean(rows["time/step"]),
        "parts_s": parts,
        "samples_per_s": job.batch / statistics.mean(rows["time/step"]),
        "product_s": (before[0] + after[0]) / 2,
        "product_flops": (before[1] + after[1]) / 2,
        "peak_bytes": most,
    }


def measure_inference(job: Job) -> dict[str, Any]:
    """Draw a scene from two views that have no depth: plane sweep, network, one picture.

    Returns:
        Median seconds `coarse_s`, `network_s`, `draw_s`; `product_s`, `peak_bytes` of weights and network.
    """

    def prepared(model: str, size: int) -> dict[str, Callable[[], object]]:
        config = BatchConfig(factor=FACTOR, views=ViewConfig(context=VIEWS, target=1), image_size=(size, size))
        batch = next(iter(ClipLoader(ClipBatches(f"{job.shards}/val", config, shuffle=False), 0))).to(job.device)
        context, network = batch.context, create_model(model).eval().to(job.device)
        sweep = CoarseConfig(source="sweep")
        coarse = coarse_gaussians(context, sweep)

        def forward() -> Any:
            with torch.autocast(job.device, dtype=torch.bfloat16, enabled=job.device == "cuda"):
                return network(coarse, context.images, context.posed())

        fine = forward().to(torch.float32)
        return {
            "coarse_s": lambda: coarse_gaussians(context, sweep),
            "network_s": forward,
            "draw_s": lambda: render(fine, batch.target.posed(), lod=False),
        }

    with torch.no_grad():
        for call in prepared("tiny", SMALL).values():
            call()
        before = product(job.device)
        peak = Peak(job.device)
        calls = prepared(job.model, job.size)
        times = {name: [seconds(call) for _ in range(job.rows + 1)][1:] for name, call in calls.items()}
        most = peak.found()
    after = product(job.device)
    found = {name: statistics.median(values) for name, values in times.items()}
    return {**found, "product_s": (before[0] + after[0]) / 2, "peak_bytes": most}


if __name__ == "__main__":
    print(json.dumps(Job(**json.loads(sys.argv[1])).run()))
