"""Numba: visibility and cross-fade of one Gaussian with their derivatives (see `sr3d.lod.fade`). All float32."""

from __future__ import annotations

import math
from typing import no_type_check

import numpy as np
from numba import njit

from sr3d.lod import MINIMAX_LAMBDA
from sr3d.rendering._geometry import FASTMATH, ONE, ZERO

MODES = {None: 0, "minimax": 1, "linear": 2}

_LAMBDA, _INF, _ROOM = np.float32(MINIMAX_LAMBDA), np.float32(np.inf), np.float32(1e-6)


@njit(cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def visibility(s, native, coarser, finer):
    """a(s) and da/ds at the render footprint s."""
    if s >= native:
        if not coarser < _INF:
            return ONE, ZERO
        if s >= coarser:
            return ZERO, ZERO
        room = max(math.log(coarser / native), _ROOM)
        a, slope = math.log(coarser / s) / room, -ONE / (s * room)
    else:
        if not finer > ZERO:
            return ONE, ZERO
        if s <= finer:
            return ZERO, ZERO
        room = max(math.log(native / finer), _ROOM)
        a, slope = math.log(s / finer) / room, ONE / (s * room)
    if a >= ONE:
        return ONE, ZERO
    if a <= ZERO:
        return ZERO, ZERO
    return a, slope


@njit(cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def faded(opacity, a, mode):
    """Opacity at visibility a."""
    if a >= ONE:
        return opacity
    if mode == 2:
        return opacity * a
    return -math.expm1(a * math.log1p(-_LAMBDA * opacity)) / _LAMBDA


@njit(cache=True, fastmath=FASTMATH, error_model="numpy")
@no_type_check
def faded_backward(opacity, a, mode):
    """Derivatives of `faded` to opacity and to a."""
    if a >= ONE:
        return ONE, ZERO
    if mode == 2:
        return a, opacity
    log = math.log1p(-_LAMBDA * opacity)
    power = math.exp(a * log)
    return a * power / (ONE - _LAMBDA * opacity), -power * log / _LAMBDA
