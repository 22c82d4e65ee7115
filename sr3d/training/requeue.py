"""SLURM: a signal shortly before the time is up → checkpoint → the job is put back into the queue."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from sr3d.training.checkpoints import REQUEUE
from sr3d.training.processes import any_process


class RequeueOnSignal(lightning.Callback):
    """On the cluster's signal: finish the optimiser step, write `requeue.ckpt`, call `scontrol requeue`, stop.

    Lightning's own handler writes at once, in the middle of whatever the process is doing: half of an optimiser step
    may be lost. This one is there first, and Lightning leaves it alone.

    Args:
        signum: What the job's `--signal` option sends to every process.
    """

    def __init__(self, signum: signal.Signals = signal.SIGUSR1) -> None:
        self.signum, self._asked, self._seen = signum, False, -1

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Listen."""
        if stage == "fit":
            self._seen = trainer.global_step
            signal.signal(self.signum, self._note)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Act after a whole optimiser step, when all processes are there."""
        if trainer.global_step == self._seen:
            return
        self._seen = trainer.global_step
        if not any_process(self._asked, pl_module.device):
            return
        self._asked = False
        path = Path(trainer.default_root_dir) / REQUEUE
        trainer.save_checkpoint(path)
        rank_zero_info(f"interrupted by {self.signum.name} at step {trainer.global_step}: {path} written")
        if trainer.is_global_zero:
            _requeue()
        trainer.should_stop = True

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._asked = True


def _requeue() -> None:
    """Ask SLURM to start this job again."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        rank_zero_warn(f"job {job} could not be put back into the queue: {error}")
