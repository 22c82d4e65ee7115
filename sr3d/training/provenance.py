"""What a run was made from: configuration, state of the code, versions, hardware."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from lightning.pytorch.cli import SaveConfigCallback

import sr3d
from sr3d.io.atomic import atomic
from sr3d.training.loggers import CSVLogger, WandbLogger, log_step, run_folder

_WANDB_KEY = "wandb_run"
_PACKAGES = ("sr3d", "torch", "lightning", "gsplat", "timm", "transformers", "numba", "numpy", "wandb")


@dataclass(kw_only=True)
class GitState:
    """State of a checkout.

    Attributes:
        commit: Full hash of HEAD.
        branch: Its branch, "HEAD" where none is checked out.
        dirty: Whether tracked files differ from the commit.
        diff_stat: Which, and by how many lines (`git diff --stat HEAD`).
    """

    commit: str
    branch: str
    dirty: bool
    diff_stat: str


def git_state(folder: Path) -> GitState | None:
    """State of the checkout whose tracked files include `folder`; None without git, or where it knows none of them."""
    if not _git(folder, "ls-files", "--", "."):
        return None
    commit, branch = _git(folder, "rev-parse", "HEAD"), _git(folder, "rev-parse", "--abbrev-ref", "HEAD")
    diff = _git(folder, "diff", "--stat", "HEAD")
    if not commit or not branch or diff is None:
        return None
    return GitState(commit=commit, branch=branch, dirty=bool(diff), diff_stat=diff)


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, None where it fails or does not exist."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "--no-optional-locks", *arguments], capture_output=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip()


def machine() -> dict[str, Any]:
    """Host, processors, Python and package versions."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = {"host": platform.node(), "cores": os.cpu_count(), "gpus": gpus, "python": platform.python_version()}
    return found | {"versions": {name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def run_config(trainer: lightning.Trainer, module: lightning.LightningModule) -> dict[str, Any]:
    """Every key of the run as LightningCLI resolved it; for a trainer built by hand the hyperparameters it knows of."""
    for callback in trainer.callbacks:
        if isinstance(callback, SaveConfigCallback):
            return dict(yaml.safe_load(callback.parser.dump(callback.config, skip_none=False)))
    return {k: str(v) for k, v in module.hparams.items()}


class RunRecord(lightning.Callback):
    """Writes down what a run starts from, and makes a resumed one go on with the logs of the killed one.

    `run-step000000.json` in the run's folder, and wandb's config, get the configuration, the state of git, versions and
    hardware; a resumed run adds a file for the step at which it starts. Rows that a killed run wrote to the CSV after
    its last checkpoint are dropped, and wandb goes on with the same run. Put it first in the list of callbacks.
    """

    def __init__(self) -> None:
        self._pending = False

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Go on with the wandb run of the checkpoint."""
        for logger in trainer.loggers:
            if trainer.training and isinstance(logger, WandbLogger) and _WANDB_KEY in checkpoint:
                logger.resume(checkpoint[_WANDB_KEY])

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Keep the id of the wandb run."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and trainer.is_global_zero:
                checkpoint[_WANDB_KEY] = logger.run.id

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The step is known with the first batch only."""
        self._pending = trainer.is_global_zero

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Write the record, before the first step."""
        if not self._pending:
            return
        self._pending = False
        step = log_step(trainer)
        state = git_state(Path(sr3d.__file__).parent)
        record: dict[str, Any] = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "step": step,
            "command": sys.argv,
            "git": None if state is None else asdict(state),
            "machine": machine() | {"processes": trainer.world_size, "precision": str(trainer.precision)},
            "config": run_config(trainer, pl_module),
        }
        folder = run_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(folder / f"run-step{step:06d}.json") as temporary:
            temporary.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.start(step)
            if isinstance(logger, WandbLogger):
                flat = {**record["config"], **{k: record[k] for k in ("git", "machine", "command")}}
                logger.run.config.update(flat, allow_val_change=True)
