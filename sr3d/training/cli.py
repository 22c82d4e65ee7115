"""LightningCLI: `fit` and `validate` from one YAML file, every key checked before any data is read."""

from __future__ import annotations

import sys

import lightning
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import WandbLogger

from sr3d.datasets.datamodule import ClipDataModule
from sr3d.training.module import SuperResolverModule


def main(args: list[str] | None = None) -> lightning.Trainer:
    """Run a subcommand, e.g. `main(["fit", "--config", "configs/demo.yaml"])`; None takes the command line.

    Returns:
        The trainer; `trainer.checkpoint_callback.last_model_path` is the checkpoint of a `fit`.
    """
    before = sys.argv
    try:
        # LightningCLI warns when it is given arguments in a process that has some of its own.
        sys.argv = before if args is None else [before[0], *args]
        cli = LightningCLI(
            SuperResolverModule, ClipDataModule, seed_everything_default=0, save_config_kwargs={"overwrite": True}
        )
    finally:
        sys.argv = before
    trainer: lightning.Trainer = cli.trainer
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            # A run left open would swallow the next one of this process.
            logger.experiment.finish()
    return trainer
