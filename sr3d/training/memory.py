"""The budget of Gaussians."""

from __future__ import annotations

import math

from sr3d.datasets.batch import Batch
from sr3d.errors import Sr3dError
from sr3d.models.scaffold import ScaffoldConfig


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
