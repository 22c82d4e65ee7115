"""Order along a Hilbert curve: points that follow each other are close together, so that a run of them is a block."""

from __future__ import annotations

from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit
from torch import Tensor

BITS = 21  # cells per axis: 2²¹, three axes fill 63 bits


@njit(cache=True)
@no_type_check
def _hilbert_keys(cells, bits, keys):
    """Distance along the curve of every cell. `cells` [N, 3] int64 in 0..2^bits - 1 is overwritten (Skilling 2004)."""
    for i in range(cells.shape[0]):
        q = 1 << (bits - 1)
        while q > 1:
            p = q - 1
            for axis in range(3):
                if cells[i, axis] & q:
                    cells[i, 0] ^= p
                else:
                    swap = (cells[i, 0] ^ cells[i, axis]) & p
                    cells[i, 0] ^= swap
                    cells[i, axis] ^= swap
            q >>= 1
        cells[i, 1] ^= cells[i, 0]
        cells[i, 2] ^= cells[i, 1]
        flip = 0
        q = 1 << (bits - 1)
        while q > 1:
            if cells[i, 2] & q:
                flip ^= q - 1
            q >>= 1
        key = 0
        for bit in range(bits - 1, -1, -1):
            for axis in range(3):
                key = (key << 1) | (((cells[i, axis] ^ flip) >> bit) & 1)
        keys[i] = key


def hilbert_keys(cells: Int[np.ndarray, "n 3"], bits: int = BITS) -> Int[np.ndarray, " n"]:
    """Position of integer cells on the 3D Hilbert curve; neighbours on the curve share a face.

    Args:
        cells: Coordinates in 0..2^bits − 1.
        bits: Per axis, 1 to 21.
    """
    keys = np.empty(len(cells), np.int64)
    _hilbert_keys(np.array(cells, np.int64, order="C"), bits, keys)
    return keys


def hilbert_order(points: Float[Tensor, "n 3"]) -> Int[Tensor, " n"]:
    """Indices that sort points along a Hilbert curve through their bounding cube; ties keep their order."""
    if len(points) == 0:
        return torch.empty(0, dtype=torch.int64)
    values = points.detach().double().cpu().numpy()
    low = values.min(axis=0)
    side = max(float((values.max(axis=0) - low).max()), np.finfo(np.float64).tiny)
    cells = np.minimum(((values - low) / side * 2**BITS).astype(np.int64), 2**BITS - 1)
    return torch.from_numpy(np.argsort(hilbert_keys(cells), kind="stable"))
