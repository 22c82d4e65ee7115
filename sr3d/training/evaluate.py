"""Validation clips drawn by every method: coarse, upsampled, scaffold and sr3d."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sr3d.coarse import CoarseConfig, DepthSource, coarse_gaussians, upsampled_gaussians
from sr3d.datasets.batch import Batch
from sr3d.gaussians import Gaussians
from sr3d.models import SuperResolver
from sr3d.rendering import Rendering, render
from sr3d.training.conditions import ConditionConfig, Embedder, clip_of
from sr3d.training.metrics import COVERED_ALPHA, image_metrics


@dataclass
class Drawn:
    """One batch drawn by every method.

    Attributes:
        batch: Inputs and truth.
        renderings: Per method, at the target cameras. [B, T]
        gaussians: Per method. [B, N]
    """

    batch: Batch
    renderings: dict[str, Rendering] = field(default_factory=dict)
    gaussians: dict[str, Gaussians] = field(default_factory=dict)

    @property
    def covered(self) -> Tensor:
        """Pixels where the coarse scene is solid. [B, T, H, W]"""
        return self.renderings["coarse"].alpha > COVERED_ALPHA

    def metrics(self, method: str) -> dict[str, Float[Tensor, "b t"]]:
        """`psnr`, `psnr_covered`, `ssim` of every target view."""
        return image_metrics(self.renderings[method].rgb, self.batch.target.images, self.covered)


@torch.no_grad()
def draw_methods(
    network: SuperResolver,
    batch: Batch,
    config: CoarseConfig,
    embedding: Float[Tensor, "b e"] | None = None,
    has_embedding: Bool[Tensor, " b"] | None = None,
    coarse: Gaussians | None = None,
) -> Drawn:
    """Build the scene by each method from the context views and draw it into the target cameras.

    Args:
        network: Used as it is.
        batch: Context, truth and target views.
        config: Coarse stage, the same for all methods.
        embedding: What the network is told about each clip, if it has conditioning.
        has_embedding: Clips that have one; all of them if None.
        coarse: What the coarse stage makes, where that is known. [B, M]

    Raises:
        Sr3dError: The batch has no poses, or no depth where the config asks for given depth.
    """
    cameras = batch.context.posed()
    factor = round(batch.high.posed().width / cameras.width)
    coarse = coarse_gaussians(batch.context, config) if coarse is None else coarse
    drawn = Drawn(batch)
    drawn.gaussians["coarse"] = coarse
    drawn.gaussians["upsampled"] = upsampled_gaussians(batch.context, factor, config)
    drawn.gaussians["scaffold"] = network.scaffold(coarse, batch.context.images, cameras, factor)
    found = network.predict(
        coarse, batch.context.images, cameras, factor=factor, embedding=embedding, has_embedding=has_embedding
    )
    drawn.gaussians["sr3d"] = found.gaussians
    for method, gaussians in drawn.gaussians.items():
        # Each method is one complete level: there is nothing to fade to.
        drawn.renderings[method] = render(gaussians, batch.target.posed(), lod=False)
    return drawn


def embedder_of(network: SuperResolver, kind: Literal["image", "text"]) -> Embedder:
    """What a trained network was told about its clips.

    Raises:
        Sr3dError: The network has no conditioning, does not name its CLIP model, or that cannot be had.
    """
    return Embedder(ConditionConfig(kind=kind, name=clip_of(network, "sr3d eval", "--condition", kind)))


def with_source(config: CoarseConfig, source: DepthSource) -> CoarseConfig:
    """The same coarse stage on another source of depth."""
    return replace(config, source=source)
