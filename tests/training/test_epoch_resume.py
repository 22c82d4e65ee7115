"""Resuming where an epoch ends, in one process."""

from __future__ import annotations

from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from stored import clip

from sr3d.datasets import write_shards
from sr3d.datasets.batch import Batch
from sr3d.datasets.datamodule import ClipDataModule
from sr3d.datasets.views import ViewConfig


class Seen(lightning.LightningModule):
    """Writes down what it trains on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.names = torch.nn.Parameter(torch.zeros(())), list[str]()

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.names.append(batch.context.name)
        return (batch.target.images.mean() - self.weight).square()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards((clip(i) for i in range(10)), folder / "train")
    write_shards([clip(99)], folder / "val")
    return folder


def _fit(shards: Path, folder: Path, workers: int = 0, ckpt: Path | None = None, **options: object) -> list[str]:
    views = ViewConfig(context=1, target=1)
    train, val = str(shards / "train"), str(shards / "val")
    data = ClipDataModule(train, val, factor=2, views=views, global_batch_size=2, workers=workers)
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, limit_val_batches=0, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1)], **options,
    )  # fmt: skip
    module = Seen()
    trainer.fit(module, data, ckpt_path=None if ckpt is None else str(ckpt), weights_only=True)
    return module.names


@pytest.mark.parametrize("limits", [{}, {"limit_train_batches": 3}, {"limit_train_batches": 0.6}])
@pytest.mark.parametrize("until", ["max_epochs", "max_steps"])
def test_an_epoch_that_has_ended_is_not_read_again(
    shards: Path, tmp_path: Path, until: str, limits: dict[str, int | float]
) -> None:
    size = 3 if limits else 5
    amount = {"max_epochs": 3} if until == "max_epochs" else {"max_steps": 3 * size}
    whole = _fit(shards, tmp_path, **amount, **limits)
    assert len(whole) == 3 * size and len({tuple(whole[i : i + size]) for i in (0, size, 2 * size)}) == 3
    for done in (1, 2):
        resumed = _fit(shards, tmp_path / "again", ckpt=tmp_path / f"step={done * size}.ckpt", **amount, **limits)
        assert resumed == whole[done * size :]


def test_workers_that_stay_alive_go_on_with_the_next_epoch(shards: Path, tmp_path: Path) -> None:
    assert _fit(shards, tmp_path, workers=2, max_epochs=3) == _fit(shards, tmp_path, max_epochs=3)
