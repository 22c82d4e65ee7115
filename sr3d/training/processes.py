"""What the processes of one training tell each other; alone, a process agrees with itself."""

from __future__ import annotations

from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def together() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized()


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process; all of them have to ask."""
    if not together():
        return flag
    value = torch.tensor(float(flag), device=device)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value > 0)


def mean_over_processes(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Means of scalars of equal names over all processes, without gradients."""
    joined = torch.stack([v.detach().float() for v in values.values()])
    if together():
        dist.all_reduce(joined)
        joined = joined / dist.get_world_size()
    return dict(zip(values, joined))


def gather(value: T) -> list[T]:
    """The value of every process, in order of rank."""
    if not together():
        return [value]
    out: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(out, value)
    return cast(list[T], out)
