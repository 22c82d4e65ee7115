"""Options of the command line that hold several values."""

from __future__ import annotations

import glob
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sr3d.errors import Sr3dError

T = TypeVar("T", int, float)


def numbers(text: str | None, option: str, kind: Callable[[str], T]) -> list[T] | None:
    """A comma-separated list.

    Raises:
        Sr3dError: Something in it is no finite number.
    """
    if text is None:
        return None
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        raise Sr3dError("sr3d", option, repr(text), "numbers separated by commas, e.g. 0,4") from None
    if not all(math.isfinite(v) for v in values):
        raise Sr3dError("sr3d", option, repr(text), "finite numbers")
    return values


def words(text: str | None) -> list[str]:
    """A comma-separated list of names."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def folders(text: str | None) -> list[Path]:
    """A comma-separated list of folders; those with a star stand for all folders that match, in order."""
    out: list[Path] = []
    for part in words(text):
        found = [Path(p) for p in sorted(glob.glob(part)) if Path(p).is_dir()]
        out += found if "*" in part else [Path(part)]
    return out
