"""What people see while a network trains: memory on the progress bar, pictures of validation views."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from sr3d.datasets.batch import Batch
from sr3d.io.images import write_image
from sr3d.training.evaluate import draw_methods, with_source
from sr3d.training.module import SuperResolverModule


class MemoryOnBar(lightning.Callback):
    """Peak memory in GiB beside the loss: of the process, and of the GPU where there is one."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log after every step."""
        # Linux reports kilobytes, macOS bytes.
        unit = 2**30 if sys.platform == "darwin" else 2**20
        pl_module.log("ram_gib", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, prog_bar=True)
        if torch.cuda.is_available():
            pl_module.log("gpu_gib", torch.cuda.max_memory_allocated() / 2**30, prog_bar=True)


class ImagePanels(lightning.Callback):
    """A strip of pictures per validation clip: input, coarse, upsampled, scaffold, ours, truth.

    Strips go to `panels/` beside the CSV log and, where a wandb logger is attached, to wandb.

    Args:
        clips: Number of validation batches to draw.
    """

    def __init__(self, clips: int = 2) -> None:
        self.clips = clips

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first target view of the first scene of the batch."""
        if batch_idx >= self.clips or trainer.sanity_checking or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, SuperResolverModule)
        source = pl_module.sources[0]
        strip = panel(pl_module, batch, source)
        folder = Path(trainer.log_dir or ".") / "panels"
        folder.mkdir(parents=True, exist_ok=True)
        write_image(folder / f"step{trainer.global_step:06d}-clip{batch_idx}.png", strip)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                caption = "input · coarse · upsampled · scaffold · sr3d · truth"
                logger.log_image(f"val/{source}/clip{batch_idx}", [strip.numpy()], caption=[caption])


def panel(module: SuperResolverModule, batch: Batch, source: str) -> Tensor:
    """One strip [H, 6 · W, 3] in [0, 1] for the first target view of the first scene."""
    drawn = draw_methods(module.network, batch, with_source(module.coarse, source))
    truth = batch.target.images[0, 0]
    # The nearest input view, enlarged without smoothing, shows how little the network is given.
    small = batch.context.images[0, 0].repeat_interleave(module.network.config.factor, 0)
    tiles = [small.repeat_interleave(module.network.config.factor, 1)]
    tiles += [drawn.renderings[m].rgb[0, 0].clamp(0, 1) for m in drawn.renderings]
    return torch.cat([*tiles, truth], dim=1).cpu()
