"""Numba kernels: splats to pixels, in depth order, by tiles of 16×16, and the way back for gradients.

The pixel loops are branch-free over rows of 16 so that LLVM makes one vector instruction of each line; `tile[k, y, x]`
are planes of values per pixel. A pixel whose transmittance would fall to 1e-4 stores it negated: it is finished.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

from sr3d.rendering import constants as const
from sr3d.rendering._geometry import FASTMATH, HALF, ONE, ZERO
from sr3d.rendering._project import TILE

BATCH = 32  # splats whose weights are collected before they are spread over the feature channels: 32 KB
MOMENTS = 10  # columns of a pair's gradients before the features: dL/ds·(1, x, y, xx, xy, yy), rgb, depth

_ALPHA_MAX, _ALPHA_MIN = np.float32(const.ALPHA_MAX), np.float32(const.ALPHA_MIN)
_T_MIN = np.float32(const.TRANSMITTANCE_MIN)
_S_MAX = np.float32(5.8)  # exp(-5.8) < 1/255: nothing beyond is drawn
# exp(-s) on 0..5.8 is the 8th power of this polynomial (fit of exp(-s/8)), to a relative error of 8e-7.
_E0, _E1, _E2 = np.float32(0.99999990), np.float32(-0.124998893), np.float32(0.00781040073)
_E3, _E4, _E5 = (
    np.float32(-0.00032402775579921754),
    np.float32(9.67988023879124e-06),
    np.float32(-1.761562495777626e-07),
)


def _row_pointer(context, builder, array_type, array, row):  # type: ignore[no-untyped-def]
    """LLVM pointer to 16 float32: row `row` of a C-ordered array [..., 16]."""
    data = context.make_array(array_type)(context, builder, value=array).data
    offset = builder.mul(row, ir.Constant(row.type, TILE))
    return builder.bitcast(builder.gep(data, [offset]), ir.VectorType(ir.FloatType(), TILE).as_pointer())


def _broadcast(builder, value):  # type: ignore[no-untyped-def]
    """LLVM vector of 16 equal float32."""
    vector = ir.Constant(ir.VectorType(ir.FloatType(), TILE), ir.Undefined)
    for lane in range(TILE):
        vector = builder.insert_element(vector, value, ir.Constant(ir.IntType(32), lane))
    return vector


def _element_pointer(context, builder, array_type, array, row, column):  # type: ignore[no-untyped-def]
    """LLVM pointer to element [row, column] of a C-ordered array."""
    view = context.make_array(array_type)(context, builder, value=array)
    width = cgutils.unpack_tuple(builder, view.shape)[1]
    return builder.gep(view.data, [builder.add(builder.mul(row, width), column)])


def _blend(channels):  # type: ignore[no-untyped-def]
    """Intrinsic out[(c + j)·16 + y] += Σ_k weights[first + k] · features[members[y, k], c + j] for j < `channels`.

    The sums stay in registers: one multiplication for each load, where a loop over splats outside would also load and
    store every sum.
    """

    @intrinsic
    @no_type_check
    def blend(typingctx, out, y, c, weights, first, members, count, features):
        def codegen(context, builder, signature, args):
            t_out, _, _, t_weights, _, t_members, _, t_features = signature.args
            out, y, c, weights, first, members, count, features = args
            vector = ir.VectorType(ir.FloatType(), TILE)
            sums = [cgutils.alloca_once_value(builder, ir.Constant(vector, None)) for _ in range(channels)]
            with cgutils.for_range(builder, count) as loop:
                row = _row_pointer(context, builder, t_weights, weights, builder.add(first, loop.index))
                weight = builder.load(row, align=4)
                member = builder.load(_element_pointer(context, builder, t_members, members, y, loop.index))
                values = _element_pointer(
                    context, builder, t_features, features, builder.sext(member, loop.index.type), c
                )
                for j, total in enumerate(sums):
                    value = builder.load(builder.gep(values, [ir.Constant(ir.IntType(32), j)]))
                    term = builder.fmul(weight, _broadcast(builder, value), flags=("contract",))
                    builder.store(builder.fadd(builder.load(total), term, flags=("contract",)), total)
            for j, total in enumerate(sums):
                channel = builder.add(c, ir.Constant(c.type, j))
                at = builder.add(builder.mul(channel, ir.Constant(c.type, TILE)), y)
                target = _row_pointer(context, builder, t_out, out, at)
                builder.store(builder.fadd(builder.load(target, align=4), builder.load(total)), target, align=4)
            return context.get_dummy_value()

        return types.none(out, types.intp, types.intp, weights, types.intp, members, types.intp, features), codegen

    return blend


_TOGETHER = 8  # feature channels whose sums are kept in registers
_blend_many, _blend_one = _blend(_TOGETHER), _blend(1)


@njit(cache=True)
@no_type_check
def _blend_features(extra, weights, members, filled, features):
    """Add a batch of weighted splats to the feature planes `extra` [D·16, 16], and empty the batch."""
    channels = features.shape[1]
    whole = channels - channels % _TOGETHER
    for y in range(TILE):
        for c in range(0, whole, _TOGETHER):
            _blend_many(extra, y, c, weights, y * BATCH, members, filled[y], features)
        for c in range(whole, channels):
            _blend_one(extra, y, c, weights, y * BATCH, members, filled[y], features)
        filled[y] = 0


@intrinsic
@no_type_check
def _copy_row(typingctx, out, out_row, row, in_row):
    """out[out_row] = row[in_row]"""

    def codegen(context, builder, signature, args):
        source = _row_pointer(context, builder, signature.args[2], args[2], args[3])
        target = _row_pointer(context, builder, signature.args[0], args[0], args[1])
        builder.store(builder.load(source, align=4), target, align=4)
        return context.get_dummy_value()

    return types.none(out, types.intp, row, types.intp), codegen


@intrinsic
@no_type_check
def _add_scaled_row(typingctx, out, out_row, row, in_row, factor):
    """out[out_row] += factor · row[in_row]. LLVM does not vectorise this over the feature channels by itself."""

    def codegen(context, builder, signature, args):
        target = _row_pointer(context, builder, signature.args[0], args[0], args[1])
        source = _row_pointer(context, builder, signature.args[2], args[2], args[3])
        term = builder.fmul(builder.load(source, align=4), _broadcast(builder, args[4]), flags=("contract",))
        builder.store(builder.fadd(builder.load(target, align=4), term, flags=("contract",)), target, align=4)
        return context.get_dummy_value()

    return types.none(out, types.intp, row, types.intp, types.float32), codegen


@intrinsic
@no_type_check
def _add_product_row(typingctx, out, out_row, a, a_row, b, b_row):
    """out[out_row] += a[a_row] · b[b_row]"""

    def codegen(context, builder, signature, args):
        target = _row_pointer(context, builder, signature.args[0], args[0], args[1])
        x = builder.load(_row_pointer(context, builder, signature.args[2], args[2], args[3]), align=4)
        y = builder.load(_row_pointer(context, builder, signature.args[4], args[4], args[5]), align=4)
        term = builder.fmul(x, y, flags=("contract",))
        builder.store(builder.fadd(builder.load(target, align=4), term, flags=("contract",)), target, align=4)
        return context.get_dummy_value()

    return types.none(out, types.intp, a, types.intp, b, types.intp), codegen


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


@njit(cache=True, fastmath=FASTMATH)
@no_type_check
def _finished(tile):
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
                    s = min(max((A * dx + By) * dx + Cyy, ZERO), _S_MAX)
                    e = _E0 + s * (_E1 + s * (_E2 + s * (_E3 + s * (_E4 + s * _E5))))
                    e = e * e
                    e = e * e
                    alpha = min(opacity * (e * e), _ALPHA_MAX)
                    alpha = alpha if alpha >= _ALPHA_MIN else ZERO
                    before = tile[0, y, x]
                    w = before * alpha
                    after = before - w
                    visible = after > _T_MIN
                    w = w if visible else ZERO
                    tile[0, y, x] = after if visible else -abs(before)
                    tile[1, y, x] += w * r
                    tile[2, y, x] += w * g
                    tile[3, y, x] += w * b
                    tile[4, y, x] += w * depth
                    tile[5, y, x] = w
                if channels > 0:
                    _copy_row(weights, y * BATCH + filled[y], tile, 5 * TILE + y)
                    which[y, filled[y]] = i
                    filled[y] += 1
            if p % BATCH == BATCH - 1:
                if channels > 0:
                    _blend_features(extra, weights, which, filled, features)
                if _finished(tile):
                    break
        if channels > 0:
            _blend_features(extra, weights, which, filled, features)
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
    g_extra, lanes_extra = np.empty((channels * TILE, TILE), np.float32), np.empty((learned, TILE), np.float32)
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
                    g_extra[c * TILE + y, x] = value
                    rest += value * image[top + y, left + x, 4 + c]
                tile[1, y, x] = rest
        for p in range(start[t], start[t + 1]):
            i = members[p]
            x0, y0 = np.float32(left) + HALF - splats[i, 0], np.float32(top) + HALF - splats[i, 1]
            A, B, C, opacity = HALF * splats[i, 2], splats[i, 3], HALF * splats[i, 4], splats[i, 5]
            r, g, b, depth = splats[i, 6], splats[i, 7], splats[i, 8], splats[i, 9]
            lanes[:] = ZERO
            lanes_extra[:] = ZERO
            for y in range(max(np.int64(splats[i, 10]) - top, 0), min(np.int64(splats[i, 11]) - top, TILE)):
                dy = y0 + np.float32(y)
                By, Cyy = B * dy, C * dy * dy
                if channels > 0:
                    tile[8, y] = ZERO
                    for c in range(channels):
                        _add_scaled_row(tile, 8 * TILE + y, g_extra, c * TILE + y, features[i, c])
                for x in range(TILE):
                    dx = x0 + np.float32(x)
                    s = min(max((A * dx + By) * dx + Cyy, ZERO), _S_MAX)
                    e = _E0 + s * (_E1 + s * (_E2 + s * (_E3 + s * (_E4 + s * _E5))))
                    e = e * e
                    e = e * e
                    free = opacity * (e * e)
                    alpha = min(free, _ALPHA_MAX)
                    alpha = alpha if alpha >= _ALPHA_MIN else ZERO
                    before = tile[0, y, x]
                    w = before * alpha
                    after = before - w
                    visible = after > _T_MIN
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
                for c in range(learned):
                    _add_product_row(lanes_extra, c, tile, 7 * TILE + y, g_extra, c * TILE + y)
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
            for c in range(learned):
                total = ZERO
                for x in range(TILE):
                    total += lanes_extra[c, x]
                out[MOMENTS + c] = total
            if p % 32 == 31 and _finished(tile):
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
                    s = min(max((A * dx + By) * dx + Cyy, ZERO), _S_MAX)
                    e = _E0 + s * (_E1 + s * (_E2 + s * (_E3 + s * (_E4 + s * _E5))))
                    e = e * e
                    e = e * e
                    alpha = min(opacity * (e * e), _ALPHA_MAX)
                    alpha = alpha if alpha >= _ALPHA_MIN else ZERO
                    before = tile[0, y, x]
                    w = before * alpha
                    after = before - w
                    visible = after > _T_MIN
                    w = w if visible else ZERO
                    tile[0, y, x] = after if visible else -abs(before)
                    crossed = (before > HALF) & visible & (after <= HALF)
                    tile[2, y, x] = depth if crossed else tile[2, y, x]
                    strongest[y, x] = i if w > tile[1, y, x] else strongest[y, x]
                    tile[1, y, x] = max(w, tile[1, y, x])
            if p % BATCH == BATCH - 1 and _finished(tile):
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
    g_extra, lanes = np.empty((channels * TILE, TILE), np.float32), np.empty((channels, TILE), np.float32)
    for t in range(part, tiles, parts):
        left, top = (t % across) * TILE, (t // across) * TILE
        tile[0] = -ONE
        tile[0, : height - top, : width - left] = ONE
        g_extra[:] = ZERO
        for y in range(min(TILE, height - top)):
            for x in range(min(TILE, width - left)):
                for c in range(channels):
                    g_extra[c * TILE + y, x] = g_image[top + y, left + x, channel + c]
        for p in range(start[t], start[t + 1]):
            i = members[p]
            x0, y0 = np.float32(left) + HALF - splats[i, 0], np.float32(top) + HALF - splats[i, 1]
            A, B, C, opacity = HALF * splats[i, 2], splats[i, 3], HALF * splats[i, 4], splats[i, 5]
            lanes[:] = ZERO
            for y in range(max(np.int64(splats[i, 10]) - top, 0), min(np.int64(splats[i, 11]) - top, TILE)):
                dy = y0 + np.float32(y)
                By, Cyy = B * dy, C * dy * dy
                for x in range(TILE):
                    dx = x0 + np.float32(x)
                    s = min(max((A * dx + By) * dx + Cyy, ZERO), _S_MAX)
                    e = _E0 + s * (_E1 + s * (_E2 + s * (_E3 + s * (_E4 + s * _E5))))
                    e = e * e
                    e = e * e
                    alpha = min(opacity * (e * e), _ALPHA_MAX)
                    alpha = alpha if alpha >= _ALPHA_MIN else ZERO
                    before = tile[0, y, x]
                    w = before * alpha
                    after = before - w
                    visible = after > _T_MIN
                    tile[0, y, x] = after if visible else -abs(before)
                    tile[1, y, x] = w if visible else ZERO
                for c in range(channels):
                    _add_product_row(lanes, c, tile, TILE + y, g_extra, c * TILE + y)
            column, row = left // TILE - boxes[i, 0], top // TILE - boxes[i, 2]
            slot = first[i] + row * (boxes[i, 1] - boxes[i, 0]) + column
            for c in range(channels):
                total = ZERO
                for x in range(TILE):
                    total += lanes[c, x]
                pair_grads[slot, c] = total
            if p % BATCH == BATCH - 1 and _finished(tile):
                break


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
