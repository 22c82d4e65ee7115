"""Validation scores: means over clips, whatever process saw them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from sr3d.coarse import CoarseConfig, coarse_gaussians
from sr3d.datasets.batch import Batch
from sr3d.models.inputs import sight_problems
from sr3d.models.resolver import SuperResolver
from sr3d.training.conditions import Embedder
from sr3d.training.evaluate import Drawn, draw_methods
from sr3d.training.processes import gather
from sr3d.training.samples import batch_factor, clip_names, split_batch
from sr3d.training.sharding import check_skippable

_NAMED = 8  # clips that a warning names


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip of a validation data set, seen with one source of coarse depth."""

    dataset: str
    name: str
    factor: int
    source: str


@dataclass
class Scores:
    """Sums over the target views of each clip.

    Attributes:
        clips: Clip → "method/metric" → (sum, number of views that have it).
        problems: What is wrong with the clips that were left out.
    """

    clips: dict[Clip, dict[str, tuple[float, int]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, batch: Batch, source: str, drawn: Drawn) -> None:
        """Take note of every method's metrics of a batch that was drawn from one source of depth."""
        values = {f"{m}/{k}": v for m in drawn.renderings for k, v in drawn.metrics(m).items()}
        datasets = batch.sources or ["data"] * len(batch.context.images)
        for i, (name, dataset) in enumerate(zip(clip_names(batch), datasets)):
            clip = Clip(dataset=dataset, name=name, factor=batch_factor(batch), source=source)
            self.clips[clip] = {k: _sum(v[i]) for k, v in values.items()}

    def merged(self) -> dict[str, float]:
        """`val/<dataset>/x<factor>/<source>/<method>/<metric>` and `val/<source>/gain`, over all processes.

        A clip that several processes saw counts once. The gain is `psnr_covered` of "sr3d" minus that of "upsampled".
        Warns about clips that were left out.
        """
        parts = gather(self)
        problems = list(dict.fromkeys(problem for scores in parts for problem in scores.problems))
        if problems:
            rank_zero_warn(f"validation leaves out {len(problems)} clips: {'; '.join(problems[:_NAMED])}")
        clips = {clip: sums for scores in parts for clip, sums in scores.clips.items()}
        totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for clip, sums in clips.items():
            for name, (total, count) in sums.items():
                keys = [f"val/{clip.dataset}/x{clip.factor}/{clip.source}/{name}"]
                if name in ("sr3d/psnr_covered", "upsampled/psnr_covered"):
                    keys.append(f"{clip.source}/{name}")
                for key in keys:
                    totals[key][0] += total
                    totals[key][1] += count
        means = {key: total / count if count else float("nan") for key, (total, count) in sorted(totals.items())}
        out = {key: mean for key, mean in means.items() if key.startswith("val/")}
        for source in sorted({clip.source for clip in clips}):
            ours, base = (means[f"{source}/{method}/psnr_covered"] for method in ("sr3d", "upsampled"))
            out[f"val/{source}/gain"] = ours - base
        return out


def draw_usable(
    network: SuperResolver, batch: Batch, config: CoarseConfig, embedder: Embedder | None
) -> tuple[Drawn | None, list[str]]:
    """Draw the clips whose views see something of one another by every method.

    Args:
        network: Used as it is.
        batch: [B, ...]
        config: Coarse stage.
        embedder: What the network is told, if it has conditioning.

    Returns:
        The drawings, None without such clips; and what is wrong with the others, by name.

    Raises:
        Sr3dError: There are others, and the network is sharded.
    """
    coarse = coarse_gaussians(batch.context, config)
    names, problems = clip_names(batch), sight_problems(coarse, batch.context.posed())
    bad = {i: f"{names[i]}: {reason}" for i, reason in problems}
    if bad:
        check_skippable(network, batch.context.name, problems[0][1])
        clips = [clip for i, clip in enumerate(split_batch(batch)) if i not in bad]
        if not clips:
            return None, list(bad.values())
        batch = Batch.stack(clips)
        coarse = coarse_gaussians(batch.context, config)
    embedding, known = (None, None) if embedder is None else embedder(batch)
    drawn = draw_methods(network, batch, config, embedding, known, coarse)
    return drawn, list(bad.values())


def _sum(views: Float[Tensor, " t"]) -> tuple[float, int]:
    known = views[torch.isfinite(views)]
    return float(known.double().sum()), len(known)
