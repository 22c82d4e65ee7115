"""Numba kernels: Gaussians to splats (projection, covariance, colour) and the way back for gradients.

A splat is one row of 16 float32, one cache line: 0-1 centre in pixels, 2-4 conic A, B, C (density exp(-s) with
s = ½A·dx² + B·dx·dy + ½C·dy²), 5 opacity, 6-8 rgb, 9 z-depth, 10-11 the pixel rows y0 ≤ y < y1 that it can reach,
12-13 z-depth again, as one float64. Its box is the range of 16×16 tiles x0 ≤ x < x1, y0 ≤ y < y1 that it can reach,
empty where it is not drawn.

Positions are offsets from an origin and reach the camera frame in float64: a pixel of a focal length of 10⁹ is far
below what float32 resolves at the Gaussian's distance. All that is relative to a Gaussian or the camera is float32.
"""

from __future__ import annotations

import math
from typing import no_type_check

import numpy as np
from numba import njit

from sr3d.rendering import constants as const
from sr3d.rendering._fade import faded, faded_backward, visibility
from sr3d.rendering._geometry import (
    C0,
    EPS2D,
    FASTMATH,
    HALF,
    ONE,
    TWO,
    ZERO,
    add_outer,
    basis_backward,
    basis_values,
    clamp,
    columns,
    columns_backward,
    determinants,
    dot,
    factor,
    scaled,
    times,
    transposed_times,
    unit_quat,
)  # fmt: skip

TILE = 16
BLOCK = 512  # Gaussians whose pose gradient is summed into one row: the same sum for any number of threads

_INF = np.float32(np.inf)
_FAR, _ALPHA_MIN, _TINY = np.float32(const.FAR), np.float32(const.ALPHA_MIN), np.float32(1e-12)
_PIXELS = const.SIGMA_EXTENT * math.sqrt(const.EPS2D) + 1  # of the low-pass and of rounding to pixels
_SIGMA_EXTENT, _RATIO_MIN = np.float32(const.SIGMA_EXTENT), np.float32(const.RATIO_MIN)


