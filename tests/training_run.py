"""A training by the command line that writes down every step; run as a script by the tests of training."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml

from sr3d.coarse import CoarseConfig
from sr3d.datasets.batch import Batch
from sr3d.datasets.reader import BatchConfig, ClipBatches
from sr3d.datasets.views import ViewConfig
from sr3d.models.decoder import DecoderConfig
from sr3d.models.encoder import EncoderConfig
from sr3d.models.refinement import RefinementConfig
from sr3d.models.resolver import SuperResolverConfig
from sr3d.models.scaffold import ScaffoldConfig
from sr3d.training.augment import AugmentConfig
from sr3d.training.checkpoints import AtomicCheckpointIO
from sr3d.training.cli import run
from sr3d.training.losses import LossConfig
from sr3d.training.module import SuperResolverModule
from sr3d.training.samples import clip_names
from sr3d.training.sharding import whole

EVERY = 10


class Trace(lightning.Callback):
    """Appends a line for each optimiser step to a file of its process; the last digit of every number counts."""

    def __init__(self, folder: str, pause: float = 0.0) -> None:
        self.folder, self.pause = Path(folder), pause
        self._names: list[str] = []
        self._sources: list[str] = []
        self._step = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """A resumed run goes on counting."""
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Losses over all processes, clips of this one, and sums of the weights and of their average."""
        assert isinstance(pl_module, SuperResolverModule) and pl_module.ema is not None and pl_module.step is not None
        self._names += clip_names(batch)
        self._sources += pl_module.step.sources
        if trainer.global_step == self._step:
            return
        line = {
            "step": trainer.global_step,
            "losses": {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/")},
            "names": self._names,
            "sources": self._sources,
            "rate": trainer.optimizers[0].param_groups[0]["lr"],
            "weights": sum(_size(p) for p in pl_module.network.parameters()),
            "ema": sum(_size(v) for v in pl_module.ema.shadow.values()),
        }
        self._names, self._sources, self._step = [], [], trainer.global_step
        with (self.folder / f"trace-{trainer.global_rank}.txt").open("a") as file:
            file.write(json.dumps(line) + "\n")
        time.sleep(self.pause)


def _size(tensor: torch.Tensor) -> float:
    return float(whole(tensor.detach().double().abs().sum()))


def trace(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    """What a process has written so far."""
    path = folder / f"trace-{rank}.txt"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_config(folder: Path, shards: Path, *, steps: int, pause: float = 0.0, drop: float = 0.0, **data: Any) -> Path:
    """A tiny network on tiny clips, every random thing turned on, a checkpoint every tenth step."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = {
        "dirpath": str(folder), "filename": "{step}", "save_top_k": -1, "every_n_train_steps": EVERY
    }  # fmt: skip
    values = {
        "trainer": {
            "max_steps": steps, "accelerator": "cpu", "devices": 1, "gradient_clip_val": 1.0, "log_every_n_steps": 1,
            "val_check_interval": 7, "check_val_every_n_epoch": None, "limit_val_batches": 1,
            "num_sanity_val_steps": 0, "enable_progress_bar": False, "enable_model_summary": False, "logger": False,
            "default_root_dir": str(folder),
            "callbacks": [
                {"class_path": "training_run.Trace", "init_args": {"folder": str(folder), "pause": pause}},
                {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": checkpoint},
            ],
        },
        "model": {
            "sources": ["depth", "sweep"], "warmup_steps": 5, "learning_rate": 2e-3, "ema_decay": 0.9,
            "augmentation": {"depth_noise": 0.01, "depth_edges": 0.25, "gain": 0.7, "exposure": 0.1, "noise": 0.005},
            "loss": {"mse": 1.0, "dssim": 0.02, "context": 0.5},
            "coarse": {"source": "depth"},
            "network": {
                "factor": 4, "scaffold": {"grid": 2},
                "encoder": {"options": {"embed_dim": 24, "depth": 1, "num_heads": 2, "proj_drop_rate": drop}},
                "refinement": {"heads": 2}, "decoder": {"blocks": 1, "heads": 2, "width": 16, "fine": 8},
            },
        },
        "data": {
            "train_shards": str(shards / "train"), "val_shards": str(shards / "val"), "factor": 4,
            "views": {"context": [2, 3], "target": 1}, "val_views": {"context": 2, "target": 1},
            "global_batch_size": 2, **data,
        },
    }  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def small_network(**options: Any) -> SuperResolverConfig:
    """A network that takes milliseconds, factor 4."""
    return SuperResolverConfig(
        scaffold=ScaffoldConfig(grid=2),
        encoder=EncoderConfig(options={"embed_dim": 24, "depth": 1, "num_heads": 2}),
        refinement=RefinementConfig(heads=2),
        decoder=DecoderConfig(blocks=1, heads=2, width=16, fine=8),
        **options,
    )


def small_module(network: SuperResolverConfig | None = None, **options: Any) -> SuperResolverModule:
    """A module on `small_network`, depth as given, without augmentation."""
    values: dict[str, Any] = {"loss": LossConfig(), "sources": ["depth"], "warmup_steps": 2, "learning_rate": 1e-3}
    return SuperResolverModule(
        network=network or small_network(), coarse=CoarseConfig(), augmentation=AugmentConfig(), **values | options
    )


def small_batches(worlds: Path, count: int, clips: int = 2, views: int = 2) -> list[Batch]:
    """The first batches of the training worlds, on end."""
    config = BatchConfig(factor=4, batch_size=clips, views=ViewConfig(context=views, target=1))
    batches = list(ClipBatches(worlds / "train", config, shuffle=False))
    return [batches[i % len(batches)] for i in range(count)]


def fit(module: SuperResolverModule, batches: list[Batch], folder: Path, **options: Any) -> lightning.Trainer:
    """Train on a list of batches, one step each."""
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder, max_steps=len(batches), limit_val_batches=0,
        plugins=[AtomicCheckpointIO()], **options,
    )  # fmt: skip
    loader: Any = torch.utils.data.DataLoader(batches, batch_size=None)
    trainer.fit(module, loader)
    return trainer


if __name__ == "__main__":
    # The class that the configuration names has to be this one.
    sys.modules["training_run"] = sys.modules["__main__"]
    sys.exit(run())
