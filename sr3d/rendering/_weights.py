"""Numba kernels: what every splat adds to every low-resolution pixel of a view, by tiles of 16×16 fine pixels."""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

from sr3d.rendering._geometry import FASTMATH, HALF, ONE, ZERO
from sr3d.rendering._project import TILE
from sr3d.rendering._raster import T_MIN, clipped, density, finished
from sr3d.rendering._vector import BATCH


@njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def pair_weights(part, parts, splats, start, members, width, height, factor, out):
    """Fill `out` [pairs, side, side], zero on entry: sums of the weights of a splat over the cells of a tile.

    A cell is what a tile has of a low-resolution pixel, which is `factor` × `factor` fine ones; cell (0, 0) is that of
    the tile's first fine pixel, and `side` how many a tile can have along an axis. Weights are those of `_raster.draw`.
    Every `parts`-th tile is done.
    """
    across = (width + TILE - 1) // TILE
    tiles = across * ((height + TILE - 1) // TILE)
    side = out.shape[1]
    tile = np.empty((1, TILE, TILE), np.float32)  # transmittance
    rows = np.empty((side, TILE), np.float32)  # weights of the current splat, summed over the rows of a cell
    for t in range(part, tiles, parts):
        left, top = (t % across) * TILE, (t // across) * TILE
        tile[:] = -ONE  # pixels outside the image are finished
        tile[0, : height - top, : width - left] = ONE
        for p in range(start[t], start[t + 1]):
            i = members[p]
            x0, y0 = np.float32(left) + HALF - splats[i, 0], np.float32(top) + HALF - splats[i, 1]
            A, B, C, opacity = HALF * splats[i, 2], splats[i, 3], HALF * splats[i, 4], splats[i, 5]
            rows[:] = ZERO
            for y in range(max(np.int64(splats[i, 10]) - top, 0), min(np.int64(splats[i, 11]) - top, TILE)):
                dy = y0 + np.float32(y)
                By, Cyy = B * dy, C * dy * dy
                row = (top + y) // factor - top // factor
                for x in range(TILE):
                    dx = x0 + np.float32(x)
                    alpha = clipped(opacity * density((A * dx + By) * dx + Cyy))
                    before = tile[0, y, x]
                    w = before * alpha
                    after = before - w
                    visible = after > T_MIN
                    w = w if visible else ZERO
                    tile[0, y, x] = after if visible else -abs(before)
                    rows[row, x] += w
            for row in range(side):
                for x in range(TILE):
                    out[p, row, (left + x) // factor - left // factor] += rows[row, x]
            if p % BATCH == BATCH - 1 and finished(tile):
                break


@njit(nogil=True, cache=True, fastmath=FASTMATH)
@no_type_check
def spread(start, members, weights, factor, width, values, image):
    """Add what every splat has of `values` [N, C] to the low-resolution `image` [h, w, C], zero on entry."""
    across, side, channels = (width + TILE - 1) // TILE, weights.shape[1], values.shape[1]
    cells = weights.reshape(-1, side * side)
    sums = np.empty((channels, side * side), np.float32)
    for t in range(start.shape[0] - 1):
        sums[:] = ZERO
        for p in range(start[t], start[t + 1]):
            for c in range(channels):
                value = values[members[p], c]
                for k in range(side * side):
                    sums[c, k] += cells[p, k] * value
        left, top = (t % across) * TILE // factor, (t // across) * TILE // factor
        for y in range(min(side, image.shape[0] - top)):
            for x in range(min(side, image.shape[1] - left)):
                for c in range(channels):
                    image[top + y, left + x, c] += sums[c, y * side + x]


@njit(nogil=True, cache=True, fastmath=FASTMATH)
@no_type_check
def collect(start, members, weights, factor, width, image, values):
    """The transpose of `spread`: add to `values` [N, C], zero on entry, what `image` [h, w, C] has under each splat."""
    across, side, channels = (width + TILE - 1) // TILE, weights.shape[1], values.shape[1]
    cells = weights.reshape(-1, side * side)
    under = np.empty((channels, side * side), np.float32)
    for t in range(start.shape[0] - 1):
        left, top = (t % across) * TILE // factor, (t // across) * TILE // factor
        under[:] = ZERO
        for y in range(min(side, image.shape[0] - top)):
            for x in range(min(side, image.shape[1] - left)):
                for c in range(channels):
                    under[c, y * side + x] = image[top + y, left + x, c]
        for p in range(start[t], start[t + 1]):
            for c in range(channels):
                total = ZERO
                for k in range(side * side):
                    total += cells[p, k] * under[c, k]
                values[members[p], c] += total