@njit(cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def _placed(means, i, origin, pose):
    """Mean i in the world frame and in the camera frame, float64."""
    m = np.float64(means[i, 0]) + origin[0], np.float64(means[i, 1]) + origin[1], np.float64(means[i, 2]) + origin[2]
    p = times(pose, m)
    return m, (p[0] + pose[0, 3], p[1] + pose[1, 3], p[2] + pose[2, 3])


@njit(cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def _direction(m, pose):
    """Unit vector from the camera to a Gaussian at m, world frame, and its inverse length; float32."""
    back = transposed_times(pose, (pose[0, 3], pose[1, 3], pose[2, 3]))
    x, y, z = np.float32(m[0] + back[0]), np.float32(m[1] + back[1]), np.float32(m[2] + back[2])
    inverse = ONE / max(math.sqrt(x * x + y * y + z * z), _TINY)
    return (x * inverse, y * inverse, z * inverse), inverse


@njit(cache=True, error_model="numpy")
@no_type_check
def _slopes(K, width, height):
    """Range of x/z and of y/z in which the EWA Jacobian is evaluated, float64."""
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    margin_x, margin_y = const.EWA_MARGIN * 0.5 * width / fx, const.EWA_MARGIN * 0.5 * height / fy
    return -(cx / fx + margin_x), (width - cx) / fx + margin_x, -(cy / fy + margin_y), (height - cy) / fy + margin_y


@njit(cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def _in_frustum(means, scales, pose, origin, K, width, height, near, inside):
    """Set inside[i] where Gaussian i may leave a mark; never False where it does. One vectorised loop, float64."""
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    left, right, top, bottom = _slopes(K, width, height)
    # The Jacobian stretches a Gaussian by at most √(1 + slope²).
    wide = const.SIGMA_EXTENT * math.sqrt(1 + max(left * left, right * right))
    high = const.SIGMA_EXTENT * math.sqrt(1 + max(top * top, bottom * bottom))
    x0, x1, y0, y1 = cx + _PIXELS, width - cx + _PIXELS, cy + _PIXELS, height - cy + _PIXELS
    x0, x1, y0, y1 = x0 / fx, x1 / fx, y0 / fy, y1 / fy
    ax, ay, az = pose[0, 0], pose[0, 1], pose[0, 2]
    bx, by, bz = pose[1, 0], pose[1, 1], pose[1, 2]
    cx, cy, cz = pose[2, 0], pose[2, 1], pose[2, 2]
    tx = ax * origin[0] + ay * origin[1] + az * origin[2] + pose[0, 3]
    ty = bx * origin[0] + by * origin[1] + bz * origin[2] + pose[1, 3]
    tz = cx * origin[0] + cy * origin[1] + cz * origin[2] + pose[2, 3]
    for i in range(means.shape[0]):
        m0, m1, m2 = np.float64(means[i, 0]), np.float64(means[i, 1]), np.float64(means[i, 2])
        x = ax * m0 + ay * m1 + az * m2 + tx
        y = bx * m0 + by * m1 + bz * m2 + ty
        z = cx * m0 + cy * m1 + cz * m2 + tz
        r = np.float64(max(scales[i, 0], scales[i, 1], scales[i, 2]))
        rx, ry = wide * r, high * r
        inside[i] = (
            (z > near) & (z < _FAR) & (x + x0 * z + rx >= 0.0) & (x1 * z + rx - x >= 0.0)
            & (y + y0 * z + ry >= 0.0) & (y1 * z + ry - y >= 0.0)
        )  # fmt: skip


@njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def project(
    part, parts, visited, block, means, quats, scales, opacities, sh, native, coarser, finer, mode,
    pose, origin, K, width, height, antialias, near, splats, depths, boxes, bad,
):  # fmt: skip
    """Project the `part`-th share of the visited blocks of Gaussians into one view.

    Block `visited[k]` is rows `block·visited[k]` on of the Gaussians; its splats are rows `block·k` on of `splats`
    [·, 16], `depths` (the same memory seen as float64 [·, 8]) and `boxes` [·, 4] (x0, x1, y0, y1). `finer` has the
    rows of the splats, all else those of the Gaussians; with `mode` 0 the three footprints are not read. `bad` [1]
    becomes 1 + a row in the frame whose footprints are NaN, not positive or out of order.

    Gaussians are float32 in C order (means also float64). `pose` [4, 4] is world to camera, `origin` [3] that of
    the means, `K` [3, 3]; all three float64.
    """
    count, rows = sh.shape[1], means.shape[0]
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    inverse_focal = ONE / np.float32(math.sqrt(fx * fy))
    w, h = np.float32(width), np.float32(height)
    left, right, top, bottom = _slopes(K, width, height)
    turn = pose.astype(np.float32)
    basis, inside = np.empty(16, np.float32), np.empty(block, np.bool_)
    for k in range(visited.shape[0] * part // parts, visited.shape[0] * (part + 1) // parts):
        first = block * visited[k]
        last = min(first + block, rows)
        _in_frustum(means[first:last], scales[first:last], pose, origin, K, width, height, near, inside)
        for i in range(first, last):
            o = block * k + i - first
            boxes[o] = 0
            if not (inside[i - first] and opacities[i] >= _ALPHA_MIN):
                continue
            m, p = _placed(means, i, origin, pose)
            z = np.float32(p[2])
            inverse_z = 1.0 / p[2]
            tx, ty = p[0] * inverse_z, p[1] * inverse_z
            u, v = np.float32(fx * tx + cx), np.float32(fy * ty + cy)
            scale = np.float32(fx * inverse_z), np.float32(fy * inverse_z)
            slope_x, slope_y = np.float32(clamp(tx, left, right)), np.float32(clamp(ty, top, bottom))
            opacity = opacities[i]
            if mode > 0:
                n, f = native[i], finer[o]
                if not (n > ZERO and n < _INF and coarser[i] >= n and f >= ZERO and f <= n):
                    bad[0] = 1 + i
                a, _ = visibility(z * inverse_focal, n, coarser[i], f)
                opacity = faded(opacity, a, mode)
                if not opacity >= _ALPHA_MIN:
                    continue
            row0, row1, _ = factor(quats, scales, i, turn, scale, slope_x, slope_y)
            xx, xy, yy = dot(row0, row0) + EPS2D, dot(row0, row1), dot(row1, row1) + EPS2D
            sharp, det = determinants(row0, row1)
            if antialias:
                opacity *= math.sqrt(max(sharp / det, _RATIO_MIN))
            if not (opacity >= _ALPHA_MIN and det < _INF):
                continue
            extent = min(_SIGMA_EXTENT, math.sqrt(TWO * math.log(opacity / _ALPHA_MIN)))
            reach_x, reach_y = extent * math.sqrt(xx), extent * math.sqrt(yy)
            # Pixel centres lie at +0.5.
            x0, x1 = max(math.ceil(u - reach_x - HALF), ZERO), min(math.floor(u + reach_x + HALF), w)
            y0, y1 = max(math.ceil(v - reach_y - HALF), ZERO), min(math.floor(v + reach_y + HALF), h)
            if not (x0 < x1 and y0 < y1):
                continue
            splats[o, 0], splats[o, 1] = u, v
            splats[o, 2], splats[o, 3], splats[o, 4] = yy / det, -xy / det, xx / det
            splats[o, 5] = opacity
            splats[o, 9] = z
            splats[o, 10], splats[o, 11] = y0, y1
            depths[o, 6] = p[2]
            boxes[o, 0], boxes[o, 1] = np.int32(x0) // TILE, (np.int32(x1) + TILE - 1) // TILE
            boxes[o, 2], boxes[o, 3] = np.int32(y0) // TILE, (np.int32(y1) + TILE - 1) // TILE
            if count == 1:
                for c in range(3):
                    splats[o, 6 + c] = max(HALF + C0 * sh[i, 0, c], ZERO)
            else:
                direction, _ = _direction(m, pose)
                basis_values(direction, count, basis)
                for c in range(3):
                    value = HALF
                    for j in range(count):
                        value += basis[j] * sh[i, j, c]
                    splats[o, 6 + c] = max(value, ZERO)


@njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def project_backward(
    part, parts, means, quats, scales, opacities, sh, native, coarser, finer, mode, pose, origin, K, width, height,
    antialias, first, pair_grads, g_means, g_quats, g_scales, g_opacities, g_sh, g_features, g_pose,
):  # fmt: skip
    """Add the gradients of one view and the `part`-th share of Gaussians to g_*. Arguments as in `project`.

    `g_pose` [blocks, 12] gets one row per block of Gaussians: R row by row, then t. With no rows it is skipped.

    The pairs (splat, tile) of Gaussian i are the rows `first[i]` to `first[i + 1]` of `pair_grads` (see `_raster`).
    """
    count, channels, need_pose = sh.shape[1], pair_grads.shape[1] - 10, g_pose.shape[0] > 0
    blocks = (means.shape[0] + BLOCK - 1) // BLOCK
    fx, fy = np.float32(K[0, 0]), np.float32(K[1, 1])
    inverse_focal = ONE / np.float32(math.sqrt(K[0, 0] * K[1, 1]))
    left, right, top, bottom = _slopes(K, width, height)
    turn = pose.astype(np.float32)
    for block in range(blocks * part // parts, blocks * (part + 1) // parts):
        s = np.empty(10 + channels, np.float32)
        basis, g_basis = np.zeros(16, np.float32), np.zeros(16, np.float32)
        g_rotation, g_shift = np.zeros((3, 3), np.float32), np.zeros(3, np.float32)
        for i in range(block * BLOCK, min((block + 1) * BLOCK, means.shape[0])):
            if first[i] == first[i + 1]:
                continue
            s[:] = ZERO
            for pair in range(first[i], first[i + 1]):
                for c in range(10 + channels):
                    s[c] += pair_grads[pair, c]
            for c in range(channels):
                g_features[i, c] += s[10 + c]

            # Forward values again: cheaper than keeping them.
            m, p = _placed(means, i, origin, pose)
            z, inverse_z = np.float32(p[2]), np.float32(1.0 / p[2])
            tx, ty = p[0] / p[2], p[1] / p[2]
            u, v = np.float32(clamp(tx, left, right)), np.float32(clamp(ty, top, bottom))
            inside_x, inside_y = left <= tx <= right, top <= ty <= bottom
            tx, ty = np.float32(tx), np.float32(ty)
            kx, ky = fx * inverse_z, fy * inverse_z
            row0, row1, last = factor(quats, scales, i, turn, (kx, ky), u, v)
            xx, xy, yy = dot(row0, row0) + EPS2D, dot(row0, row1), dot(row1, row1) + EPS2D
            sharp, det = determinants(row0, row1)
            A, B, C = yy / det, -xy / det, xx / det
            ratio = sharp / det
            factor_aa = math.sqrt(max(ratio, _RATIO_MIN)) if antialias else ONE
            opacity, g_s, by_opacity = opacities[i], ZERO, ONE
            if mode > 0:
                a, slope = visibility(z * inverse_focal, native[i], coarser[i], finer[i])
                opacity = faded(opacities[i], a, mode)
                by_opacity, by_a = faded_backward(opacities[i], a, mode)
                g_s = by_a * slope

            # Moments of dL/ds (s[0]: 1, x, y, xx, xy, yy) to the splat's centre, conic and opacity.
            g_u, g_v = -(A * s[1] + B * s[2]), -(B * s[1] + C * s[2])
            g_A, g_B, g_C = HALF * s[3], HALF * s[4], HALF * s[5]
            g_opacity = -s[0] / (opacity * factor_aa)
            g_opacities[i] += g_opacity * factor_aa * by_opacity
            # dL/dΣ = -Q·G·Q with Q the conic matrix and G the symmetric gradient to it.
            top0, top1 = A * g_A + B * g_B, A * g_B + B * g_C
            low0, low1 = B * g_A + C * g_B, B * g_B + C * g_C
            g_xx, g_xy, g_yy = -(top0 * A + top1 * B), -(top0 * B + top1 * C), -(low0 * B + low1 * C)
            if antialias and ratio > _RATIO_MIN:
                g_ratio = HALF * g_opacity * opacity / factor_aa
                over = g_ratio / det
                g_xx += over * ((yy - EPS2D) - ratio * yy)
                g_yy += over * ((xx - EPS2D) - ratio * xx)
                g_xy += over * xy * (ratio - ONE)
            # Σ = U·Uᵀ
            g0 = TWO * (g_xx * row0[0] + g_xy * row1[0]), TWO * (g_xx * row0[1] + g_xy * row1[1]), \
                TWO * (g_xx * row0[2] + g_xy * row1[2])  # fmt: skip
            g1 = TWO * (g_xy * row0[0] + g_yy * row1[0]), TWO * (g_xy * row0[1] + g_yy * row1[1]), \
                TWO * (g_xy * row0[2] + g_yy * row1[2])  # fmt: skip
            # U = J·V with V = R·Rq·S and J's rows (kx, 0, -kx·u), (0, ky, -ky·v).
            g_tx, g_ty = g_u * fx, g_v * fy
            g_z = s[9] - inverse_z * (dot(g0, row0) + dot(g1, row1))
            if inside_x:
                g_tx -= kx * dot(g0, last)
            if inside_y:
                g_ty -= ky * dot(g1, last)
            g_z += g_opacity * factor_aa * g_s * inverse_focal - inverse_z * (g_tx * tx + g_ty * ty)
            g_p = g_tx * inverse_z, g_ty * inverse_z, g_z
            # V's columns are R·(column of Rq)·scale.
            qw, qx, qy, qz, inverse_norm = unit_quat(quats, i)
            col0, col1, col2 = columns(qw, qx, qy, qz)
            v0 = kx * g0[0], ky * g1[0], -kx * u * g0[0] - ky * v * g1[0]
            v1 = kx * g0[1], ky * g1[1], -kx * u * g0[1] - ky * v * g1[1]
            v2 = kx * g0[2], ky * g1[2], -kx * u * g0[2] - ky * v * g1[2]
            g_scales[i, 0] += dot(v0, times(turn, col0))
            g_scales[i, 1] += dot(v1, times(turn, col1))
            g_scales[i, 2] += dot(v2, times(turn, col2))
            v0, v1, v2 = scaled(v0, scales[i, 0]), scaled(v1, scales[i, 1]), scaled(v2, scales[i, 2])
            g_quat = columns_backward(
                (qw, qx, qy, qz), transposed_times(turn, v0), transposed_times(turn, v1), transposed_times(turn, v2)
            )
            along = qw * g_quat[0] + qx * g_quat[1] + qy * g_quat[2] + qz * g_quat[3]
            g_quats[i, 0] += (g_quat[0] - qw * along) * inverse_norm
            g_quats[i, 1] += (g_quat[1] - qx * along) * inverse_norm
            g_quats[i, 2] += (g_quat[2] - qy * along) * inverse_norm
            g_quats[i, 3] += (g_quat[3] - qz * along) * inverse_norm

            g_m = transposed_times(turn, g_p)
            g_d = ZERO, ZERO, ZERO
            if count == 1:
                for c in range(3):
                    if HALF + C0 * sh[i, 0, c] >= ZERO:
                        g_sh[i, 0, c] += C0 * s[6 + c]
            else:
                d, inverse_length = _direction(m, pose)
                basis_values(d, count, basis)
                g_basis[:] = ZERO
                for c in range(3):
                    value = HALF
                    for j in range(count):
                        value += basis[j] * sh[i, j, c]
                    if value >= ZERO:
                        for j in range(count):
                            g_sh[i, j, c] += basis[j] * s[6 + c]
                            g_basis[j] += sh[i, j, c] * s[6 + c]
                g_d = basis_backward(d, count, g_basis)
                radial = dot(d, g_d)
                g_d = (
                    (g_d[0] - d[0] * radial) * inverse_length,
                    (g_d[1] - d[1] * radial) * inverse_length,
                    (g_d[2] - d[2] * radial) * inverse_length,
                )
            g_means[i, 0] += g_m[0] + g_d[0]
            g_means[i, 1] += g_m[1] + g_d[1]
            g_means[i, 2] += g_m[2] + g_d[2]
            if need_pose:
                # Gradients to R and t of p = R·mean + t, the mean in the world frame.
                add_outer(g_rotation, g_p, (np.float32(m[0]), np.float32(m[1]), np.float32(m[2])))
                add_outer(g_rotation, v0, col0)
                add_outer(g_rotation, v1, col1)
                add_outer(g_rotation, v2, col2)
                # The view direction is mean + Rᵀ·t.
                add_outer(g_rotation, (turn[0, 3], turn[1, 3], turn[2, 3]), g_d)
                turned = times(turn, g_d)
                for c in range(3):
                    g_shift[c] += g_p[c] + turned[c]
        if need_pose:
            for j in range(3):
                for c in range(3):
                    g_pose[block, 3 * j + c] = g_rotation[j, c]
                g_pose[block, 9 + j] = g_shift[j]
