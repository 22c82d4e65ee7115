"""Filling of holes in depth maps from neighbours of similar colour."""

from __future__ import annotations

from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float
from numba import njit
from torch import Tensor

_DIRECTIONS = np.array([(0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1)], dtype=np.int64)


def fill_holes(depth: Float[Tensor, "v h w"], images: Float[Tensor, "v h w 3"]) -> Float[Tensor, "v h w"]:
    """Give every pixel of unknown depth (0) that of the first known pixels in eight directions.

    A direction counts less the longer its path and the more the colour changes along it. Of what is left the weighted
    lower 40 % quantile of inverse depth is taken, rather than the mean: no value between two surfaces, and the farther
    one in doubt, since what only one view sees is mostly background. Known pixels are untouched; a view without
    any known pixel stays unknown.

    Args:
        depth: z-depth, world units, 0 where unknown. [V, H, W]
        images: Colours in [0, 1]. [V, H, W, 3]
    """
    if bool((depth > 0).all()):
        return depth
    maps = depth.detach().cpu().float().contiguous().numpy()
    guides = images.detach().cpu().float().contiguous().numpy()
    filled = np.stack([_fill_view(d, g) for d, g in zip(maps, guides)])
    return torch.where(depth > 0, depth, torch.from_numpy(filled).to(depth))


def _fill_view(depth: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Between scattered points no known pixel may lie in any of eight directions: those wait for the next round."""
    while (depth == 0).any() and (depth > 0).any():
        depth = _fill(depth, image, _DIRECTIONS)
    return depth


@njit(cache=True)
@no_type_check
def _fill(depth, image, directions):
    h, w = depth.shape
    out = depth.copy()
    q = np.empty(8, np.float32)
    weight = np.empty(8, np.float32)
    for y in range(h):
        for x in range(w):
            if depth[y, x] > 0:
                continue
            n = 0
            for k in range(8):
                dy, dx = directions[k, 0], directions[k, 1]
                yy, xx = y + dy, x + dx
                length = np.sqrt(np.float32(dy * dy + dx * dx))
                path = np.float32(0)
                while 0 <= yy < h and 0 <= xx < w:
                    for c in range(3):
                        path += abs(image[yy, xx, c] - image[yy - dy, xx - dx, c])
                    path += np.float32(0.01) * length
                    if depth[yy, xx] > 0:
                        q[n] = np.float32(1) / depth[yy, xx]
                        weight[n] = np.exp(-np.float32(8) * path) + np.float32(1e-20)
                        n += 1
                        break
                    yy += dy
                    xx += dx
            if n > 0:
                out[y, x] = np.float32(1) / _quantile(q, weight, n, np.float32(0.4))
    return out


@njit(cache=True)
@no_type_check
def _quantile(values, weights, n, fraction):
    """Weighted quantile of the first n values; sorts both arrays in place."""
    total = np.float32(0)
    for i in range(n):
        total += weights[i]
        j = i
        while j > 0 and values[j - 1] > values[j]:
            values[j - 1], values[j] = values[j], values[j - 1]
            weights[j - 1], weights[j] = weights[j], weights[j - 1]
            j -= 1
    seen = np.float32(0)
    for i in range(n):
        seen += weights[i]
        if seen >= fraction * total:
            return values[i]
    return values[n - 1]
