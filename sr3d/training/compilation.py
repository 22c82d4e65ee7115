"""torch.compile for the dense parts of a network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

# Transformers and convolutions; gathering, rendering and geometry stay as they are.
_DENSE = ("encoder", "refinement", "decoder", "points", "geometry", "head")


# In another layout than it says, the gradient of replicate padding stops compiled code (torch 2.15).
_OPTIONS: dict[str, str | int | bool | Callable[..., object]] = {"layout_optimization": False}


def compile_dense(network: nn.Module) -> list[str]:
    """Compile the dense parts in place; they keep their names and weights.

    Where this machine cannot compile (no C++ compiler, no Triton), one warning says why and all stays as it is.

    Returns:
        Names of the parts.
    """
    reason = _why_not()
    if reason is not None:
        rank_zero_warn(f"model.compile is on, but torch.compile does not work here; training uncompiled: {reason}")
        return []
    parts = [name for name in _DENSE if isinstance(getattr(network, name, None), nn.Module)]
    for name in parts:
        getattr(network, name).compile(options=_OPTIONS)
    return parts


def _why_not() -> str | None:
    """The first line of what a trial compilation says, or None if it works."""
    try:
        torch.compile(torch.nn.functional.gelu, options=_OPTIONS)(torch.ones(2))
    except RuntimeError as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None
