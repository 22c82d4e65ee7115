"""A training of two processes that writes down every batch it sees; run as a script by the test of resuming."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from stored import H, W

from sr3d.datasets.batch import Batch
from sr3d.datasets.datamodule import ClipDataModule
from sr3d.datasets.views import ViewConfig

BATCH, SEED, EVERY = 2, 5, 4


class Tracer(lightning.LightningModule):
    """One number to learn; each step appends `step batch names` to a file of its process."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.weight = folder, torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Squared error of a constant image."""
        with (self.folder / f"trace-{self.global_rank}.txt").open("a") as file:
            checksum = float(batch.context.images.double().sum())
            file.write(f"{self.global_step}\t{batch_idx}\t{checksum!r}\t{batch.context.name}\n")
        time.sleep(0.05)
        return (batch.target.images.mean() - self.weight).square()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain descent."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data(shards: Path, workers: int) -> ClipDataModule:
    """Seven shards."""
    views = ViewConfig(context=1, target=1)
    return ClipDataModule(
        str(shards),
        str(shards),
        factor=2,
        views=views,
        image_size=(W, H),
        global_batch_size=2 * BATCH,
        workers=workers,
        seed=SEED,
    )


def main(shards: Path, folder: Path, limit: str, amount: int, workers: int) -> None:
    """Train until `amount` of `limit` ("max_steps" or "max_epochs"), going on from a checkpoint if there is one.

    Each process has `workers` worker processes.
    """
    last = folder / "last.ckpt"
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(dirpath=folder, filename="last", every_n_train_steps=EVERY, save_top_k=1,
                                   enable_version_counter=False)],
        **{"max_epochs": -1, limit: amount},
    )  # fmt: skip
    module = data(shards, workers)
    module.setup = lambda stage: None  # one set of shards serves both sides here
    trainer.fit(Tracer(folder), module, ckpt_path=str(last) if last.exists() else None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
