"""Checkpoints on disk: written whole or not at all, read without executing anything, found again."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from sr3d.errors import Sr3dError
from sr3d.io.atomic import atomic

# Where a run that a cluster interrupts leaves its state, in the trainer's default_root_dir.
REQUEUE = "requeue.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name in the same folder, then renames; reads tensors and plain values only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write; the file of that name is the old or the new one at any moment.

        Raises:
            Sr3dError: The file cannot be written.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read; `weights_only` is always on.

        Raises:
            Sr3dError: The file is missing, broken, or holds more than tensors and plain values.
        """
        try:
            content = torch.load(path, map_location=map_location, weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise Sr3dError(path, "checkpoint", f"unreadable ({reason})", "a complete .ckpt file of sr3d") from None
        if not isinstance(content, dict) or "state_dict" not in content:
            raise Sr3dError(path, "checkpoint", "no state_dict", "a .ckpt file of a training run")
        return content


class FinalCheckpoint(lightning.Callback):
    """Every `ModelCheckpoint` writes after the last step, too: Lightning's own asks for a multiple of its interval.

    Has to be the last callback. One that keeps the best by a metric is left alone.
    """

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Where others write: at the end of the training it would be a checkpoint of the next epoch."""
        if not trainer.should_stop and trainer.global_step < trainer.estimated_stepping_batches:
            return
        for callback in trainer.checkpoint_callbacks:
            own = isinstance(callback, ModelCheckpoint) and callback.monitor is None
            if own and not callback._should_skip_saving_checkpoint(trainer):
                candidates = callback._monitor_candidates(trainer)
                callback._save_topk_checkpoint(trainer, candidates)
                callback._save_last_checkpoint(trainer, candidates)


def newest_checkpoint(folders: Iterable[str | Path]) -> Path | None:
    """The checkpoint that was written last in any of the folders; None if there is none."""
    files = [f for folder in folders for f in Path(folder).glob("*.ckpt") if not f.name.startswith(".")]
    return max(files, key=lambda f: f.stat().st_mtime_ns, default=None)
