"""LightningCLI: `fit` and `validate` from one YAML file, every key checked before any data is read."""

from __future__ import annotations

import os
import sys
from typing import Any

import lightning
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.plugins.io import CheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from sr3d.datasets.datamodule import ClipDataModule
from sr3d.errors import Sr3dError
from sr3d.training.check import check_run, check_stages
from sr3d.training.checkpoints import AtomicCheckpointIO, FinalCheckpoint, newest_checkpoint
from sr3d.training.module import SuperResolverModule
from sr3d.training.requeue import RequeueOnSignal
from sr3d.training.sharding import strategy_of


class TrainingCLI(LightningCLI):
    """Lightning's command line with checks across model, data and trainer, atomic checkpoints, and resuming."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One more option: `resume`."""
        text = "Go on from the newest checkpoint of this configuration, if there is one; requeued SLURM jobs always do."
        parser.add_argument("--resume", type=bool, default=False, help=text)

    def instantiate_classes(self) -> None:
        """Model, data and trainer.

        Raises:
            Sr3dError: A setting is out of range.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            # What an optional group of settings says about itself is the cause of the parser's own error.
            if isinstance(error.__cause__, Sr3dError):
                raise error.__cause__ from None
            raise

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        """A trainer whose checkpoints are whole or not there, the last one of the last step; under SLURM requeued.

        Raises:
            Sr3dError: Lightning cannot do what is asked for, or not here.
        """
        asked = self._get(self.config_init, "trainer")
        plugins = asked.get("plugins") or []
        plugins = list(plugins) if isinstance(plugins, list) else [plugins]
        if not any(isinstance(p, CheckpointIO) for p in plugins):
            plugins.append(AtomicCheckpointIO())
        strategy = strategy_of(asked.get("strategy") or "auto")
        try:
            trainer: lightning.Trainer = super().instantiate_trainer(**kwargs, plugins=plugins, strategy=strategy)
        except (MisconfigurationException, ModuleNotFoundError) as error:
            expected = "settings that go together, and devices that are here (e.g. --trainer.accelerator cpu)"
            raise Sr3dError("config", "trainer", str(error).strip().splitlines()[0], expected) from None
        if SLURMEnvironment.detect():
            trainer.callbacks.insert(0, RequeueOnSignal())
        trainer.callbacks.append(FinalCheckpoint())
        return trainer

    def after_instantiate_classes(self) -> None:
        """Check what belongs together.

        Raises:
            Sr3dError: Names the key.
        """
        module, data, trainer = self.model, self.datamodule, self.trainer
        network = module.network.config
        # As it was asked for: on a CPU, Lightning has replaced some by now.
        precision = self._get(self.config_init, "trainer").get("precision") or trainer.precision
        check_run(_factors(data), network, module.warmup_steps, trainer.max_steps, str(precision))
        parts = trainer.num_devices * trainer.num_nodes * trainer.accumulate_grad_batches
        check_stages(data, network.scaffold, module.max_gaussians, parts, trainer.max_steps)

    def before_fit(self) -> None:
        """Find the checkpoint to go on from.

        Raises:
            Sr3dError: It is not known where checkpoints are written.
        """
        config = self.config_init["fit"]
        requeued = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
        if config["ckpt_path"] is not None or not (config["resume"] or requeued):
            return
        folders = [self.trainer.default_root_dir]
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                expected = "a folder, the same for every start of the run"
                raise Sr3dError("config", "dirpath of ModelCheckpoint", None, expected)
            folders.append(callback.dirpath)
        path = newest_checkpoint(folders)
        rank_zero_info(f"no checkpoint yet in {', '.join(map(str, folders))}" if path is None else f"resuming {path}")
        config["ckpt_path"] = None if path is None else str(path)


def _factors(data: ClipDataModule) -> list[tuple[str, int | float]]:
    """Keys of a data module and the factors that they ask for."""
    config = data.train_config
    stages = config.curriculum.stages if config.curriculum is not None else []
    drawn = [("data.curriculum.stages", factor) for stage in stages for factor in stage.factors or []]
    return [("data.factor", config.factor), *drawn, *(("data.val_factors", f) for f in data.val_factors)]


def main(args: list[str] | None = None) -> lightning.Trainer:
    """Run a subcommand, e.g. `main(["fit", "--config", "configs/demo.yaml"])`; None takes the command line.

    Returns:
        The trainer; `trainer.checkpoint_callback.last_model_path` is the checkpoint of a `fit`.

    Raises:
        Sr3dError: A setting, the data or a checkpoint is wrong, or memory runs out.
    """
    before = sys.argv
    try:
        # LightningCLI warns when it is given arguments in a process that has some of its own.
        sys.argv = before if args is None else [before[0], *args]
        cli = TrainingCLI(
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


def run() -> int:
    """`main` for a shell.

    Returns:
        Exit status: 0, or 2 for wrong input (one line `error: ...` on standard error).
    """
    try:
        main()
    except Sr3dError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
