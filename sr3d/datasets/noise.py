"""Band-limited procedural noise and pulses, compiled: the building blocks of the textures.

Everything takes the width of the filter (one sample's footprint on the surface) and leaves out what is finer, so a
texture is free of aliasing from afar and still has detail at any zoom. Values are float64: at a 64x zoom neighbouring
samples of a room differ in the seventh digit.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

# The twelve edge directions of a cube (Perlin 2002), padded to sixteen.
_GRADIENTS = np.array(
    [
        [1, 1, 0], [-1, 1, 0], [1, -1, 0], [-1, -1, 0], [1, 0, 1], [-1, 0, 1], [1, 0, -1], [-1, 0, -1],
        [0, 1, 1], [0, -1, 1], [0, 1, -1], [0, -1, -1], [1, 1, 0], [-1, 1, 0], [0, -1, 1], [0, -1, -1],
    ],
    dtype=np.float64,
)  # fmt: skip
# What the optimiser may assume: all of "fast math" but the absence of NaN and inf.
FAST = {"contract", "reassoc", "arcp", "nsz"}
_MASK = 0xFFFFFFFF
_MAX_OCTAVES = 30


@njit(cache=True, inline="always", error_model="numpy", fastmath=FAST)
@no_type_check
def hash4(x, y, z, seed):
    """32 well-mixed bits of four integers."""
    h = (x * 73856093 ^ y * 19349663 ^ z * 83492791 ^ seed * 40503) & _MASK
    h = ((h ^ (h >> 16)) * 0x7FEB352D) & _MASK
    h = ((h ^ (h >> 15)) * 0x2C1B3C6D) & _MASK
    return h ^ (h >> 16)


@njit(cache=True, error_model="numpy", fastmath=FAST)
@no_type_check
def uniform(x, y, seed):
    """A number in [0, 1) for an integer cell."""
    return hash4(x, y, 17, seed) / 4294967296.0


@njit(cache=True, inline="always", error_model="numpy", fastmath=FAST)
@no_type_check
def _corner(ix, iy, iz, x, y, z, seed):
    g = hash4(ix, iy, iz, seed) & 15
    return _GRADIENTS[g, 0] * x + _GRADIENTS[g, 1] * y + _GRADIENTS[g, 2] * z


@njit(cache=True, error_model="numpy", fastmath=FAST)
@no_type_check
def gradient_noise(x, y, z, seed):
    """Perlin's noise: mean 0, within ±1, standard deviation about 0.27, wavelength about 1."""
    fx, fy, fz = np.floor(x), np.floor(y), np.floor(z)
    ix, iy, iz = int(fx), int(fy), int(fz)
    x, y, z = x - fx, y - fy, z - fz
    u = x * x * x * (x * (x * 6 - 15) + 10)
    v = y * y * y * (y * (y * 6 - 15) + 10)
    w = z * z * z * (z * (z * 6 - 15) + 10)
    a = _corner(ix, iy, iz, x, y, z, seed)
    a += u * (_corner(ix + 1, iy, iz, x - 1, y, z, seed) - a)
    b = _corner(ix, iy + 1, iz, x, y - 1, z, seed)
    b += u * (_corner(ix + 1, iy + 1, iz, x - 1, y - 1, z, seed) - b)
    c = _corner(ix, iy, iz + 1, x, y, z - 1, seed)
    c += u * (_corner(ix + 1, iy, iz + 1, x - 1, y, z - 1, seed) - c)
    d = _corner(ix, iy + 1, iz + 1, x, y - 1, z - 1, seed)
    d += u * (_corner(ix + 1, iy + 1, iz + 1, x - 1, y - 1, z - 1, seed) - d)
    a += v * (b - a)
    c += v * (d - c)
    return a + w * (c - a)


@njit(cache=True, inline="always", error_model="numpy", fastmath=FAST)
@no_type_check
def keep(ratio):
    """Share of a wave's contrast that survives a filter of `ratio` wavelengths: 1 at 0, 0 from 1 on (like a sinc)."""
    return 0.0 if ratio >= 1 else 1 - ratio * np.sqrt(ratio)


@njit(cache=True, error_model="numpy", fastmath=FAST)
@no_type_check
def fractal(x, y, z, wavelength, gain, width, seed):
    """Octaves of noise from `wavelength` down to the filter width, contrast times `gain` per octave; mean 0."""
    total = 0.0
    contrast = 1.0
    x, y, z = x / wavelength, y / wavelength, z / wavelength
    ratio = width / wavelength
    for octave in range(_MAX_OCTAVES):
        if ratio >= 1:
            break
        total += contrast * keep(ratio) * gradient_noise(x, y, z, seed + octave)
        # Turned between octaves (a rotation times two), so that the lattices do not line up.
        x, y, z = 1.6 * y + 1.2 * z, -1.6 * x + 0.72 * y - 0.96 * z, -1.2 * x - 0.96 * y + 1.28 * z
        contrast *= gain
        ratio *= 2
    return total


@njit(cache=True, inline="always", error_model="numpy", fastmath=FAST)
@no_type_check
def pulse(x, duty, width):
    """Mean over [x - width/2, x + width/2] of a wave of period 1 that is 1 on its first `duty` part, else 0."""
    width = max(width, 1e-9)
    a, b = x - width / 2, x + width / 2
    fa, fb = np.floor(a), np.floor(b)
    return (duty * (fb - fa) + min(b - fb, duty) - min(a - fa, duty)) / width


@njit(cache=True, inline="always", error_model="numpy", fastmath=FAST)
@no_type_check
def smoothstep(low, high, x):
    """0 up to `low`, 1 from `high` on, smooth between."""
    t = min(max((x - low) / (high - low), 0.0), 1.0)
    return t * t * (3 - 2 * t)
