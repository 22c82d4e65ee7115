"""Steps that must not happen: losses and gradients that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.training.sharding import whole


class Guard:
    """Counts optimiser steps that were skipped, says why, and gives up after too many in a row.

    Args:
        most: Skipped steps in a row after which training stops with an error.
    """

    def __init__(self, most: int) -> None:
        self.most, self.total, self.row = most, 0, 0

    def passed(self) -> None:
        """A step was made."""
        self.row = 0

    def skipped(self, step: int, reasons: Iterable[str]) -> None:
        """A step was left out.

        Args:
            step: Optimiser step, from 0.
            reasons: What was wrong, naming the clips; of all processes.

        Raises:
            Sr3dError: It was one too many in a row.
        """
        self.total, self.row = self.total + 1, self.row + 1
        words = "; ".join(dict.fromkeys(reasons))
        rank_zero_warn(f"step {step} skipped ({self.row} in a row, {self.total} in all): {words}")
        if self.row >= self.most:
            expected = f"fewer than {self.most} (model.max_skipped): a lower learning_rate, or sound clips"
            raise Sr3dError("training", "skipped steps in a row", f"{self.row}, the last one by {words}", expected)


def not_finite(
    losses: Sequence[Float[Tensor, ""]], names: Sequence[Sequence[str]], gradients: Sequence[Tensor]
) -> list[str]:
    """What forbids an optimiser step, in words; nothing if losses and gradients are finite.

    Args:
        losses: Of the batches of the step.
        names: Their clips.
        gradients: Of all parameters.
    """
    norm = whole(torch.nn.utils.get_total_norm(list(gradients)))
    # One look at the device for all of them.
    *values, size = torch.stack([*(v.detach().float().to(norm.device) for v in losses), norm.float()]).tolist()
    bad = [f"loss {v:g} of {', '.join(clips)}" for v, clips in zip(values, names) if not math.isfinite(v)]
    if bad or math.isfinite(size):
        return bad
    return [f"gradients that are not finite, of {', '.join(n for clips in names for n in clips)}"]
