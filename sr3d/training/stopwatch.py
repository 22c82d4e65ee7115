"""Where the time of a step goes."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Seconds by part, from mark to mark.

    Attributes:
        seconds: Of every part since `clear`.
        synchronise: Wait for the GPU at every mark: only then a part has the time that it took there.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.synchronise = False
        self._last = time.perf_counter()

    def mark(self, part: str | None = None) -> None:
        """End a part, which began at the mark before; without a name the time since then belongs to no part."""
        if self.synchronise and torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if part is not None:
            self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now

    def clear(self) -> dict[str, float]:
        """Start a new step and return a fresh record, which later marks fill."""
        self.seconds = {}
        return self.seconds
