"""Lightning module: coarse stage → network → render → loss, once per optimiser step and process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.optim import Optimizer

from sr3d.coarse import CoarseConfig, DepthSource
from sr3d.datasets.batch import Batch
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.models.checkpoint import CONFIG_KEY, PREFIX, network_entries
from sr3d.models.config import SuperResolverConfig
from sr3d.models.estimate import out_of_memory_explained
from sr3d.models.inputs import sight_problems
from sr3d.models.prediction import Prediction
from sr3d.rendering import Rendering, render
from sr3d.training.augment import AugmentConfig
from sr3d.training.check import changed_keys, check_module, check_warmup, check_width
from sr3d.training.compilation import compile_dense
from sr3d.training.conditions import ConditionConfig, Embedder
from sr3d.training.ema import Ema
from sr3d.training.evaluate import Drawn, with_source
from sr3d.training.guard import Guard, not_finite
from sr3d.training.losses import LossConfig, Losses
from sr3d.training.memory import check_budget, most_gaussians
from sr3d.training.perceptual import Net
from sr3d.training.processes import any_process, gather, mean_over_processes
from sr3d.training.randomness import random_states, restore_random_states
from sr3d.training.record import PendingStep, StepRecord, detached
from sr3d.training.samples import batch_factor, clip_names, coarse_of, draw_batch, draw_told
from sr3d.training.schedule import parameter_groups, warmup_cosine
from sr3d.training.sharding import check_skippable, is_sharded, shard, whole
from sr3d.training.start import starting_network
from sr3d.training.stopwatch import Stopwatch
from sr3d.training.teachers import TeacherConfig
from sr3d.training.validation import Scores, draw_usable

_EMA, _STATE, _RANDOM = "ema_state", "sr3d_training", "random_states"


class SuperResolverModule(lightning.LightningModule):
    """Trains a `SuperResolver` on batches of posed clips.

    Args:
        network: Architecture; or the name of a size or a file with weights, to start from.
        coarse: Coarse stage, without training.
        sources: Where coarse depth comes from; one of them is drawn for each clip.
        loss: Weights.
        teacher: Of the semantic loss.
        condition: What a network with conditioning is told about each clip, in training and validation.
        perceptual: Network of the LPIPS loss.
        augmentation: Of training batches.
        learning_rate: Peak of the schedule (AdamW).
        warmup_steps: Linear warm-up, then cosine to 2 % of the peak at the trainer's last step.
        weight_decay: Of AdamW, on everything but biases and norms.
        ema_decay: Of the moving average of the weights, which is validated and released; 0 turns it off.
        compile: Compile the dense parts of the network (torch.compile).
        checkpointing: Recompute activations in the backward pass: less memory, more time.
        max_gaussians: Most Gaussians per device and step; null: any number.
        max_skipped: Skipped steps in a row after which training gives up.
        seed: Of the initial weights, the augmentation, and the choice between sources.

    Attributes:
        step: Record of the last training batch, for callbacks.
        timing: Wait for the GPU between the parts of a step, so that their times are true.
        ema: Moving average of the weights; None if it is off.
        scores: Of the last validation, per clip.

    Raises:
        Sr3dError: A setting is out of range, or two of them exclude each other.
    """

    def __init__(
        self,
        network: SuperResolverConfig | str,
        coarse: CoarseConfig,
        sources: list[DepthSource],
        loss: LossConfig,
        augmentation: AugmentConfig,
        learning_rate: float = 1e-3,
        warmup_steps: int = 50,
        weight_decay: float = 1e-4,
        ema_decay: float = 0.999,
        compile: bool = False,
        checkpointing: bool = False,
        max_gaussians: int | None = None,
        max_skipped: int = 20,
        teacher: TeacherConfig | None = None,
        condition: ConditionConfig | None = None,
        perceptual: Net = "vgg",
        seed: int = 0,
    ) -> None:
        super().__init__()
        settings = {
            "learning_rate": learning_rate,
            "warmup_steps": warmup_steps,
            "weight_decay": weight_decay,
            "ema_decay": ema_decay,
            "max_gaussians": max_gaussians,
            "max_skipped": max_skipped,
            "sources": sources,
        }
        # Before the network is made: an encoder may have to be downloaded.
        check_module(settings, loss, teacher, condition, None if isinstance(network, str) else network)
        self.network = starting_network(network, condition, loss, seed)
        check_module(settings, loss, teacher, condition, self.network.config)
        self.embedder = None if condition is None else Embedder(condition)
        self.losses = Losses(loss, teacher, perceptual)
        check_width(self.embedder, self.losses.teacher, self.network.config)
        self.checkpointing = checkpointing
        self.network.set_checkpointing(checkpointing)
        self.coarse, self.sources, self.augmentation = coarse, sources, augmentation
        self.learning_rate, self.warmup_steps, self.weight_decay = learning_rate, warmup_steps, weight_decay
        self.ema_decay, self.compiled, self.max_gaussians, self.seed = ema_decay, compile, max_gaussians, seed
        self.ema: Ema | None = None
        self.step: StepRecord | None = None
        self.scores, self._loaded_updates = Scores(), 0
        self._guard, self._watch, self._pending = Guard(max_skipped), Stopwatch(), PendingStep()
        self._random: dict[str, Tensor] | None = None
        self._loaded_ema: dict[str, Tensor] | None = None
        self.strict_loading = False  # checkpoints have no teachers; `load_state_dict` is strict about the network

    @property
    def timing(self) -> bool:
        """Whether a step waits for the GPU between its parts."""
        return self._watch.synchronise

    @timing.setter
    def timing(self, on: bool) -> None:
        self._watch.synchronise = on

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with warm-up and cosine decay over the trainer's steps.

        Raises:
            Sr3dError: The warm-up is longer than the training.
        """
        total = max(1, int(self.trainer.estimated_stepping_batches))
        check_warmup(self.warmup_steps, total)
        groups = parameter_groups(self.network, self.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.99))
        schedule = partial(warmup_cosine, warmup=self.warmup_steps, total=total)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_model(self) -> None:
        """Split the network, where the trainer's strategy has a mesh of devices (ModelParallelStrategy)."""
        if self.device_mesh is not None and not is_sharded(self.network):
            shard(self.network, self.device_mesh["data_parallel"])

    def on_fit_start(self) -> None:
        """Compile; the parts of the loss are the same in all processes."""
        self.losses.agree(self.device)
        if self.compiled:
            compile_dense(self.network)

    def on_train_start(self) -> None:
        """Start the average; weights are restored by now, whatever the strategy."""
        self._start_ema()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch; 0, to be skipped, where nothing can be learned from a clip.

        Raises:
            Sr3dError: More Gaussians than `max_gaussians`, or out of memory.
        """
        if self._random is not None:
            # Only now: what was drawn while the run was set up again does not count.
            restore_random_states(self._random, self.global_rank)
            self._random = None
        size, pending = len(batch.context.images), self._pending
        per_process = self.trainer.accumulate_grad_batches * size
        first = self.global_rank * per_process + pending.clips
        pending.clips += size
        with self._float32(), self._memory(batch):
            batch, sources = draw_batch(batch, self.sources, self.augmentation, self.seed, self.global_step, first)
            coarse = coarse_of(batch.context, sources, self.coarse)
            bad = sight_problems(coarse, batch.context.posed())
            self._watch.mark("coarse")
            if bad:
                pending.problems += [f"{clip_names(batch)[i]}: {reason}" for i, reason in bad]
                return self._nothing(bad[0][1], batch)
            count = most_gaussians(self.network.config.scaffold, len(coarse), batch_factor(batch))
            check_budget(size * count, self.max_gaussians, batch)
            prediction = self._predict(coarse, batch, first)
            self._watch.mark("network")
            target, high = self._draw(prediction.gaussians, batch)
            self._watch.mark("render")
            losses = self.losses(prediction, target, high, batch, self.network)
            self._watch.mark("loss")
        error = (target.rgb.detach() - batch.target.images).square().mean()
        values = {k: v.detach() for k, v in losses.items()}
        pending.names.append(clip_names(batch))
        pending.losses.append({**values, "psnr": error})
        self.step = StepRecord(
            batch=batch,
            sources=sources,
            prediction=detached(prediction),
            losses=values,
            seconds=self._watch.seconds,
            samples=size,
        )
        return losses["loss"]

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Gradients.

        Raises:
            Sr3dError: Out of memory.
        """
        self._watch.mark()
        with contextlib.nullcontext() if self.step is None else self._memory(self.step.batch):
            super().backward(loss, *args, **kwargs)
        self._watch.mark("backward")

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Leave the step out, in all processes alike, if any of them has something that is not finite.

        Raises:
            Sr3dError: Too many steps in a row were left out.
        """
        self._watch.mark()
        pending, self._pending = self._pending, PendingStep()
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        problems = pending.problems or not_finite([v["loss"] for v in pending.losses], pending.names, gradients)
        if any_process(bool(problems), self.device):
            # AdamW passes over parameters without a gradient: neither they nor its moments change.
            optimizer.zero_grad(set_to_none=True)
            self._guard.skipped(self.global_step, [p for part in gather(problems) for p in part])
        else:
            self._guard.passed()
            parts = {k: torch.stack([part[k] for part in pending.losses]).mean() for k in pending.losses[0]}
            means = mean_over_processes(parts)
            means["psnr"] = -10 * torch.log10(means["psnr"].clamp_min(1e-10))
            bar = {f"train/{k}": means.pop(k) for k in ("loss", "psnr")}
            self.log_dict(bar, prog_bar=True, batch_size=1)
            self.log_dict({f"train/{k}": v for k, v in means.items()}, batch_size=1)
        self.log("train/skipped", float(self._guard.total), batch_size=1)
        self._watch.mark()

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """One step, and one of the average of the weights if it was not left out."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.ema is not None and not self._guard.row:
            self.ema.update()
        self._watch.mark("optimiser")

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Time spent waiting for the batch."""
        self._watch.mark("data")

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """The next batch has its own times."""
        self._watch.clear()
        self._watch.mark()

    def on_validation_start(self) -> None:
        """Validate the averaged weights."""
        self._start_ema()
        self.scores = Scores()
        if self.ema is not None:
            self.ema.swap()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Drawn]:
        """Draw a batch by every method, from every source of depth, but for clips without overlap.

        Returns:
            The drawings by source, which callbacks show.

        Raises:
            Sr3dError: Out of memory.
        """
        drawings: dict[str, Drawn] = {}
        with self._float32(), self._memory(batch):
            for source in self.sources:
                drawn, problems = draw_usable(self.network, batch, with_source(self.coarse, source), self.embedder)
                self.scores.problems += problems
                if drawn is not None:
                    drawings[source] = drawn
                    self.scores.add(drawn.batch, source, drawn)
        return drawings

    def on_validation_epoch_end(self) -> None:
        """Metrics over all processes; the network's own weights return before any checkpoint is written."""
        for name, value in self.scores.merged().items():
            self.log(name, value, prog_bar=name.endswith("/gain"), batch_size=1, sync_dist=True)
        if self.ema is not None:
            self.ema.swap()

    def on_validation_end(self) -> None:
        """Validation is no time of a step."""
        self._watch.mark()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Weights of the network alone: frozen teachers and embedders are no part of a checkpoint."""
        state = super().state_dict(*args, **kwargs)
        return {k: v for k, v in state.items() if k.startswith(PREFIX)}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Weights of the network, by the names of `state_dict`: all of them, whatever `strict` says."""
        own = {k.removeprefix(PREFIX): v for k, v in state_dict.items() if k.startswith(PREFIX)}
        return self.network.load_state_dict(own, assign=assign)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What the file needs to rebuild the network alone, and to go on exactly where the run was."""
        checkpoint.update(network_entries(self.network))
        checkpoint[_RANDOM] = random_states()
        checkpoint[_STATE] = {"skipped": self._guard.total, "skipped_in_a_row": self._guard.row}
        if self.ema is not None:
            checkpoint[_STATE]["ema_updates"] = self.ema.updates
            with self.ema.swapped():
                checkpoint[_EMA] = {k.removeprefix(PREFIX): whole(v).clone() for k, v in self.state_dict().items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint is of this network, and keep what is restored later.

        Raises:
            Sr3dError: It has another network, or no weights of one.
        """
        changed = changed_keys(checkpoint.get(CONFIG_KEY, {}), asdict(self.network.config))
        if changed:
            found = "; ".join(f"{key} {old!r}, now {new!r}" for key, old, new in changed)
            raise Sr3dError("checkpoint", "model.network", found, "the network that it was trained with")
        state = checkpoint.get(_STATE, {})
        self._guard.total, self._guard.row = state.get("skipped", 0), state.get("skipped_in_a_row", 0)
        # Weights are put in after this; the average of a checkpoint without one starts with them.
        self.ema, self._loaded_ema = None, checkpoint.get(_EMA)
        self._random = checkpoint.get(_RANDOM)
        self._loaded_updates = state.get("ema_updates", 0)

    def _start_ema(self) -> None:
        """The average exists from the first step or validation on, when weights are restored and on their device."""
        if self.ema is not None or not self.ema_decay:
            return
        self.ema = Ema(self.network, self.ema_decay)
        if self._loaded_ema is not None:
            self.ema.load(self._loaded_ema, self._loaded_updates)
            self._loaded_ema = None

    def _memory(self, batch: Batch) -> contextlib.AbstractContextManager[None]:
        """Explains what a batch needed where memory runs out."""
        return out_of_memory_explained(
            "training",
            self.network.config,
            batch.context.images,
            batch_factor(batch),
            training=self.training,
            precision="bf16" if self.training and self.trainer.precision == "bf16-mixed" else "fp32",
            checkpointing=self.checkpointing,
            targets=batch.target.images.shape[1],
        )

    @contextlib.contextmanager
    def _float32(self) -> Iterator[None]:
        """Geometry, rendering and losses keep full precision under mixed precision; see `_predict` for the network."""
        kind = self.device.type
        self._mixed = torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False):
            yield

    def _predict(self, coarse: Gaussians, batch: Batch, first: int) -> Prediction:
        """The network, under mixed precision if the trainer wants that; `first` as in `draw_batch`."""
        kind, low, factor = self.device.type, batch.context, batch_factor(batch)
        about = known = None
        if self.embedder is not None:
            about, known = self.embedder(batch)
            share = 1 - self.embedder.config.drop
            known &= draw_told(len(known), share, self.seed, self.global_step, first).to(known.device)
        with torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), enabled=self._mixed):
            return self.network.predict(
                coarse, low.images, low.posed(), factor=factor, embedding=about, has_embedding=known
            )

    def _draw(self, fine: Gaussians, batch: Batch) -> tuple[Rendering, Rendering | None]:
        """The target views, and the input views at full resolution where a loss asks for them."""
        fine, features = fine.to(torch.float32), self.losses.needs_features
        target = render(fine, batch.target.posed(), lod=False, features=features)
        if not self.losses.needs_high:
            return target, None
        return target, render(fine, batch.high.posed(), lod=False, features=features)

    def _nothing(self, reason: str, batch: Batch) -> Tensor:
        """A loss of 0 that every parameter takes part in, as processes that train together expect."""
        check_skippable(self.network, batch.context.name, reason)
        return torch.stack([p.sum() * 0 for p in self.network.parameters() if p.requires_grad]).sum()
