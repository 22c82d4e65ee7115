"""Numba kernels: Gaussians to splats (projection, covariance, colour) and the way back for gradients.

A splat is one row of 16 float32, one cache line: 0-1 centre in pixels, 2-4 conic A, B, C (density exp(-s) with
s = ½A·dx² + B·dx·dy + ½C·dy²), 5 opacity, 6-8 rgb, 9 z-depth, 10-11 the pixel rows y0 ≤ y < y1 that it can reach.
Its box is the range of 16×16 tiles x0 ≤ x < x1, y0 ≤ y < y1 that it can reach, empty where it is not drawn.
"""

from __future__ import annotations

import math
from typing import no_type_check

import numpy as np
from numba import njit

from sr3d.rendering import constants as const
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
    view_direction,
)  # fmt: skip

TILE = 16
BLOCK = 512  # Gaussians whose pose gradient is summed into one row: the same sum for any number of threads

_MARGIN, _INF = np.float32(const.EWA_MARGIN), np.float32(np.inf)
_NEAR, _FAR, _ALPHA_MIN = np.float32(const.NEAR), np.float32(const.FAR), np.float32(const.ALPHA_MIN)
_SIGMA_EXTENT, _RATIO_MIN = np.float32(const.SIGMA_EXTENT), np.float32(const.RATIO_MIN)


@njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def project(part, parts, means, quats, scales, opacities, sh, pose, K, width, height, antialias, splats, boxes):
    """Fill `splats` [N, 16] and `boxes` [N, 4] (x0, x1, y0, y1) for one view and the `part`-th share of Gaussians.

    All inputs are float32 in C order; `pose` [4, 4] is world to camera.
    """
    count = sh.shape[1]
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    w, h = np.float32(width), np.float32(height)
    margin_x, margin_y = _MARGIN * HALF * w / fx, _MARGIN * HALF * h / fy
    left, right = -(cx / fx + margin_x), (w - cx) / fx + margin_x
    top, bottom = -(cy / fy + margin_y), (h - cy) / fy + margin_y
    basis = np.empty(16, np.float32)
    for i in range(means.shape[0] * part // parts, means.shape[0] * (part + 1) // parts):
        boxes[i] = 0
        m = means[i, 0], means[i, 1], means[i, 2]
        z = pose[2, 0] * m[0] + pose[2, 1] * m[1] + pose[2, 2] * m[2] + pose[2, 3]
        if not (z > _NEAR and z < _FAR and opacities[i] >= _ALPHA_MIN):
            continue
        inverse_z = ONE / z
        p = times(pose, m)
        tx, ty = (p[0] + pose[0, 3]) * inverse_z, (p[1] + pose[1, 3]) * inverse_z
        k = fx * inverse_z, fy * inverse_z
        row0, row1, _ = factor(quats, scales, i, pose, k, clamp(tx, left, right), clamp(ty, top, bottom))
        xx, xy, yy = dot(row0, row0) + EPS2D, dot(row0, row1), dot(row1, row1) + EPS2D
        sharp, det = determinants(row0, row1)
        opacity = opacities[i]
        if antialias:
            opacity *= math.sqrt(max(sharp / det, _RATIO_MIN))
        if not (opacity >= _ALPHA_MIN and det < _INF):
            continue
        extent = min(_SIGMA_EXTENT, math.sqrt(TWO * math.log(opacity / _ALPHA_MIN)))
        u, v = fx * tx + cx, fy * ty + cy
        reach_x, reach_y = extent * math.sqrt(xx), extent * math.sqrt(yy)
        # Pixel centres lie at +0.5.
        x0, x1 = max(math.ceil(u - reach_x - HALF), ZERO), min(math.floor(u + reach_x + HALF), w)
        y0, y1 = max(math.ceil(v - reach_y - HALF), ZERO), min(math.floor(v + reach_y + HALF), h)
        if not (x0 < x1 and y0 < y1):
            continue
        splats[i, 0], splats[i, 1] = u, v
        splats[i, 2], splats[i, 3], splats[i, 4] = yy / det, -xy / det, xx / det
        splats[i, 5] = opacity
        splats[i, 9] = z
        splats[i, 10], splats[i, 11] = y0, y1
        boxes[i, 0], boxes[i, 1] = np.int32(x0) // TILE, (np.int32(x1) + TILE - 1) // TILE
        boxes[i, 2], boxes[i, 3] = np.int32(y0) // TILE, (np.int32(y1) + TILE - 1) // TILE
        if count == 1:
            for c in range(3):
                splats[i, 6 + c] = max(HALF + C0 * sh[i, 0, c], ZERO)
        else:
            direction, _ = view_direction(means, i, pose)
            basis_values(direction, count, basis)
            for c in range(3):
                value = HALF
                for j in range(count):
                    value += basis[j] * sh[i, j, c]
                splats[i, 6 + c] = max(value, ZERO)


@njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def project_backward(
    part, parts, means, quats, scales, opacities, sh, pose, K, width, height, antialias,
    first, pair_grads, g_means, g_quats, g_scales, g_opacities, g_sh, g_features, g_pose,
):  # fmt: skip
    """Add the gradients of one view and the `part`-th share of Gaussians to g_*.

    `g_pose` [blocks, 12] gets one row per block of Gaussians: R row by row, then t. With no rows it is skipped.

    The pairs (splat, tile) of Gaussian i are the rows `first[i]` to `first[i + 1]` of `pair_grads` (see `_raster`).
    """
    count, channels, need_pose = sh.shape[1], pair_grads.shape[1] - 10, g_pose.shape[0] > 0
    blocks = (means.shape[0] + BLOCK - 1) // BLOCK
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    w, h = np.float32(width), np.float32(height)
    margin_x, margin_y = _MARGIN * HALF * w / fx, _MARGIN * HALF * h / fy
    left, right = -(cx / fx + margin_x), (w - cx) / fx + margin_x
    top, bottom = -(cy / fy + margin_y), (h - cy) / fy + margin_y
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
            m = means[i, 0], means[i, 1], means[i, 2]
            p = times(pose, m)
            inverse_z = ONE / (p[2] + pose[2, 3])
            tx, ty = (p[0] + pose[0, 3]) * inverse_z, (p[1] + pose[1, 3]) * inverse_z
            u, v = clamp(tx, left, right), clamp(ty, top, bottom)
            kx, ky = fx * inverse_z, fy * inverse_z
            row0, row1, last = factor(quats, scales, i, pose, (kx, ky), u, v)
            xx, xy, yy = dot(row0, row0) + EPS2D, dot(row0, row1), dot(row1, row1) + EPS2D
            sharp, det = determinants(row0, row1)
            A, B, C = yy / det, -xy / det, xx / det
            ratio = sharp / det
            factor_aa = math.sqrt(max(ratio, _RATIO_MIN)) if antialias else ONE

            # Moments of dL/ds (s[0]: 1, x, y, xx, xy, yy) to the splat's centre, conic and opacity.
            g_u, g_v = -(A * s[1] + B * s[2]), -(B * s[1] + C * s[2])
            g_A, g_B, g_C = HALF * s[3], HALF * s[4], HALF * s[5]
            g_opacity = -s[0] / (opacities[i] * factor_aa)
            g_opacities[i] += g_opacity * factor_aa
            # dL/dΣ = -Q·G·Q with Q the conic matrix and G the symmetric gradient to it.
            top0, top1 = A * g_A + B * g_B, A * g_B + B * g_C
            low0, low1 = B * g_A + C * g_B, B * g_B + C * g_C
            g_xx, g_xy, g_yy = -(top0 * A + top1 * B), -(top0 * B + top1 * C), -(low0 * B + low1 * C)
            if antialias and ratio > _RATIO_MIN:
                g_ratio = HALF * g_opacity * opacities[i] / factor_aa
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
            if left <= tx <= right:
                g_tx -= kx * dot(g0, last)
            if top <= ty <= bottom:
                g_ty -= ky * dot(g1, last)
            g_z -= inverse_z * (g_tx * tx + g_ty * ty)
            g_p = g_tx * inverse_z, g_ty * inverse_z, g_z
            # V's columns are R·(column of Rq)·scale.
            qw, qx, qy, qz, inverse_norm = unit_quat(quats, i)
            col0, col1, col2 = columns(qw, qx, qy, qz)
            v0 = kx * g0[0], ky * g1[0], -kx * u * g0[0] - ky * v * g1[0]
            v1 = kx * g0[1], ky * g1[1], -kx * u * g0[1] - ky * v * g1[1]
            v2 = kx * g0[2], ky * g1[2], -kx * u * g0[2] - ky * v * g1[2]
            g_scales[i, 0] += dot(v0, times(pose, col0))
            g_scales[i, 1] += dot(v1, times(pose, col1))
            g_scales[i, 2] += dot(v2, times(pose, col2))
            v0, v1, v2 = scaled(v0, scales[i, 0]), scaled(v1, scales[i, 1]), scaled(v2, scales[i, 2])
            g_quat = columns_backward(
                (qw, qx, qy, qz), transposed_times(pose, v0), transposed_times(pose, v1), transposed_times(pose, v2)
            )
            along = qw * g_quat[0] + qx * g_quat[1] + qy * g_quat[2] + qz * g_quat[3]
            g_quats[i, 0] += (g_quat[0] - qw * along) * inverse_norm
            g_quats[i, 1] += (g_quat[1] - qx * along) * inverse_norm
            g_quats[i, 2] += (g_quat[2] - qy * along) * inverse_norm
            g_quats[i, 3] += (g_quat[3] - qz * along) * inverse_norm

            g_m = transposed_times(pose, g_p)
            g_d = ZERO, ZERO, ZERO
            if count == 1:
                for c in range(3):
                    if HALF + C0 * sh[i, 0, c] >= ZERO:
                        g_sh[i, 0, c] += C0 * s[6 + c]
            else:
                d, inverse_length = view_direction(means, i, pose)
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
                add_outer(g_rotation, g_p, m)
                add_outer(g_rotation, v0, col0)
                add_outer(g_rotation, v1, col1)
                add_outer(g_rotation, v2, col2)
                # The view direction is mean + Rᵀ·t.
                shift = pose[0, 3], pose[1, 3], pose[2, 3]
                add_outer(g_rotation, shift, g_d)
                turned = times(pose, g_d)
                for c in range(3):
                    g_shift[c] += g_p[c] + turned[c]
        if need_pose:
            for j in range(3):
                for c in range(3):
                    g_pose[block, 3 * j + c] = g_rotation[j, c]
                g_pose[block, 9 + j] = g_shift[j]
