"""Learning rate over the steps, and which parameters decay."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

_FLOOR = 0.02


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Factor on the peak learning rate: linear warm-up, then half a cosine down to 2 %.

    Args:
        step: Optimiser step, from 0.
        warmup: Steps of the warm-up; the peak is reached at its last one.
        total: Steps of the whole training.
    """
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return _FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * done))


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters for an optimiser: matrices and kernels decay, vectors (biases, norms, gains) do not."""
    trainable = [p for p in network.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
