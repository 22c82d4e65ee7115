"""The table that every claim rests on: coarse, upsampled, scaffold and sr3d on views that were not given as input."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sr3d.coarse import CoarseConfig, DepthSource, coarse_gaussians, upsampled_gaussians
from sr3d.datasets.batch import Batch
from sr3d.gaussians import Gaussians
from sr3d.models import SuperResolver
from sr3d.models.estimate import out_of_memory_explained
from sr3d.rendering import Rendering, render
from sr3d.training.conditions import ConditionConfig, Embedder, clip_of
from sr3d.training.metrics import COVERED_ALPHA, image_metrics

METHODS = ("coarse", "upsampled", "scaffold", "sr3d")


@dataclass
class Evaluation:
    """Means over all target views of all scenes.

    Attributes:
        coverage: Share of target pixels where the coarse scene has alpha > 0.8; one mask for all methods.
        scores: Per method: `psnr`, `psnr_covered` (dB), `ssim`, `gaussians` (mean count of those with opacity > 0).
        views: Number of target views.
    """

    coverage: float
    scores: dict[str, dict[str, float]]
    views: int

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON: `coverage`, `views`, and one entry per method."""
        return {"coverage": self.coverage, "views": self.views, **self.scores}


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


def evaluate(
    network: SuperResolver, batches: Iterable[Batch], config: CoarseConfig, embedder: Embedder | None = None
) -> Evaluation:
    """Average metrics of every method over all target views.

    Args:
        network: Used as it is; put it in `eval()` mode first.
        batches: Context, truth and target views.
        config: Coarse stage, the same for all methods.
        embedder: What a network with conditioning is told about each clip; nothing if None.
    """
    coverage: list[Tensor] = []
    values: dict[str, dict[str, list[Tensor]]] = {m: {} for m in METHODS}
    counts: dict[str, list[float]] = {m: [] for m in METHODS}
    for batch in batches:
        with out_of_memory_explained("sr3d eval", network.config, batch.context.images):
            embedding, known = (None, None) if embedder is None else embedder(batch)
            drawn = draw_methods(network, batch, config, embedding, known)
        coverage.append(drawn.covered.float().mean(dim=(-2, -1)).flatten())
        for method in METHODS:
            counts[method].append(float((drawn.gaussians[method].opacities > 0).sum(dim=-1).float().mean()))
            for name, value in drawn.metrics(method).items():
                values[method].setdefault(name, []).append(value.flatten())
    scores = {
        m: {
            **{name: float(torch.cat(parts).nanmean()) for name, parts in values[m].items()},
            "gaussians": sum(counts[m]) / len(counts[m]),
        }
        for m in METHODS
    }
    joined = torch.cat(coverage)
    return Evaluation(coverage=float(joined.mean()), scores=scores, views=len(joined))


def embedder_of(network: SuperResolver, kind: Literal["image", "text"]) -> Embedder:
    """What a trained network was told about its clips.

    Raises:
        Sr3dError: The network has no conditioning, does not name its CLIP model, or that cannot be had.
    """
    return Embedder(ConditionConfig(kind=kind, name=clip_of(network, "sr3d eval", "--condition", kind)))


def with_source(config: CoarseConfig, source: DepthSource) -> CoarseConfig:
    """The same coarse stage on another source of depth."""
    return replace(config, source=source)
