"""Settings that exclude each other: found before any data is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sr3d.datasets.curriculum import CurriculumConfig
from sr3d.datasets.datamodule import ClipDataModule
from sr3d.errors import Sr3dError
from sr3d.models.config import SuperResolverConfig
from sr3d.models.scaffold import ScaffoldConfig
from sr3d.training.conditions import ConditionConfig, Embedder
from sr3d.training.losses import LossConfig
from sr3d.training.memory import most_gaussians
from sr3d.training.teachers import Teacher, TeacherConfig

# Weight of a loss → optional component of the network that it looks at.
_LOOKS_AT = {"geometry": "geometry", "semantic": "semantics"}


def check_module(
    settings: Mapping[str, Any],
    loss: LossConfig,
    teacher: TeacherConfig | None,
    condition: ConditionConfig | None,
    network: SuperResolverConfig | None,
) -> None:
    """Settings of `SuperResolverModule` by themselves and together.

    Args:
        settings: Its plain arguments by name.
        loss: Weights.
        teacher: Of the semantic loss.
        condition: What the network is told.
        network: Architecture, if it is known.

    Raises:
        Sr3dError: Names the key.
    """
    weights: dict[str, float] = asdict(loss)
    ranges = (
        ("learning_rate", settings["learning_rate"] > 0, "above 0"),
        ("warmup_steps", settings["warmup_steps"] >= 0, "0 or more"),
        ("weight_decay", settings["weight_decay"] >= 0, "0 or more"),
        ("ema_decay", 0 <= settings["ema_decay"] < 1, "at least 0 (off) and below 1"),
        ("max_gaussians", settings["max_gaussians"] is None or settings["max_gaussians"] > 0, "1 or more, or null"),
        ("max_skipped", settings["max_skipped"] > 0, "1 or more"),
        ("sources", len(settings["sources"]) > 0, "at least one of depth, sweep"),
    )
    if condition is not None and not 0 <= condition.drop < 1:
        raise Sr3dError("config", "model.condition.drop", condition.drop, "at least 0 and below 1")
    for name, right, expected in ranges:
        if not right:
            raise Sr3dError("config", f"model.{name}", settings[name], expected)
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise Sr3dError("config", f"model.loss.{name}", weight, "a finite weight, 0 or more")
    if not any(weights.values()):
        raise Sr3dError("config", "model.loss", "only weights of 0", "a weight above 0: there is nothing to learn")
    if loss.semantic and teacher is None:
        raise Sr3dError("config", "model.loss.semantic", loss.semantic, "0, or a teacher (model.teacher)")
    for name, part in _LOOKS_AT.items():
        if network is not None and weights.get(name) and getattr(network, part) is None:
            expected = f"0, or a network with model.network.{part}"
            raise Sr3dError("config", f"model.loss.{name}", weights[name], expected)
    if network is not None and network.refinement is not None and network.refinement.coarse_width:
        expected = "0: the coarse stages of a training are no networks, and offer no tokens"
        raise Sr3dError("config", "model.network.refinement.coarse_width", network.refinement.coarse_width, expected)
    if network is not None and network.conditioning is None and condition is not None:
        expected = "null, or a network with model.network.conditioning"
        raise Sr3dError("config", "model.condition", condition.kind, expected)
    if network is not None and network.conditioning is not None and condition is None:
        # It would learn nothing but what stands for no embedding.
        expected = "null, or the embeddings that it learns on (model.condition)"
        raise Sr3dError("config", "model.network.conditioning", network.conditioning, expected)


def check_width(embedder: Embedder | None, teacher: Teacher | None, network: SuperResolverConfig) -> None:
    """Embeddings, given to the network and asked from it, have to be as long as it expects.

    Raises:
        Sr3dError: They are not.
    """
    for part, other, words in (
        ("conditioning", embedder, "the CLIP model (model.condition.name)"),
        ("semantics", teacher, "the teacher (model.teacher)"),
    ):
        config = getattr(network, part)
        if config is not None and other is not None and config.embedding != other.width:
            expected = f"{other.width}, as of {words}"
            raise Sr3dError("config", f"model.network.{part}.embedding", config.embedding, expected)


def check_warmup(warmup: int, total: int) -> None:
    """The warm-up has to end before the training.

    Raises:
        Sr3dError: It does not.
    """
    if warmup >= total:
        raise Sr3dError("config", "model.warmup_steps", warmup, f"fewer than the {total} steps of the training")


def check_run(
    factors: Sequence[tuple[str, int | float]], network: SuperResolverConfig, warmup: int, steps: int, precision: str
) -> None:
    """What model, data and trainer have to agree on.

    Args:
        factors: Keys of the data, and the factors that they ask for.
        network: Architecture.
        warmup: Steps of the warm-up.
        steps: Optimiser steps of the trainer; −1 if it counts epochs.
        precision: Of the trainer.

    Raises:
        Sr3dError: Names the key.
    """
    known = sorted({network.factor, *network.factors})
    for key, factor in factors:
        if factor not in known:
            expected = f"one of {known} (model.network.factor, model.network.factors)"
            raise Sr3dError("config", key, factor, expected)
    if steps > 0:
        check_warmup(warmup, steps)
    if precision not in ("32-true", "bf16-mixed"):
        expected = "32-true or bf16-mixed: rasteriser, geometry and weights need float32"
        raise Sr3dError("config", "trainer.precision", precision, expected)


def check_stages(data: ClipDataModule, scaffold: ScaffoldConfig, limit: int | None, parts: int, steps: int) -> None:
    """Sizes of views and numbers of Gaussians in every stage of the curriculum; of the sizes, in validation, too.

    Args:
        data: What batches are made of. Stored sizes (`image_size` null) are not known yet: nothing is checked.
        scaffold: Of the network.
        limit: Most Gaussians per device and step; None: any number.
        parts: Of a global batch: devices times accumulated batches.
        steps: Optimiser steps, after which no stage starts; −1: any number.

    Raises:
        Sr3dError: Names the key, and the step from which on it would go wrong.
    """
    config = data.train_config
    if config.image_size is None:
        return
    for factor in data.val_factors:
        _reduced(config.image_size, factor, "in validation")
    curriculum, clips = config.curriculum or CurriculumConfig(), max(1, data.global_batch_size // parts)
    starts = {0, *(stage.start for stage in curriculum.stages if steps < 0 or stage.start < steps)}
    for start in sorted(starts):
        views, factors = curriculum.at(start, config.views, config.factor)
        most = views.context_range[1]
        for factor in factors:
            width, height = _reduced(config.image_size, factor, f"from step {start} on")
            count = clips * most_gaussians(scaffold, most * width * height, round(factor))
            if limit is not None and count > limit:
                found = (
                    f"{limit}, from step {start} on up to {count:,} ({clips} clips of {most} views of {width}x{height})"
                )
                expected = (
                    f"{count} or more, or fewer clips per device at a time (data.global_batch_size, "
                    "trainer.accumulate_grad_batches), fewer views (data.views.context, data.curriculum)"
                )
                raise Sr3dError("config", "model.max_gaussians", found, expected)


def _reduced(size: tuple[int, int], factor: int | float, when: str) -> tuple[int, int]:
    """Width and height of the inputs; only whole numbers have to divide."""
    if factor == int(factor) and any(side % int(factor) for side in size):
        found, expected = f"{size[0]}x{size[1]}", f"multiples of the factor {factor}, {when}"
        raise Sr3dError("config", "data.image_size", found, expected)
    return round(size[0] / factor), round(size[1] / factor)


def changed_keys(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Keys of nested dictionaries whose values differ: (path, old value, new value)."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [] if old == new else [(prefix.rstrip("."), old, new)]
    return [
        change
        for key in sorted(old.keys() | new.keys())
        for change in changed_keys(old.get(key), new.get(key), f"{prefix}{key}.")
    ]
