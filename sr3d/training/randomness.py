"""States of the random generators of all processes, as one tensor in the checkpoint."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.random import mtrand
from torch import Tensor

from sr3d.training.processes import gather


def random_states() -> dict[str, UInt8[Tensor, "ranks bytes"]]:
    """States of Python's, numpy's and torch's global generators in every process; all processes have to ask."""
    parts = gather(_own())
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}


def restore_random_states(states: dict[str, UInt8[Tensor, "ranks bytes"]], rank: int) -> None:
    """Set the generators of this process as they were; those of a process that was not there stay as they are."""
    if rank >= len(states["torch"]):
        return
    # A copy: torch reads a state from the start of its storage.
    own = {name: rows[rank].cpu().clone() for name, rows in states.items()}
    torch.set_rng_state(own["torch"])
    if "cuda" in own and torch.cuda.is_available():
        torch.cuda.set_rng_state(own["cuda"])
    words, gauss = _apart(own["numpy"])
    normal = (0, 0.0) if math.isnan(gauss) else (1, gauss)
    mtrand.set_state(("MT19937", np.array(words[:-1], np.uint32), words[-1], *normal))
    # Last, because checks of types at run time draw from Python's generator.
    words, gauss = _apart(own["python"])
    random.setstate((3, tuple(words), None if math.isnan(gauss) else gauss))


def _own() -> dict[str, Tensor]:
    """Bytes of each generator of this process."""
    _, words, gauss = random.getstate()
    state = mtrand.get_state(legacy=False)
    numbers = [*state["state"]["key"].tolist(), state["state"]["pos"]]
    out = {
        "torch": torch.get_rng_state(),
        "python": _joined(words, gauss),
        "numpy": _joined(numbers, state["gauss"] if state["has_gauss"] else None),
    }
    if torch.cuda.is_available():
        out["cuda"] = torch.cuda.get_rng_state()
    return out


def _joined(words: Sequence[int], gauss: float | None) -> UInt8[Tensor, " bytes"]:
    """Whole numbers, and a normal variate that waits for its turn."""
    last = np.array([math.nan if gauss is None else gauss]).view(np.int64)
    return torch.from_numpy(np.concatenate([np.array(words, np.int64), last]).view(np.uint8))


def _apart(joined: UInt8[Tensor, " bytes"]) -> tuple[list[int], float]:
    """The inverse of `_joined`; NaN for no variate."""
    numbers = joined.numpy().view(np.int64)
    return numbers[:-1].tolist(), float(numbers[-1:].view(np.float64)[0])
