"""Black borders that undistortion leaves around the images of a video."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8

_BLACK = 16  # largest value of a black pixel: JPEG adds a little
_SHARE = 0.1  # of a row that is border; borders are curved
_MOST = 0.04  # of a side: what is dark beyond it is no border


def black_borders(images: Iterable[UInt8[np.ndarray, "h w 3"]]) -> tuple[int, int, int, int]:
    """Pixels to cut off on the left, top, right and bottom; images of one size.

    A row (column) at the edge is border where a tenth of its pixels is black in all images. One more is cut off, which
    the border may have been mixed into. What is dark for more than 4 % of a side is taken for a dark scene.
    """
    brightest = None
    for image in images:
        value = image.max(axis=-1)
        brightest = value if brightest is None else np.maximum(brightest, value)
    if brightest is None:
        return 0, 0, 0, 0
    black = brightest <= _BLACK
    columns, rows = (black.mean(axis=axis) > _SHARE for axis in (0, 1))
    left, top, right, bottom = (_run(side) for side in (columns, rows, columns[::-1], rows[::-1]))
    return left, top, right, bottom


def _run(dark: np.ndarray) -> int:
    """Length of the border that a side begins with."""
    most = int(_MOST * len(dark))
    first = int(np.argmin(dark)) if not dark.all() else len(dark)
    return first + 1 if 0 < first <= most else 0
