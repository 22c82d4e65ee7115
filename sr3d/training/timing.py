"""Where the time of a training step goes, and the memory it needs."""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from typing import Any

import lightning
import psutil
import torch

from sr3d.training.loggers import log_scalars, log_step

PARTS = ("data", "coarse", "network", "render", "loss", "backward", "optimiser")


class StepTimes(lightning.Callback):
    """Logs, every few steps, their mean seconds and samples per second.

    `time/<part>` are the module's parts, `time/step` is the whole step by the wall clock without validation, and
    `time/other` is what the parts leave of it (logging, checkpoints). `samples_per_second` counts all processes.
    Parts that run on a GPU are timed in the last of those steps alone, which waits for it.
    Memory in GiB: `memory/ram` of this process, `memory/workers` of its data workers, and on a GPU
    `memory/gpu_allocated` and `memory/gpu_reserved`, their peaks since the last time. Numbers are rank zero's.

    Args:
        every_n_steps: Optimiser steps between two rows.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps
        self._process = psutil.Process()
        self._seconds: dict[str, float] = defaultdict(float)
        self._batches = self._timed = self._samples = 0
        self._started = self._paused = 0.0
        self._last_step: int | None = None
        self._record: Any = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Start the clock."""
        self._started, self._last_step = time.perf_counter(), None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note the first step of a run: a resumed one begins anywhere."""
        if self._last_step is None:
            self._last_step = log_step(trainer) - 1

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Stop the clock."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Let the clock go on."""
        self._started += time.perf_counter() - self._paused

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add up, and log every few steps."""
        if not trainer.is_global_zero:
            return
        record, step = pl_module.step, log_step(trainer)
        on_gpu = pl_module.device.type == "cuda"
        if record is not None and record is not self._record:
            self._record = record
            self._batches += 1
            self._samples += record.samples
            if pl_module.timing or not on_gpu:
                self._timed += 1
                for part, seconds in record.seconds.items():
                    self._seconds[part] += seconds
        # Waiting for the GPU costs time of its own: only the last step before a row does it.
        pl_module.timing = on_gpu and (step + 2) % self.every_n_steps == 0
        if (step + 1) % self.every_n_steps == 0 and step != self._last_step:
            log_scalars(trainer, {**self._times(step, trainer.world_size), **memory(self._process)})

    def _times(self, step: int, processes: int) -> dict[str, float]:
        """Means since the last call, and a fresh start."""
        assert self._last_step is not None
        now, steps = time.perf_counter(), step - self._last_step
        wall = (now - self._started) / steps
        share = self._batches / steps / max(1, self._timed)
        values = {f"time/{part}": seconds * share for part, seconds in self._seconds.items()}
        values |= {"time/other": max(0.0, wall - sum(values.values())), "time/step": wall}
        values["samples_per_second"] = processes * self._samples / steps / wall
        self._seconds.clear()
        self._batches = self._timed = self._samples = 0
        self._started, self._last_step = now, step
        return values


def memory(process: psutil.Process) -> dict[str, float]:
    """Resident memory of a process and of its children, and the GPU's peaks since the last call, in GiB."""
    workers = 0
    for child in process.children(recursive=True):
        try:
            workers += child.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    values = {"memory/ram": process.memory_info().rss / 2**30, "memory/workers": workers / 2**30}
    if torch.cuda.is_available():
        values["memory/gpu_allocated"] = torch.cuda.max_memory_allocated() / 2**30
        values["memory/gpu_reserved"] = torch.cuda.max_memory_reserved() / 2**30
        torch.cuda.reset_peak_memory_stats()
    return values


def peak_ram() -> float:
    """Most resident memory that this process has had so far, in GiB."""
    # Linux reports kilobytes, macOS bytes.
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
