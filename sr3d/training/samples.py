"""The clips of a batch, one by one: each has its own augmentation and source of depth."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.coarse import CoarseConfig, DepthSource, coarse_gaussians
from sr3d.datasets.batch import Batch
from sr3d.gaussians import Gaussians
from sr3d.lod import Lod
from sr3d.scene import Scene
from sr3d.training.augment import AugmentConfig, augment
from sr3d.training.evaluate import with_source


def clip_names(batch: Batch) -> list[str]:
    """Names of the clips of a batch [B, ...]."""
    count, name = len(batch.context.images), batch.context.name
    names = name.split(", ")
    return names if len(names) == count else [f"{name} ({i})" for i in range(count)]


def split_batch(batch: Batch) -> list[Batch]:
    """The clips of a batch; the inverse of `Batch.stack`."""
    names = clip_names(batch)
    return [
        Batch(**{f.name: _item(getattr(batch, f.name), i, name) for f in fields(batch)}) for i, name in enumerate(names)
    ]


def batch_factor(batch: Batch) -> int:
    """How many times larger the truth is than the inputs, per side."""
    return round(batch.high.posed().width / batch.context.posed().width)


def draw_batch(
    batch: Batch, sources: Sequence[DepthSource], augmentation: AugmentConfig, seed: int, step: int, first: int
) -> tuple[Batch, list[DepthSource]]:
    """Augment every clip, and choose its source of depth.

    A function of (seed, step, number of the clip in the global batch): it does not matter which process does it.

    Args:
        batch: [B, ...]
        sources: To choose from.
        augmentation: Strengths.
        seed: Of all draws.
        step: Optimiser step.
        first: Number of the batch's first clip in the global batch.

    Returns:
        The augmented batch, and the source of each clip.
    """
    parts: list[Batch] = []
    chosen: list[DepthSource] = []
    for i, clip in enumerate(split_batch(batch)):
        draw = random.Random(f"{seed}-{step}-{first + i}")
        chosen.append(draw.choice(list(sources)))
        generator = torch.Generator().manual_seed(draw.getrandbits(62))
        parts.append(split_batch(augment(Batch.stack([clip]), augmentation, generator))[0])
    return Batch.stack(parts), chosen


def draw_told(clips: int, share: float, seed: int, step: int, first: int) -> Bool[Tensor, " b"]:
    """Which clips the network is told about, `share` of all; reproducible like `draw_batch`, with its arguments."""
    draws = [random.Random(f"told-{seed}-{step}-{first + i}").random() for i in range(clips)]
    return torch.tensor([draw < share for draw in draws], dtype=torch.bool)


def coarse_of(context: Scene, sources: Sequence[DepthSource], config: CoarseConfig) -> Gaussians:
    """Coarse Gaussians [B, M] of the input views [B, V], each clip by its own source of depth."""
    if len(set(sources)) == 1:
        return coarse_gaussians(context, with_source(config, sources[0]))
    parts = [coarse_gaussians(_item(context, i, ""), with_source(config, s)) for i, s in enumerate(sources)]
    lods = [p.lod for p in parts if p.lod is not None]
    names = ("means", "quats", "scales", "opacities", "sh")
    levels = {f.name: torch.stack([getattr(lod, f.name) for lod in lods]) for f in fields(Lod)}
    return Gaussians(**{n: torch.stack([getattr(p, n) for p in parts]) for n in names}, lod=Lod(**levels))


def _item(value: Any, i: int, name: str) -> Any:
    """Element i of a batched field."""
    if isinstance(value, Scene):
        parts = {f.name: _item(getattr(value, f.name), i, name) for f in fields(value)}
        return Scene(**parts | {"name": name})
    if isinstance(value, Tensor | Cameras):
        return value[i]
    return value[i : i + 1] if isinstance(value, list) else value
