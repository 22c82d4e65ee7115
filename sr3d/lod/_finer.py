"""Numba: children's footprints of the rows of some blocks, later levels laid over what the level itself says."""

from __future__ import annotations

from typing import no_type_check

from numba import njit


@njit(nogil=True, cache=True)
@no_type_check
def own_rows(finer, blocks, size, out):
    """out[k] = rows of block `blocks[k]`, 0 behind the level's last."""
    for k in range(blocks.shape[0]):
        first = size * blocks[k]
        for j in range(size):
            out[k, j] = finer[first + j] if first + j < finer.shape[0] else 0


@njit(nogil=True, cache=True)
@no_type_check
def lay_over(parents, values, start, end, blocks, size, out):
    """Write `values` of the ascending rows `parents` that lie in the blocks; False if those found do not ascend.

    The level is rows `start` to `end` of the forest.
    """
    for k in range(blocks.shape[0]):
        first = start + size * blocks[k]
        last = min(first + size, end)
        low, high = 0, parents.shape[0]
        while low < high:
            middle = (low + high) // 2
            if parents[middle] < first:
                low = middle + 1
            else:
                high = middle
        before = first - 1
        while low < parents.shape[0] and parents[low] < last:
            if parents[low] <= before:
                return False
            before = parents[low]
            out[k, before - first] = values[low]
            low += 1
    return True
