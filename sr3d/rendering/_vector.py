"""Numba: rows of 16 float32 times feature channels, written as LLVM vectors.

LLVM does not vectorise these loops over channels by itself, and does not keep their sums in registers.
"""

from __future__ import annotations

from typing import Any, no_type_check

from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

from sr3d.rendering._project import TILE

BATCH = 32  # splats whose weights are collected before they are spread over the feature channels: 32 KB


def _row_pointer(context: Any, builder: Any, array_type: Any, array: Any, row: Any) -> Any:
    """LLVM pointer to 16 float32: row `row` of a C-ordered array [..., 16]."""
    data = context.make_array(array_type)(context, builder, value=array).data
    offset = builder.mul(row, ir.Constant(row.type, TILE))
    return builder.bitcast(builder.gep(data, [offset]), ir.VectorType(ir.FloatType(), TILE).as_pointer())


def _broadcast(builder: Any, value: Any) -> Any:
    """LLVM vector of 16 equal float32."""
    vector = ir.Constant(ir.VectorType(ir.FloatType(), TILE), ir.Undefined)
    for lane in range(TILE):
        vector = builder.insert_element(vector, value, ir.Constant(ir.IntType(32), lane))
    return vector


def _element_pointer(context: Any, builder: Any, array_type: Any, array: Any, row: Any, column: Any) -> Any:
    """LLVM pointer to element [row, column] of a C-ordered array."""
    view = context.make_array(array_type)(context, builder, value=array)
    width = cgutils.unpack_tuple(builder, view.shape)[1]
    return builder.gep(view.data, [builder.add(builder.mul(row, width), column)])


def _blend(channels: int) -> Any:
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
def blend_features(extra, weights, members, filled, features):
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
def copy_row(typingctx, out, out_row, row, in_row):
    """out[out_row] = row[in_row]"""

    def codegen(context, builder, signature, args):
        source = _row_pointer(context, builder, signature.args[2], args[2], args[3])
        target = _row_pointer(context, builder, signature.args[0], args[0], args[1])
        builder.store(builder.load(source, align=4), target, align=4)
        return context.get_dummy_value()

    return types.none(out, types.intp, row, types.intp), codegen


def _horizontal_sum(builder: Any, vector: Any) -> Any:
    """LLVM sum of the 16 float32 of a vector."""
    half = TILE
    while half > 1:
        half //= 2
        undefined = ir.Constant(vector.type, ir.Undefined)
        parts = [
            builder.shuffle_vector(
                vector, undefined, ir.Constant(ir.VectorType(ir.IntType(32), half), list(range(start, start + half)))
            )
            for start in (0, half)
        ]
        vector = builder.fadd(*parts)
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


def _mix(channels: int) -> Any:
    """Intrinsic out[out_row] += Σ_k rows[first + k] · values[i, c + k] over `groups` groups of `channels` channels."""

    @intrinsic
    @no_type_check
    def mix(typingctx, out, out_row, rows, first, values, i, c, groups):
        def codegen(context, builder, signature, args):
            t_out, _, t_rows, _, t_values, *_ = signature.args
            out, out_row, rows, first, values, i, c, groups = args
            zero = ir.Constant(ir.VectorType(ir.FloatType(), TILE), None)
            sums = [cgutils.alloca_once_value(builder, zero) for _ in range(channels)]
            factors = _element_pointer(context, builder, t_values, values, i, c)
            with cgutils.for_range(builder, groups) as loop:
                begin = builder.mul(loop.index, ir.Constant(loop.index.type, channels))
                for j, total in enumerate(sums):
                    k = builder.add(begin, ir.Constant(begin.type, j))
                    row = builder.load(_row_pointer(context, builder, t_rows, rows, builder.add(first, k)), align=4)
                    factor = _broadcast(builder, builder.load(builder.gep(factors, [k])))
                    term = builder.fmul(row, factor, flags=("contract",))
                    builder.store(builder.fadd(builder.load(total), term, flags=("contract",)), total)
            target = _row_pointer(context, builder, t_out, out, out_row)
            result = builder.load(target, align=4)
            for total in sums:
                result = builder.fadd(result, builder.load(total))
            builder.store(result, target, align=4)
            return context.get_dummy_value()

        return types.none(out, types.intp, rows, types.intp, values, types.intp, types.intp, types.intp), codegen

    return mix


def _dots(channels: int) -> Any:
    """Intrinsic out[slot, column + j] = Σ_y Σ_x weights[first + y, x] · rows[y·stride + c + j, x], y0 ≤ y < y1."""

    @intrinsic
    @no_type_check
    def dots(typingctx, out, slot, column, weights, first, rows, stride, c, y0, y1):
        def codegen(context, builder, signature, args):
            t_out, _, _, t_weights, _, t_rows, *_ = signature.args
            out, slot, column, weights, first, rows, stride, c, y0, y1 = args
            zero = ir.Constant(ir.VectorType(ir.FloatType(), TILE), None)
            sums = [cgutils.alloca_once_value(builder, zero) for _ in range(channels)]
            with cgutils.for_range_slice(builder, y0, y1, ir.Constant(y0.type, 1), inc=True) as (y, _):
                at = _row_pointer(context, builder, t_weights, weights, builder.add(first, y))
                weight = builder.load(at, align=4)
                begin = builder.add(builder.mul(y, stride), c)
                for j, total in enumerate(sums):
                    k = builder.add(begin, ir.Constant(begin.type, j))
                    row = builder.load(_row_pointer(context, builder, t_rows, rows, k), align=4)
                    term = builder.fmul(weight, row, flags=("contract",))
                    builder.store(builder.fadd(builder.load(total), term, flags=("contract",)), total)
            target = _element_pointer(context, builder, t_out, out, slot, column)
            for j, total in enumerate(sums):
                place = builder.gep(target, [ir.Constant(ir.IntType(32), j)])
                builder.store(_horizontal_sum(builder, builder.load(total)), place)
            return context.get_dummy_value()

        whole = types.intp
        return types.none(out, whole, whole, weights, whole, rows, whole, whole, whole, whole), codegen

    return dots


mix_many, mix_one = _mix(4), _mix(1)
_dots_many, _dots_one = _dots(_TOGETHER), _dots(1)


@njit(cache=True)
@no_type_check
def feature_dots(pair_grads, slot, column, tile, first, g_extra, y0, y1):
    """Gradients of one pair to its D features, from `column` on: weights of rows y0 to y1 · the image's gradients.

    `first` is the row of `tile` (seen as rows of 16) with the weights of y = 0; `g_extra` is [16·D, 16], row y·D + c.
    """
    channels = g_extra.shape[0] // TILE
    whole = channels - channels % _TOGETHER
    for c in range(0, whole, _TOGETHER):
        _dots_many(pair_grads, slot, column + c, tile, first, g_extra, channels, c, y0, y1)
    for c in range(whole, channels):
        _dots_one(pair_grads, slot, column + c, tile, first, g_extra, channels, c, y0, y1)
