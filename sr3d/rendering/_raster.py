"""Numba kernels: splats to pixels, in depth order, by tiles of 16×16, and the way back for gradients.

The pixel loops are branch-free over rows of 16 so that LLVM makes one vector instruction of each line; `tile[k, y, x]`
are planes of values per pixel. A pixel whose transmittance would fall to 1e-4 stores it negated: it is finished.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

from sr3d.rendering import constants as const
from sr3d.rendering._geometry import FASTMATH, HALF, ONE, ZERO
from sr3d.rendering._project import TILE
from sr3d.rendering._vector import BATCH, blend_features, copy_row, feature_dots, mix_many, mix_one

MOMENTS = 10  # columns of a pair's gradients before the features: dL/ds·(1, x, y, xx, xy, yy), rgb, depth

_ALPHA_MAX, _ALPHA_MIN = np.float32(const.ALPHA_MAX), np.float32(const.ALPHA_MIN)
T_MIN = np.float32(const.TRANSMITTANCE_MIN)
_S_MAX = np.float32(5.8)  # exp(-5.8) < 1/255: nothing beyond is drawn
# exp(-s) on 0..5.8 is the 8th power of this polynomial (fit of exp(-s/8)), to a relative error of 8e-7.
_E0, _E1, _E2 = np.float32(0.99999990), np.float32(-0.124998893), np.float32(0.00781040073)
_E3, _E4, _E5 = (
    np.float32(-0.00032402775579921754),
    np.float32(9.67988023879124e-06),
    np.float32(-1.761562495777626e-07),
)


@njit(cache=True, fastmath=FASTMATH)
@no_type_check
def density(s):
    """exp(−s) for s ≥ 0 but for rounding, at most exp(−5.8) where nothing is drawn."""
    s = min(max(s, ZERO), _S_MAX)
    e = _E0 + s * (_E1 + s * (_E2 + s * (_E3 + s * (_E4 + s * _E5))))
    e = e * e
    e = e * e
    return e * e


@njit(cache=True, fastmath=FASTMATH)
@no_type_check
def clipped(alpha):
    """What is drawn of an alpha: at most 0.999, and nothing below 1/255."""
    alpha = min(alpha, _ALPHA_MAX)
    return alpha if alpha >= _ALPHA_MIN else ZERO


@njit(cache=True, fastmath=FASTMATH)
@no_type_check
def finished(tile):
    """Whether no pixel of the tile can receive anything more."""
    most = -ONE
    for y in range(TILE):
        for x in range(TILE):
            most = max(most, tile[0, y, x])
    return most <= ZERO


@njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def draw(part, parts, splats, features, start, members, image, transmittance):
    """Composite front to back into `image` [H, W, 4 + D] (rgb, depth, features) and `transmittance` [H, W].

    The splats of tile t are `members[start[t]:start[t + 1]]`, near to far. Every `parts`-th tile is drawn.
    """
    height, width = transmittance.shape
    across, channels = (width + TILE - 1) // TILE, features.shape[1]
    tiles = across * ((height + TILE - 1) // TILE)
    tile = np.empty((6, TILE, TILE), np.float32)  # transmittance, r, g, b, depth, weight of the current splat
    extra = np.empty((channels * TILE, TILE), np.float32)
    # Per row of pixels, the weights of the splats that reach it: which ones, and how many.
    weights, which = np.empty((TILE * BATCH, TILE), np.float32), np.empty((TILE, BATCH), np.int32)
    filled = np.zeros(TILE, np.int64)
    # Neighbouring tiles cost about the same: interleaved, every part is an equal share.
    for t in range(part, tiles, parts):
        left, top = (t % across) * TILE, (t // across) * TILE
        tile[1:] = ZERO
        tile[0] = -ONE  # pixels outside the image are finished
        tile[0, : height - top, : width - left] = ONE
        extra[:] = ZERO
        for p in range(start[t], start[t + 1]):
            i = members[p]
            x0, y0 = np.float32(left) + HALF - splats[i, 0], np.float32(top) + HALF - splats[i, 1]
            A, B, C, opacity = HALF * splats[i, 2], splats[i, 3], HALF * splats[i, 4], splats[i, 5]
            r, g, b, depth = splats[i, 6], splats[i, 7], splats[i, 8], splats[i, 9]
            for y in range(max(np.int64(splats[i, 10]) - top, 0), min(np.int64(splats[i, 11]) - top, TILE)):
                dy = y0 + np.float32(y)
                By, Cyy = B * dy, C * dy * dy
                for x in range(TILE):
                    dx = x0 + np.float32(x)
                    alpha = clipped(opacity * density((A * dx + By) * dx + Cyy))
                    before = tile[0, y, x]
                    w = before * alpha
                    after = before - w
                    visible = after > T_MIN
                    w = w if visible else ZERO
                    tile[0, y, x] = after if visible else -abs(before)
                    tile[1, y, x] += w * r
                    tile[2, y, x] += w * g
                    tile[3, y, x] += w * b
                    tile[4, y, x] += w * depth
                    tile[5, y, x] = w
                if channels > 0:
                    copy_row(weights, y * BATCH + filled[y], tile, 5 * TILE + y)
                    which[y, filled[y]] = i
                    filled[y] += 1
            if p % BATCH == BATCH - 1:
                if channels > 0:
                    blend_features(extra, weights, which, filled, features)
                if finished(tile):
                    break
        if channels > 0:
            blend_features(extra, weights, which, filled, features)
        for y in range(min(TILE, height - top)):
            for x in range(min(TILE, width - left)):
                transmittance[top + y, left + x] = abs(tile[0, y, x])
                for c in range(4):
                    image[top + y, left + x, c] = tile[1 + c, y, x]
                for c in range(channels):
                    image[top + y, left + x, 4 + c] = extra[c * TILE + y, x]


@njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def draw_backward(
    part, parts, splats, features, start, members, boxes, first, image, transmittance, g_image, g_alpha, pair_grads
):
    """Fill `pair_grads` [pairs, 10 + D], zero on entry, from the gradients of the image and of alpha.

    Front to back again: what lies behind a splat is the pixel's total minus what has been composited so far.
    `first` is that of `first_pairs`. Every `parts`-th tile is done.
    """
    height, width = transmittance.shape
    across, channels = (width + TILE - 1) // TILE, features.shape[1]
    learned = pair_grads.shape[1] - MOMENTS  # D, or 0 where features need no gradient
    tiles = across * ((height + TILE - 1) // TILE)
    # Planes: 0 transmittance, 1 what is left behind, 2-6 gradients of alpha, r, g, b, depth; of the current splat
    # 7 weight and 8 features · their gradients.
    tile = np.empty((9, TILE, TILE), np.float32)
    lanes = np.empty((7, TILE), np.float32)  # sums over rows: dL/ds·(1, y, yy), weight·gradients of rgb and depth
    g_extra = np.empty((TILE * channels, TILE), np.float32)
    for t in range(part, tiles, parts):
        left, top = (t % across) * TILE, (t // across) * TILE
        tile[1:] = ZERO
        tile[0] = -ONE  # pixels outside the image are finished
        tile[0, : height - top, : width - left] = ONE
        g_extra[:] = ZERO
        for y in range(min(TILE, height - top)):
            for x in range(min(TILE, width - left)):
                tile[2, y, x] = g_alpha[top + y, left + x]
                rest = (ONE - transmittance[top + y, left + x]) * tile[2, y, x]
                for c in range(4):
                    tile[3 + c, y, x] = g_image[top + y, left + x, c]
                    rest += tile[3 + c, y, x] * image[top + y, left + x, c]
                for c in range(channels):
                    value = g_image[top + y, left + x, 4 + c]
                    g_extra[y * channels + c, x] = value
                    rest += value * image[top + y, left + x, 4 + c]
                tile[1, y, x] = rest
        for p in range(start[t], start[t + 1]):
            i = members[p]
            x0, y0 = np.float32(left) + HALF - splats[i, 0], np.float32(top) + HALF - splats[i, 1]
            A, B, C, opacity = HALF * splats[i, 2], splats[i, 3], HALF * splats[i, 4], splats[i, 5]
            r, g, b, depth = splats[i, 6], splats[i, 7], splats[i, 8], splats[i, 9]
            lanes[:] = ZERO
            first_row, last_row = max(np.int64(splats[i, 10]) - top, 0), min(np.int64(splats[i, 11]) - top, TILE)
            for y in range(first_row, last_row):
                dy = y0 + np.float32(y)
                By, Cyy = B * dy, C * dy * dy
                if channels > 0:
                    tile[8, y] = ZERO
                    mix_many(tile, 8 * TILE + y, g_extra, y * channels, features, i, 0, channels // 4)
                    done = channels - channels % 4
                    mix_one(tile, 8 * TILE + y, g_extra, y * channels + done, features, i, done, channels - done)
                for x in range(TILE):
                    dx = x0 + np.float32(x)
                    free = opacity * density((A * dx + By) * dx + Cyy)
                    alpha = clipped(free)
                    before = tile[0, y, x]
                    w = before * alpha
                    after = before - w
                    visible = after > T_MIN
                    w = w if visible else ZERO
                    tile[0, y, x] = after if visible else -abs(before)
                    v0, v1, v2, v3 = tile[3, y, x], tile[4, y, x], tile[5, y, x], tile[6, y, x]
                    value = tile[2, y, x] + r * v0 + g * v1 + b * v2 + depth * v3 + tile[8, y, x]
                    rest = tile[1, y, x] - w * value
                    tile[1, y, x] = rest
                    # dL/ds = -alpha·dL/dalpha, and 1 - alpha = after / before.
                    q = w * (rest / after - value)
                    q = q if free <= _ALPHA_MAX else ZERO
                    lanes[0, x] += q
                    lanes[1, x] += q * dy
                    lanes[2, x] += q * (dy * dy)
                    lanes[3, x] += w * v0
                    lanes[4, x] += w * v1
                    lanes[5, x] += w * v2
                    lanes[6, x] += w * v3
                    tile[7, y, x] = w
            column, row = left // TILE - boxes[i, 0], top // TILE - boxes[i, 2]
            slot = first[i] + row * (boxes[i, 1] - boxes[i, 0]) + column
            m, mx, my, mxx, mxy, myy = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
            s0, s1, s2, s3 = ZERO, ZERO, ZERO, ZERO
            for x in range(TILE):
                dx = x0 + np.float32(x)
                q, qy = lanes[0, x], lanes[1, x]
                m += q
                my += qy
                myy += lanes[2, x]
                mx += q * dx
                mxx += q * dx * dx
                mxy += qy * dx
                s0 += lanes[3, x]
                s1 += lanes[4, x]
                s2 += lanes[5, x]
                s3 += lanes[6, x]
            out = pair_grads[slot]
            out[0], out[1], out[2], out[3], out[4], out[5] = m, mx, my, mxx, mxy, myy
            out[6], out[7], out[8], out[9] = s0, s1, s2, s3
            if learned > 0:
                feature_dots(pair_grads, slot, MOMENTS, tile, 7 * TILE, g_extra, first_row, last_row)
            if p % 32 == 31 and finished(tile):
                break


@njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def inspect(part, parts, splats, start, members, median_depth, ids):
    """Per pixel the z-depth at which transmittance falls to ½ (0 where it does not) and the splat of largest weight.

    `median_depth` and `ids` are [H, W]; an id is −1 where nothing is drawn, and the nearest of equal weights.
    """
    height, width = median_depth.shape
    across = (width + TILE - 1) // TILE
    tiles = across * ((height + TILE - 1) // TILE)
    tile = np.empty((3, TILE, TILE), np.float32)  # transmittance, largest weight, median depth
    strongest = np.empty((TILE, TILE), np.int32)
    for t in range(part, tiles, parts):
        left, top = (t % across) * TILE, (t // across) * TILE
        tile[1:] = ZERO
        tile[0] = -ONE
        tile[0, : height - top, : width - left] = ONE
        strongest[:] = -1
        for p in range(start[t], start[t + 1]):
            i = members[p]
            x0, y0 = np.float32(left) + HALF - splats[i, 0], np.float32(top) + HALF - splats[i, 1]
            A, B, C, opacity, depth = HALF * splats[i, 2], splats[i, 3], HALF * splats[i, 4], splats[i, 5], splats[i, 9]
            for y in range(max(np.int64(splats[i, 10]) - top, 0), min(np.int64(splats[i, 11]) - top, TILE)):
                dy = y0 + np.float32(y)
                By, Cyy = B * dy, C * dy * dy
                for x in range(TILE):
                    dx = x0 + np.float32(x)
                    alpha = clipped(opacity * density((A * dx + By) * dx + Cyy))
                    before = tile[0, y, x]
                    w = before * alpha
                    after = before - w
                    visible = after > T_MIN
                    w = w if visible else ZERO
                    tile[0, y, x] = after if visible else -abs(before)
                    crossed = (before > HALF) & visible & (after <= HALF)
                    tile[2, y, x] = depth if crossed else tile[2, y, x]
                    strongest[y, x] = i if w > tile[1, y, x] else strongest[y, x]
                    tile[1, y, x] = max(w, tile[1, y, x])
            if p % BATCH == BATCH - 1 and finished(tile):
                break
        for y in range(min(TILE, height - top)):
            for x in range(min(TILE, width - left)):
                median_depth[top + y, left + x] = tile[2, y, x]
                ids[top + y, left + x] = strongest[y, x]


@njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def feature_gradients(part, parts, splats, start, members, boxes, first, g_image, channel, pair_grads):
    """Fill `pair_grads` [pairs, D'], zero on entry, with the gradients to features `channel` to `channel` + D' - 1 of
    the image's channels. The same weights as in `draw_backward`.
    """
    height, width = g_image.shape[0], g_image.shape[1]
    across, channels = (width + TILE - 1) // TILE, pair_grads.shape[1]
    tiles = across * ((height + TILE - 1) // TILE)
    tile = np.empty((2, TILE, TILE), np.float32)  # transmittance, weight of the current splat
    g_extra = np.empty((TILE * channels, TILE), np.float32)
    for t in range(part, tiles, parts):
        left, top = (t % across) * TILE, (t // across) * TILE
        tile[0] = -ONE
        tile[0, : height - top, : width - left] = ONE
        g_extra[:] = ZERO
        for y in range(min(TILE, height - top)):
            for x in range(min(TILE, width - left)):
                for c in range(channels):
                    g_extra[y * channels + c, x] = g_image[top + y, left + x, channel + c]
        for p in range(start[t], start[t + 1]):
            i = members[p]
            x0, y0 = np.float32(left) + HALF - splats[i, 0], np.float32(top) + HALF - splats[i, 1]
            A, B, C, opacity = HALF * splats[i, 2], splats[i, 3], HALF * splats[i, 4], splats[i, 5]
            first_row, last_row = max(np.int64(splats[i, 10]) - top, 0), min(np.int64(splats[i, 11]) - top, TILE)
            for y in range(first_row, last_row):
                dy = y0 + np.float32(y)
                By, Cyy = B * dy, C * dy * dy
                for x in range(TILE):
                    dx = x0 + np.float32(x)
                    alpha = clipped(opacity * density((A * dx + By) * dx + Cyy))
                    before = tile[0, y, x]
                    w = before * alpha
                    after = before - w
                    visible = after > T_MIN
                    tile[0, y, x] = after if visible else -abs(before)
                    tile[1, y, x] = w if visible else ZERO
            column, row = left // TILE - boxes[i, 0], top // TILE - boxes[i, 2]
            slot = first[i] + row * (boxes[i, 1] - boxes[i, 0]) + column
            feature_dots(pair_grads, slot, 0, tile, TILE, g_extra, first_row, last_row)
            if p % BATCH == BATCH - 1 and finished(tile):
                break
