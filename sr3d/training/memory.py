"""Memory: the budget of Gaussians, and what to do when it runs out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sr3d.datasets.batch import Batch
from sr3d.errors import Sr3dError
from sr3d.models.resolver import SuperResolverConfig
from sr3d.models.scaffold import ScaffoldConfig

# What torch's allocator of CPU memory says; it has no error of its own.
_CPU = "DefaultCPUAllocator: can't allocate memory"


def most_gaussians(config: ScaffoldConfig, parents: int, factor: int) -> int:
    """Most fine Gaussians that this many coarse ones can become."""
    return math.ceil(parents * config.children(factor) * (config.budget or 1.0))


def check_budget(count: int, limit: int | None, batch: Batch) -> None:
    """Refuse a step that would make too many Gaussians.

    Args:
        count: Fine Gaussians of the whole batch.
        limit: Most that are allowed per device and step; None: any number.
        batch: Named in the error by its size.

    Raises:
        Sr3dError: `count` is above `limit`.
    """
    if limit is None or count <= limit:
        return
    cameras, (clips, views) = batch.context.posed(), batch.context.images.shape[:2]
    size = f"{clips} clips of {views} views of {cameras.width}x{cameras.height}"
    expected = (
        f"at most {limit:,}: lower data.global_batch_size (or raise trainer.accumulate_grad_batches), "
        "data.views.context, data.image_size, model.network.scaffold.grid or .budget, or raise model.max_gaussians"
    )
    raise Sr3dError("training step", "model.max_gaussians", f"{count:,} Gaussians ({size})", expected)


@contextmanager
def out_of_memory_explained(config: SuperResolverConfig, batch: Batch | None) -> Iterator[None]:
    """Say what the block needed and which settings lower it, where memory runs out in it.

    Args:
        config: Of the network.
        batch: What it worked on.

    Raises:
        Sr3dError: Memory ran out.
    """
    try:
        yield
    except RuntimeError as error:
        if batch is None or not (isinstance(error, torch.OutOfMemoryError) or _CPU in str(error)):
            raise
        from sr3d.models.estimate import out_of_memory

        cameras, (clips, views) = batch.context.posed(), batch.context.images.shape[:2]
        advice = out_of_memory(config, cameras.width, cameras.height, views, clips)
        found = str(error).splitlines()[0]
        raise Sr3dError("training step", "memory", found, advice) from None
