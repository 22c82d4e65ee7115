"""What people see while a network trains: progress bar, pictures of validation clips, tables, residuals."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import lightning
import numpy as np
import torch
import wandb
from jaxtyping import Float
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor

from sr3d.datasets.batch import Batch
from sr3d.training.loggers import has_wandb, log_media, log_scalars, log_step, run_folder
from sr3d.training.panels import Row, clip_tiles, sheet, write_sheet
from sr3d.training.samples import batch_factor, clip_names
from sr3d.training.timing import peak_ram

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_METRIC = re.compile(r"val/(.+)/x(\d+)/([^/]+)/([^/]+)/([^/]+)")
_SAMPLE = 1 << 18


class ProgressBar(RichProgressBar):
    """Lightning's bar with the time that the whole training still takes; its own is that of the epoch."""

    def __init__(self) -> None:
        super().__init__()
        self._begin = (0.0, 0, 0.0)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Note where and when the run begins."""
        super().on_train_start(trainer, pl_module)
        self._begin = (time.perf_counter(), trainer.global_step, float(trainer.estimated_stepping_batches))

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, int | str | float | dict[str, float]]:
        """What the module puts on the bar, and `eta`, hours:minutes:seconds."""
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        started, first, total = self._begin
        done = trainer.global_step - first
        if done > 0 and np.isfinite(total):
            left = (time.perf_counter() - started) * (total - trainer.global_step) / done
            items["eta"] = str(timedelta(seconds=round(max(0.0, left))))
        return items


class MemoryOnBar(lightning.Callback):
    """Peak memory in GiB beside the loss: of the process, and of the GPU where there is one.

    Args:
        every_n_steps: Batches between two looks.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Put it on the bar, which keeps it until the next time."""
        if batch_idx % self.every_n_steps:
            return
        pl_module.log("ram_gib", peak_ram(), prog_bar=True, logger=False)
        if torch.cuda.is_available():
            pl_module.log("gpu_gib", torch.cuda.max_memory_reserved() / 2**30, prog_bar=True, logger=False)


class ImagePanels(lightning.Callback):
    """After every validation, one row of labelled pictures for each of the first clips (see `panels.clip_tiles`).

    The page goes to `panels/` in the run's folder, and to wandb as `panels/<source>`.

    Args:
        clips: How many of every validation loader, 1 or more.
    """

    def __init__(self, clips: int = 2) -> None:
        self.clips = clips
        self._rows: dict[tuple[str, int], list[Row]] = defaultdict(list)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Start anew."""
        self._rows.clear()

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Draw the first target view of every clip of the batch, until there are enough."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        for source, drawn in (outputs or {}).items():
            rows = self._rows[source, dataloader_idx]
            for i, name in enumerate(clip_names(drawn.batch)[: self.clips - len(rows)]):
                dataset = f"{drawn.batch.sources[i]}/" if drawn.batch.sources else ""
                title = f"{dataset}{name}, x{batch_factor(drawn.batch)}, coarse depth: {source}"
                rows.append(Row(title, clip_tiles(drawn, scene=i)))

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Write the pages."""
        for source in {source for source, _ in self._rows}:
            page = sheet([row for key, rows in self._rows.items() if key[0] == source for row in rows])
            write_sheet(run_folder(trainer) / "panels" / f"step{log_step(trainer):06d}-{source}.png", page)
            if has_wandb(trainer):
                log_media(trainer, {f"panels/{source}": wandb.Image(page)})
        self._rows.clear()


class ResidualHistograms(lightning.Callback):
    """Every few steps, how far the network moves the Gaussians of its scaffold (`Prediction.residuals`).

    `residual/<kind>/q05` ... `q95` are quantiles over all Gaussians and components of rank zero's batch; wandb also
    gets the histogram `residual/<kind>`.

    Args:
        every_n_steps: Optimiser steps between two looks.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log them."""
        if not trainer.is_global_zero or (log_step(trainer) + 1) % self.every_n_steps or pl_module.step is None:
            return
        for kind, values in pl_module.step.prediction.residuals.items():
            sample = _sampled(values)
            if len(sample) == 0:
                continue
            parts = np.quantile(sample, QUANTILES)
            log_scalars(trainer, {f"residual/{kind}/q{100 * q:02.0f}": float(v) for q, v in zip(QUANTILES, parts)})
            if has_wandb(trainer):
                log_media(trainer, {f"residual/{kind}": wandb.Histogram(np_histogram=np.histogram(sample, bins=64))})


def _sampled(values: Float[Tensor, ...]) -> Float[np.ndarray, " n"]:
    """Finite values, at most 2¹⁸ of them, evenly spread."""
    flat = values.detach().flatten()
    flat = flat[:: max(1, len(flat) // _SAMPLE)].float().cpu()
    return flat[torch.isfinite(flat)].numpy()


class MetricTable(lightning.Callback):
    """After every validation, a wandb table `val/table`: a row for each data set, factor, source and method."""

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Make it of what the module has logged."""
        if trainer.sanity_checking or not trainer.is_global_zero or not has_wandb(trainer):
            return
        columns, data = metric_table({k: float(v) for k, v in trainer.callback_metrics.items()})
        if data:
            log_media(trainer, {"val/table": wandb.Table(columns=columns, data=data)})


def metric_table(values: Mapping[str, float]) -> tuple[list[str], list[list[str | int | float | None]]]:
    """Columns and rows made of `val/<dataset>/x<factor>/<source>/<method>/<metric>`; other names are left out."""
    cells: dict[tuple[str, int, str, str], dict[str, float]] = defaultdict(dict)
    for name, value in values.items():
        match = _METRIC.fullmatch(name)
        if match:
            dataset, factor, source, method, metric = match.groups()
            cells[dataset, int(factor), source, method][metric] = value
    metrics = sorted({m for row in cells.values() for m in row})
    columns = ["data set", "factor", "source", "method", *metrics]
    return columns, [[*key, *(cells[key].get(m) for m in metrics)] for key in sorted(cells)]
