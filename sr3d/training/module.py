"""Lightning module: coarse stage → network → render → loss."""

from __future__ import annotations

import math
import random
from dataclasses import asdict
from typing import Any, Literal

import lightning
import torch
from torch import Tensor

from sr3d.coarse import CoarseConfig, coarse_gaussians
from sr3d.datasets.batch import Batch
from sr3d.gaussians import Gaussians
from sr3d.models.checkpoint import CONFIG_KEY
from sr3d.models.resolver import SuperResolver, SuperResolverConfig
from sr3d.rendering import render
from sr3d.training.augment import AugmentConfig, augment
from sr3d.training.evaluate import draw_methods, with_source
from sr3d.training.losses import LossConfig, image_losses


class SuperResolverModule(lightning.LightningModule):
    """Trains a `SuperResolver` on batches of posed clips.

    Args:
        network: Architecture.
        coarse: Coarse stage, without training.
        sources: Where coarse depth comes from; each training step draws one of them.
        loss: Weights.
        augmentation: Of training batches.
        learning_rate: Peak of the schedule (AdamW).
        warmup_steps: Linear warm-up, then cosine to 2 % of the peak at the trainer's last step.
        weight_decay: Of AdamW.
        context_loss: Weight of the squared error on the input views at full resolution, beside the views between them.
        seed: Of the initial weights and of the choice between sources.
    """

    def __init__(
        self,
        network: SuperResolverConfig,
        coarse: CoarseConfig,
        sources: list[Literal["depth", "sweep"]],
        loss: LossConfig,
        augmentation: AugmentConfig,
        learning_rate: float = 1e-3,
        warmup_steps: int = 50,
        weight_decay: float = 1e-4,
        context_loss: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = SuperResolver(network)
        self.coarse, self.sources, self.loss, self.augmentation = coarse, sources, loss, augmentation
        self.learning_rate, self.warmup_steps, self.weight_decay = learning_rate, warmup_steps, weight_decay
        self.context_loss, self.seed = context_loss, seed

    def fine(self, batch: Batch, source: str) -> Gaussians:
        """Fine Gaussians of every scene in the batch. [B, N]"""
        coarse = coarse_gaussians(batch.context, with_source(self.coarse, source))
        return self.network(coarse, batch.context.images, batch.context.posed())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        # Drawn from (seed, step, rank): a resumed run makes the same choices.
        draw = random.Random(f"{self.seed}-{self.global_step}-{self.global_rank}")
        source = draw.choice(self.sources)
        batch = augment(batch, self.augmentation, torch.Generator().manual_seed(draw.getrandbits(62)))
        fine = self.fine(batch, source)
        drawn = render(fine, batch.target.posed(), lod=False)
        losses = image_losses(drawn.rgb, batch.target.images, self.loss)
        total = losses["loss"]
        if self.context_loss:
            again = render(fine, batch.high.posed(), lod=False)
            total = total + self.context_loss * (again.rgb - batch.high.images).square().mean()
        size = len(batch.target.images)
        self.log("train/loss", total, prog_bar=True, batch_size=size)
        self.log_dict({f"train/{k}": v for k, v in losses.items() if k != "loss"}, batch_size=size)
        self.log("train/psnr", -10 * torch.log10(losses["mse"].detach()), prog_bar=True, batch_size=size)
        return total

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Metrics of every method, for every source of depth."""
        for source in self.sources:
            drawn = draw_methods(self.network, batch, with_source(self.coarse, source))
            for method in drawn.renderings:
                values = {f"val/{source}/{method}/{k}": v.nanmean() for k, v in drawn.metrics(method).items()}
                self.log_dict(values, batch_size=len(batch.target.images))
            ours, base = (drawn.metrics(m)["psnr_covered"].nanmean() for m in ("sr3d", "upsampled"))
            self.log(f"val/{source}/gain", ours - base, prog_bar=True, batch_size=len(batch.target.images))

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with warm-up and cosine decay over the trainer's steps."""
        optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, betas=(0.9, 0.99)
        )
        total = max(1, int(self.trainer.estimated_stepping_batches))

        def schedule(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / self.warmup_steps
            done = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
            return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the network's config beside its weights, so that the file alone rebuilds it."""
        checkpoint[CONFIG_KEY] = asdict(self.network.config)
