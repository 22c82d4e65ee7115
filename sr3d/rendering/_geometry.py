"""Small Numba functions shared by the kernels: vectors, projected covariance, spherical harmonics. All float32."""

from __future__ import annotations

import math
from typing import no_type_check

import numpy as np
from numba import njit

from sr3d.rendering import constants as const

FASTMATH = {"contract", "reassoc", "nsz", "arcp"}  # no "nnan": culling relies on comparisons with NaN being false

ZERO, HALF, ONE, TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
_THREE, _FOUR, _SIX, _EIGHT = np.float32(3), np.float32(4), np.float32(6), np.float32(8)
EPS2D = np.float32(const.EPS2D)
_TINY = np.float32(1e-12)

C0, _C1 = np.float32(0.28209479177387814), np.float32(0.4886025119029199)
_C2A, _C2B, _C2C = np.float32(1.0925484305920792), np.float32(0.31539156525252005), np.float32(0.5462742152960396)
_C3A, _C3B, _C3C = np.float32(0.5900435899266435), np.float32(2.890611442640554), np.float32(0.4570457994644658)
_C3D, _C3E = np.float32(0.3731763325901154), np.float32(1.445305721320277)


@njit(cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@njit(cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def times(matrix, v):
    """matrix · v, for rows `matrix[i, :3]`."""
    return (
        matrix[0, 0] * v[0] + matrix[0, 1] * v[1] + matrix[0, 2] * v[2],
        matrix[1, 0] * v[0] + matrix[1, 1] * v[1] + matrix[1, 2] * v[2],
        matrix[2, 0] * v[0] + matrix[2, 1] * v[1] + matrix[2, 2] * v[2],
    )


@njit(cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def transposed_times(matrix, v):
    """matrixᵀ · v."""
    return (
        matrix[0, 0] * v[0] + matrix[1, 0] * v[1] + matrix[2, 0] * v[2],
        matrix[0, 1] * v[0] + matrix[1, 1] * v[1] + matrix[2, 1] * v[2],
        matrix[0, 2] * v[0] + matrix[1, 2] * v[1] + matrix[2, 2] * v[2],
    )


@njit(cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def columns(w, x, y, z):
    """Columns of the rotation matrix of a unit quaternion."""
    return (
        (ONE - TWO * (y * y + z * z), TWO * (x * y + w * z), TWO * (x * z - w * y)),
        (TWO * (x * y - w * z), ONE - TWO * (x * x + z * z), TWO * (y * z + w * x)),
        (TWO * (x * z + w * y), TWO * (y * z - w * x), ONE - TWO * (x * x + y * y)),
    )


@njit(cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def columns_backward(q, a, b, c):
    """Gradient to the unit quaternion q from the gradients a, b, c to `columns(*q)`."""
    w, x, y, z = q
    return (
        TWO * (z * (a[1] - b[0]) + y * (c[0] - a[2]) + x * (b[2] - c[1])),
        TWO * (y * (a[1] + b[0]) + z * (a[2] + c[0]) + w * (b[2] - c[1]) - TWO * x * (b[1] + c[2])),
        TWO * (x * (a[1] + b[0]) + z * (b[2] + c[1]) + w * (c[0] - a[2]) - TWO * y * (a[0] + c[2])),
        TWO * (x * (a[2] + c[0]) + y * (b[2] + c[1]) + w * (a[1] - b[0]) - TWO * z * (a[0] + b[1])),
    )


@njit(cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def add_outer(out, a, b):
    """out[i, j] += a[i]·b[j]"""
    for i in range(3):
        for j in range(3):
            out[i, j] += a[i] * b[j]


@njit(cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def unit_quat(v, i):
    """Row i of quaternions, normalised, and its inverse norm."""
    w, x, y, z = v[i, 0], v[i, 1], v[i, 2], v[i, 3]
    inverse = ONE / max(math.sqrt(w * w + x * x + y * y + z * z), _TINY)
    return w * inverse, x * inverse, y * inverse, z * inverse, inverse


@njit(cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def scaled(v, s):
    return v[0] * s, v[1] * s, v[2] * s


@njit(cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def clamp(value, low, high):
    return min(max(value, low), high)


@njit(cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def factor(quats, scales, i, pose, k, u, v):
    """Rows of U = J·R·Rq·S, so that the 2D covariance is U·Uᵀ, and the last row of R·Rq·S. k = focal / z, u = x/z."""
    w, x, y, z, _ = unit_quat(quats, i)
    c0, c1, c2 = columns(w, x, y, z)
    a = scaled(times(pose, c0), scales[i, 0])
    b = scaled(times(pose, c1), scales[i, 1])
    c = scaled(times(pose, c2), scales[i, 2])
    row0 = k[0] * (a[0] - u * a[2]), k[0] * (b[0] - u * b[2]), k[0] * (c[0] - u * c[2])
    row1 = k[1] * (a[1] - v * a[2]), k[1] * (b[1] - v * b[2]), k[1] * (c[1] - v * c[2])
    return row0, row1, (a[2], b[2], c[2])


@njit(cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def determinants(row0, row1):
    """det(U·Uᵀ) as |row0 × row1|², free of cancellation, and the same after the low-pass."""
    x = row0[1] * row1[2] - row0[2] * row1[1]
    y = row0[2] * row1[0] - row0[0] * row1[2]
    z = row0[0] * row1[1] - row0[1] * row1[0]
    sharp = x * x + y * y + z * z
    return sharp, sharp + EPS2D * (dot(row0, row0) + dot(row1, row1)) + EPS2D * EPS2D


@njit(cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def basis_values(d, count, out):
    """Spherical-harmonic basis at the unit direction d (see `sr3d.rendering.sh.sh_basis`)."""
    x, y, z = d
    out[0] = C0
    if count > 1:
        out[1], out[2], out[3] = -_C1 * y, _C1 * z, -_C1 * x
    if count > 4:
        xx, yy, zz = x * x, y * y, z * z
        out[4], out[5], out[7] = _C2A * x * y, -_C2A * y * z, -_C2A * x * z
        out[6] = _C2B * (TWO * zz - xx - yy)
        out[8] = _C2C * (xx - yy)
        if count > 9:
            out[9] = -_C3A * y * (_THREE * xx - yy)
            out[10] = _C3B * x * y * z
            out[11] = -_C3C * y * (_FOUR * zz - xx - yy)
            out[12] = _C3D * z * (TWO * zz - _THREE * xx - _THREE * yy)
            out[13] = -_C3C * x * (_FOUR * zz - xx - yy)
            out[14] = _C3E * z * (xx - yy)
            out[15] = -_C3A * x * (xx - _THREE * yy)


@njit(cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def basis_backward(d, count, g):
    """Gradient to the direction d from the gradients g of the basis values."""
    x, y, z = d
    gx, gy, gz = -_C1 * g[3], -_C1 * g[1], _C1 * g[2]
    if count > 4:
        gx += _C2A * (y * g[4] - z * g[7]) + TWO * x * (_C2C * g[8] - _C2B * g[6])
        gy += _C2A * (x * g[4] - z * g[5]) - TWO * y * (_C2C * g[8] + _C2B * g[6])
        gz += _FOUR * _C2B * z * g[6] - _C2A * (y * g[5] + x * g[7])
    if count > 9:
        xx, yy, zz, xy, xz, yz = x * x, y * y, z * z, x * y, x * z, y * z
        gx += -_SIX * _C3A * xy * g[9] + _C3B * yz * g[10] + TWO * _C3C * xy * g[11] - _SIX * _C3D * xz * g[12]
        gx += -_C3C * (_FOUR * zz - _THREE * xx - yy) * g[13] + TWO * _C3E * xz * g[14]
        gx += -_THREE * _C3A * (xx - yy) * g[15]
        gy += -_THREE * _C3A * (xx - yy) * g[9] + _C3B * xz * g[10] - _C3C * (_FOUR * zz - xx - _THREE * yy) * g[11]
        gy += -_SIX * _C3D * yz * g[12] + TWO * _C3C * xy * g[13] - TWO * _C3E * yz * g[14] + _SIX * _C3A * xy * g[15]
        gz += _C3B * xy * g[10] - _EIGHT * _C3C * yz * g[11] + _THREE * _C3D * (TWO * zz - xx - yy) * g[12]
        gz += -_EIGHT * _C3C * xz * g[13] + _C3E * (xx - yy) * g[14]
    return gx, gy, gz
