"""What no metric may be asked about: pictures that are broken, of another size, or that nothing covers."""

from __future__ import annotations

import torch
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.evaluation.metrics.base import Observation

_ROUNDING = 1e-4  # that a colour may be outside [0, 1] after resizing


def check_observation(seen: Observation) -> None:
    """Raise for the first view that cannot be scored.

    Raises:
        Sr3dError: A drawn or true picture, depth, or score has another size or number of views than the target
            views, holds NaN or inf (a true depth may hold inf, which is unknown), a colour is outside [0, 1], or the
            mask of covered pixels of a view is empty. The error names case, method and view.
    """
    size = (len(seen.cameras), seen.cameras.height, seen.cameras.width)
    if len(seen.frames) != size[0]:
        raise Sr3dError(_source(seen), "frames", f"{len(seen.frames)} names", f"{size[0]}, one for each target view")
    truth = seen.truth
    parts = {
        "rgb": seen.rgb,
        "covered": seen.covered,
        "alpha": seen.alpha,
        "depth": seen.depth,
        "logits": seen.logits,
        "truth.images": None if truth is None else truth.images,
        "truth.depths": None if truth is None else truth.depths,
        "truth.labels": None if truth is None else truth.labels,
    }
    for field, part in parts.items():
        if part is not None and tuple(part.shape[:3]) != size:
            first = "" if len(part) != size[0] else f", view {seen.frames[0]}"
            found, expected = _shape(tuple(part.shape[:3])), f"{_shape(size)}, as the target views"
            raise Sr3dError(_source(seen) + first, field, found, expected)
    for field in ("rgb", "alpha", "depth", "logits", "truth.images"):
        part = parts[field]
        if part is not None:
            _refuse(seen, field, ~torch.isfinite(part).flatten(1), "NaN or inf", "finite numbers")
            if field in ("rgb", "truth.images"):
                outside = (part < -_ROUNDING) | (part > 1 + _ROUNDING)
                _refuse(seen, field, outside.flatten(1), "colours outside [0, 1]", "0 to 1")
    _refuse(seen, "covered", ~seen.covered.flatten(1).any(dim=1, keepdim=True), "an empty mask", "covered pixels")


def _refuse(seen: Observation, field: str, bad: Tensor, found: str, expected: str) -> None:
    """Raise for the first view with a bad pixel."""
    views = bad.any(dim=1).nonzero()[:, 0].tolist()
    if views:
        many = f" ({int(bad[views[0]].sum())} of {bad.shape[1]} values)" if bad.shape[1] > 1 else ""
        raise Sr3dError(f"{_source(seen)}, view {seen.frames[views[0]]}", field, found + many, expected)


def _source(seen: Observation) -> str:
    return f"case {seen.case}, method {seen.method}"


def _shape(size: tuple[int, ...]) -> str:
    """As people write it."""
    views, height, width = size
    return f"{views} views of {width}x{height}"
