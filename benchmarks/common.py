"""What every benchmark does: name the hardware, time against a matrix product, print a table, write JSON and plots."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table


def cpu_model() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def machine() -> dict[str, object]:
    """Hardware and versions that a number depends on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    hardware = {"cpu": cpu_model(), "cores": os.cpu_count(), "torch threads": torch.get_num_threads(), "gpu": gpu}
    return {**hardware, "python": platform.python_version(), **{p: version(p) for p in ("torch", "numba", "sr3d")}}


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


@dataclass
class Timing:
    """Medians: milliseconds, milliseconds of the yardstick, and their ratio pair by pair."""

    ms: float
    yardstick_ms: float
    ratio: float


def measure(call: Callable[[], object], yardstick: Callable[[], object], repeats: int) -> Timing:
    """Time two calls in turn, so that a change in the machine's speed meets both."""
    call()
    yardstick()
    pairs = [(seconds(call), seconds(yardstick)) for _ in range(repeats)]
    return Timing(
        1e3 * statistics.median(t for t, _ in pairs),
        1e3 * statistics.median(y for _, y in pairs),
        statistics.median(t / y for t, y in pairs),
    )


def matrix_product() -> Callable[[], object]:
    """One 2000³ float32 matrix product on CPU."""
    a, b = torch.randn(2, 2000, 2000)
    return lambda: a @ b


@dataclass
class Report:
    """Collects tables and writes them as one JSON file beside their plots."""

    folder: Path
    name: str
    console: Console = field(default_factory=lambda: Console(width=max(120, Console().width)))
    results: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.console.print(", ".join(f"{k} {v}" for k, v in machine().items()))

    def table(self, title: str, rows: Sequence[dict[str, object]]) -> None:
        """Print rows that share their keys, and keep them."""
        table = Table(*rows[0], title=title, title_justify="left")
        for row in rows:
            table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
        self.console.print(table)
        self.results[title] = list(rows)
        self.write()

    def write(self) -> None:
        """Write all tables so far; the file appears whole or not at all."""
        path = self.folder / f"{self.name}.json"
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps({"machine": machine(), **self.results}, indent=2) + "\n")
        partial.replace(path)
