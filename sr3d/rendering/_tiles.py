"""Numba kernels: splats in depth order, listed by tiles of 16×16 pixels."""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

_DIGIT, _DIGITS = np.uint64(11), 6  # of the radix sort: 64 bits at most
_MASK, _UZERO = np.uint64((1 << 11) - 1), np.uint64(0)


@njit(nogil=True, cache=True)
@no_type_check
def depth_order(boxes, bits, base, drop):
    """Indices of the drawn splats, near to far, ties in order of index.

    `bits[:, 6]` are float64 depths seen as uint64, which sort like the depths; `base`, the bits of the nearest depth
    possible, is subtracted, and the lowest `drop` bits (uint64) are ignored.
    """
    n = 0
    for i in range(boxes.shape[0]):
        n += boxes[i, 0] < boxes[i, 1]
    keys, order = np.empty(n, np.uint64), np.empty(n, np.int32)
    spare_keys, spare = np.empty(n, np.uint64), np.empty(n, np.int32)
    largest = _UZERO
    n = 0
    for i in range(boxes.shape[0]):
        if boxes[i, 0] < boxes[i, 1]:
            key = (bits[i, 6] - base) >> drop
            keys[n], order[n] = key, i
            largest = max(largest, key)
            n += 1
    counts = np.empty(1 << 11, np.int64)
    for digit in range(_DIGITS):
        shift = np.uint64(digit) * _DIGIT
        if largest >> shift == _UZERO:
            break
        counts[:] = 0
        for i in range(n):
            counts[(keys[i] >> shift) & _MASK] += 1
        total = 0
        for k in range(counts.shape[0]):
            count = counts[k]
            counts[k] = total
            total += count
        for i in range(n):
            k = (keys[i] >> shift) & _MASK
            at = counts[k]
            counts[k] = at + 1
            spare_keys[at], spare[at] = keys[i], order[i]
        keys, spare_keys = spare_keys, keys
        order, spare = spare, order
    return order


@njit(nogil=True, cache=True)
@no_type_check
def first_pairs(boxes):
    """Number of pairs (splat, tile) before each splat. A splat's pairs are counted row by row of its box. [N + 1]"""
    first = np.zeros(boxes.shape[0] + 1, np.int64)
    for i in range(boxes.shape[0]):
        first[i + 1] = first[i] + (boxes[i, 1] - boxes[i, 0]) * (boxes[i, 3] - boxes[i, 2])
    return first


@njit(nogil=True, cache=True)
@no_type_check
def count_members(part, parts, boxes, order, across, down, counts):
    """Add up the splats of every tile. Each part reads all drawn splats and owns some rows of tiles: no atomics."""
    top, bottom = down * part // parts, down * (part + 1) // parts
    for rank in range(order.shape[0]):
        i = order[rank]
        for y in range(max(boxes[i, 2], top), min(boxes[i, 3], bottom)):
            for x in range(boxes[i, 0], boxes[i, 1]):
                counts[y * across + x] += 1


@njit(nogil=True, cache=True)
@no_type_check
def fill_members(part, parts, boxes, order, across, down, fill, members):
    """Write the splats of every tile, near to far, from `fill[tile]` on."""
    top, bottom = down * part // parts, down * (part + 1) // parts
    for rank in range(order.shape[0]):
        i = order[rank]
        for y in range(max(boxes[i, 2], top), min(boxes[i, 3], bottom)):
            for x in range(boxes[i, 0], boxes[i, 1]):
                at = fill[y * across + x]
                fill[y * across + x] = at + 1
                members[at] = i


@njit(nogil=True, cache=True)
@no_type_check
def sum_pairs(part, parts, first, pair_grads, out):
    """Add the rows `first[i]` to `first[i + 1]` of `pair_grads` to row i of `out`."""
    count = first.shape[0] - 1
    for i in range(count * part // parts, count * (part + 1) // parts):
        for pair in range(first[i], first[i + 1]):
            for c in range(pair_grads.shape[1]):
                out[i, c] += pair_grads[pair, c]


@njit(nogil=True, cache=True)
@no_type_check
def gather(part, parts, visited, block, features, boxes, out):
    """Copy the features of the splats that are drawn, block `visited[k]` to rows `block·k` on of `out`."""
    for k in range(visited.shape[0] * part // parts, visited.shape[0] * (part + 1) // parts):
        first = block * visited[k]
        for i in range(first, min(first + block, features.shape[0])):
            o = block * k + i - first
            if boxes[o, 0] < boxes[o, 1]:
                for c in range(features.shape[1]):
                    out[o, c] = features[i, c]
