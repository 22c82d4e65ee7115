"""Numba kernels of plane-sweep stereo: matching cost of one plane, semi-global aggregation, winner and sub-plane.

All of them run in one thread, so that they may be called from forked data-loading workers.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

_BIG = np.float32(1e6)


@njit(cache=True, fastmath=True)
@no_type_check
def window_weights(image, radius, sigma_color):
    """Weights of a (2·radius + 1)² window at every pixel, by colour and distance to its centre, summing to 1.

    image [3, H + 2·radius, W + 2·radius], padded → [T, H, W]; taps outside the image weigh nothing.
    """
    h, w = image.shape[1] - 2 * radius, image.shape[2] - 2 * radius
    side = 2 * radius + 1
    out = np.zeros((side * side, h, w), np.float32)
    for y in range(h):
        for x in range(w):
            total = np.float32(0)
            for k in range(side * side):
                dy, dx = k // side - radius, k % side - radius
                if 0 <= y + dy < h and 0 <= x + dx < w:
                    diff = np.float32(0)
                    for c in range(3):
                        diff += abs(image[c, y + radius, x + radius] - image[c, y + radius + dy, x + radius + dx])
                    near = np.sqrt(np.float32(dx * dx + dy * dy)) / np.float32(radius + 1)
                    weight = np.exp(-diff / (np.float32(3) * sigma_color) - near)
                    out[k, y, x] = weight
                    total += weight
            for k in range(side * side):
                out[k, y, x] /= total
    return out


@njit(cache=True, fastmath=True)
@no_type_check
def window_stats(image, weights, radius):
    """Weighted mean of every channel [3, H, W] and variance summed over channels [H, W] of every window."""
    taps, h, w = weights.shape
    side = 2 * radius + 1
    mean = np.zeros((3, h, w), np.float32)
    variance = np.zeros((h, w), np.float32)
    for y in range(h):
        for k in range(taps):
            dy, dx = k // side, k % side
            for c in range(3):
                for x in range(w):
                    value = image[c, y + dy, x + dx]
                    mean[c, y, x] += weights[k, y, x] * value
                    variance[y, x] += weights[k, y, x] * value * value
        for c in range(3):
            for x in range(w):
                variance[y, x] -= mean[c, y, x] * mean[c, y, x]
    return mean, variance


@njit(cache=True, fastmath=True)
@no_type_check
def warp(source, homography, radius, out, inside):
    """Sample `source` [Hs, Ws, 3] bilinearly where a 3×3 homography takes the pixel centres of the reference.

    Fills the interior of `out` [≥ 3, H + 2·radius, W + 2·radius] and `inside` [H, W]: 1 where the sample is in frame.
    """
    h, w = inside.shape
    hs, ws = source.shape[0], source.shape[1]
    half, one = np.float32(0.5), np.float32(1)
    m = homography
    for y in range(h):
        v = np.float32(y) + half
        for x in range(w):
            u = np.float32(x) + half
            z = m[2, 0] * u + m[2, 1] * v + m[2, 2]
            inside[y, x] = 0
            if z <= np.float32(1e-6):
                for c in range(3):
                    out[c, y + radius, x + radius] = 0
                continue
            us = (m[0, 0] * u + m[0, 1] * v + m[0, 2]) / z - half
            vs = (m[1, 0] * u + m[1, 1] * v + m[1, 2]) / z - half
            if -half <= us <= ws - half and -half <= vs <= hs - half:
                inside[y, x] = 1
            us = min(max(us, np.float32(0)), np.float32(ws) - one)
            vs = min(max(vs, np.float32(0)), np.float32(hs) - one)
            x0, y0 = min(int(us), ws - 2), min(int(vs), hs - 2)
            fx, fy = us - np.float32(x0), vs - np.float32(y0)
            for c in range(3):
                top = source[y0, x0, c] * (one - fx) + source[y0, x0 + 1, c] * fx
                low = source[y0 + 1, x0, c] * (one - fx) + source[y0 + 1, x0 + 1, c] * fx
                out[c, y + radius, x + radius] = top * (one - fy) + low * fy


@njit(cache=True, fastmath=True)
@no_type_check
def window_cost(image, warped, inside, weights, mean, variance, radius, truncation, balance, noise, out):
    """Matching cost in [0, 1] of every window, `_BIG` where the centre is out of frame. Written to `out` [H, W].

    `balance` · (1 − ZNCC)/2 + (1 − `balance`) · min(|difference|, `truncation`)/`truncation`. `noise` is the variance
    under which a window counts as flat: its ZNCC is drawn to 0. `warped` [6, ...]: colours, and room for products.
    """
    taps, h, w = weights.shape
    side = 2 * radius + 1
    one, half, third = np.float32(1), np.float32(0.5), np.float32(1 / 3)
    # What does not depend on the window's centre is formed once per pixel: product, square, difference.
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            a0, a1, a2 = image[0, y, x], image[1, y, x], image[2, y, x]
            b0, b1, b2 = warped[0, y, x], warped[1, y, x], warped[2, y, x]
            warped[3, y, x] = a0 * b0 + a1 * b1 + a2 * b2
            warped[4, y, x] = b0 * b0 + b1 * b1 + b2 * b2
            warped[5, y, x] = min((abs(a0 - b0) + abs(a1 - b1) + abs(a2 - b2)) * third, truncation)
    sums = np.empty((6, w), np.float32)
    for y in range(h):
        sums[:] = 0
        for k in range(taps):
            row, shift = y + k // side, k % side
            weight = weights[k, y]
            # One sum per loop, and views instead of computed indices: else the compiler gives up on vectors.
            for i in range(6):
                total, values = sums[i], warped[i, row, shift : shift + w]
                for x in range(w):
                    total[x] += weight[x] * values[x]
        for x in range(w):
            s0, s1, s2 = sums[0, x], sums[1, x], sums[2, x]
            covariance = sums[3, x] - mean[0, y, x] * s0 - mean[1, y, x] * s1 - mean[2, y, x] * s2
            var = max(sums[4, x] - s0 * s0 - s1 * s1 - s2 * s2, np.float32(0))
            zncc = covariance / np.sqrt((variance[y, x] + noise) * (var + noise))
            value = balance * half * (one - zncc) + (one - balance) * sums[5, x] / truncation
            out[y, x] = value if inside[y, x] > 0 else _BIG


@njit(cache=True)
@no_type_check
def combine(costs, out):
    """Mean of the better half of the views that see each pixel; `_BIG` where none does. costs [S, H, W] → [H, W]."""
    views, h, w = costs.shape
    values = np.empty(views, np.float32)
    for y in range(h):
        for x in range(w):
            n = 0
            for i in range(views):
                value = costs[i, y, x]
                if value < _BIG:
                    j = n
                    while j > 0 and values[j - 1] > value:
                        values[j] = values[j - 1]
                        j -= 1
                    values[j] = value
                    n += 1
            out[y, x] = _BIG
            if n > 0:
                best = (n + 1) // 2
                total = np.float32(0)
                for i in range(best):
                    total += values[i]
                out[y, x] = total / np.float32(best)


@njit(cache=True)
@no_type_check
def fill_unseen(cost, margin):
    """Give planes on which no view sees a pixel its lowest cost on other planes plus `margin`, in place. [H, W, D]

    Where nothing can be compared, nothing speaks against a plane: the neighbours decide.
    """
    h, w, planes = cost.shape
    for y in range(h):
        for x in range(w):
            low = _BIG
            for d in range(planes):
                low = min(low, cost[y, x, d])
            for d in range(planes):
                if cost[y, x, d] == _BIG:
                    cost[y, x, d] = np.float32(0) if low == _BIG else low + margin


@njit(cache=True, fastmath=True)
@no_type_check
def aggregate(cost, image, p1, p2, sigma_color):
    """Semi-global matching (Hirschmüller 2008), eight paths. cost [H, W, D], image [H, W, 3] → summed cost [H, W, D].

    A change of one plane costs `p1`; a larger one from p1 (across a colour edge) to `p2` (on even colour).
    """
    h, w, planes = cost.shape
    total = np.zeros((h, w, planes), np.float32)
    for sweep in range(2):
        step = 1 if sweep == 0 else -1
        # One line of path costs per direction (row neighbour, and three of the previous line), padded by one plane.
        line = np.full((4, w + 2, planes + 2), _BIG, np.float32)
        lowest = np.zeros((4, w + 2), np.float32)
        previous, previous_lowest = line.copy(), lowest.copy()
        for row in range(h):
            y = row if sweep == 0 else h - 1 - row
            line, previous = previous, line
            lowest, previous_lowest = previous_lowest, lowest
            for column in range(w):
                x = column if sweep == 0 else w - 1 - column
                for k in range(4):
                    # k = 0: beside; 1, 2, 3: the previous line, from behind, straight and ahead.
                    yy = y if k == 0 else y - step
                    xx = x - step if k == 0 else x + (k - 2) * step
                    here = line[k, x + 1]
                    if not (0 <= yy < h and 0 <= xx < w):
                        low = _BIG
                        for d in range(planes):
                            here[d + 1] = cost[y, x, d]
                            low = min(low, cost[y, x, d])
                            total[y, x, d] += cost[y, x, d]
                        lowest[k, x + 1] = low
                        continue
                    there = line[k, xx + 1] if k == 0 else previous[k, xx + 1]
                    base = lowest[k, xx + 1] if k == 0 else previous_lowest[k, xx + 1]
                    diff = np.float32(0)
                    for c in range(3):
                        diff += abs(image[y, x, c] - image[yy, xx, c])
                    jump = base + p1 + (p2 - p1) * np.exp(-diff / (np.float32(3) * sigma_color))
                    low = _BIG
                    for d in range(planes):
                        best = min(there[d + 1], min(there[d], there[d + 2]) + p1)
                        value = cost[y, x, d] + min(best, jump) - base
                        here[d + 1] = value
                        low = min(low, value)
                        total[y, x, d] += value
                    lowest[k, x + 1] = low
    return total


@njit(cache=True)
@no_type_check
def winner(total):
    """Plane of least cost with the vertex of the parabola through its neighbours. [H, W, D] → plane [H, W]."""
    h, w, planes = total.shape
    out = np.empty((h, w), np.float32)
    for y in range(h):
        for x in range(w):
            best = np.argmin(total[y, x])
            shift = np.float32(0)
            if 0 < best < planes - 1:
                a, b, c = total[y, x, best - 1], total[y, x, best], total[y, x, best + 1]
                bend = a - np.float32(2) * b + c
                if bend > 0:
                    shift = np.float32(0.5) * (a - c) / bend
            out[y, x] = np.float32(best) + shift
    return out


@njit(cache=True, fastmath=True)
@no_type_check
def smooth(plane, image, sigma_color, tolerance, radius=2):
    """Value at the centre of the plane fitted to every window. plane [H, W], image [H, W, 3] → [H, W].

    Inverse depth is linear over the image of a flat surface. Neighbours count by colour and distance, and not at all
    where they are more than `tolerance` (per pixel of distance) away from the centre's value.
    """
    h, w = plane.shape
    out = np.empty_like(plane)
    for y in range(h):
        for x in range(w):
            s = np.zeros(9, np.float32)
            for dy in range(-radius, radius + 1):
                for dx in range(-radius, radius + 1):
                    yy, xx = y + dy, x + dx
                    if not (0 <= yy < h and 0 <= xx < w):
                        continue
                    value = plane[yy, xx] - plane[y, x]
                    if abs(value) > tolerance * np.float32(max(abs(dy), abs(dx), 1)):
                        continue
                    diff = np.float32(0)
                    for c in range(3):
                        diff += abs(image[yy, xx, c] - image[y, x, c])
                    f = np.exp(-diff / (np.float32(3) * sigma_color))
                    fx, fy = np.float32(dx), np.float32(dy)
                    s[0] += f
                    s[1] += f * fx
                    s[2] += f * fy
                    s[3] += f * fx * fx
                    s[4] += f * fx * fy
                    s[5] += f * fy * fy
                    s[6] += f * value
                    s[7] += f * value * fx
                    s[8] += f * value * fy
            # Slopes are drawn to 0 where the window holds too little to tell (a line, a single pixel).
            a, b, c = s[0], s[1], s[2]
            d, e, f = s[3] + np.float32(0.1), s[4], s[5] + np.float32(0.1)
            det = a * (d * f - e * e) - b * (b * f - e * c) + c * (b * e - d * c)
            top = s[6] * (d * f - e * e) - b * (s[7] * f - e * s[8]) + c * (s[7] * e - d * s[8])
            out[y, x] = plane[y, x] + top / det
    return out
