"""What something costs: wall time, with the device synchronised, and the most memory in use meanwhile."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil
import torch

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass
class Meter:
    """A context manager: `with Meter("cuda") as cost: ...`, then `cost.seconds` and `cost.peak_bytes`.

    Attributes:
        device: Where the work is done.
        seconds: Wall time.
        peak_bytes: On a GPU the most memory that PyTorch had allocated; on a CPU the process's largest resident set
            meanwhile (Linux with /proc/self/clear_refs; elsewhere that at the end).
    """

    device: str
    seconds: float = 0.0
    peak_bytes: int = 0

    def __enter__(self) -> Meter:
        if self._cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        elif os.access(_CLEAR, os.W_OK):
            # 5 resets the kernel's record of the largest resident set.
            _CLEAR.write_text("5")
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._cuda and error is None:
            torch.cuda.synchronize(self.device)
        self.seconds = time.perf_counter() - self._start
        self.peak_bytes = torch.cuda.max_memory_allocated(self.device) if self._cuda else _peak_resident()

    @property
    def _cuda(self) -> bool:
        return torch.device(self.device).type == "cuda"


def _peak_resident() -> int:
    """Largest resident set since the last reset, that of now where nothing can be reset, bytes."""
    if os.access(_CLEAR, os.W_OK):
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)
