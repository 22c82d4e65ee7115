"""Time of the CPU renderer, in milliseconds and as a ratio to a 2000³ float32 matrix product in the same process.

    python benchmarks/render.py [--quick]

The ratio is what compares between machines: products and renders are timed in turn, so that a change in the speed of
the machine meets both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import sr3d
from sr3d import Cameras, Gaussians


@dataclass
class Case:
    """One line of the table."""

    name: str
    count: int
    width: int
    height: int
    features: int = 0
    backward: bool = False


CASES = [
    Case("RGB, forward", 50_000, 256, 256),
    Case("RGB, forward + backward", 50_000, 256, 256, backward=True),
    Case("RGB, forward", 130_000, 256, 256),
    Case("RGB, forward + backward", 130_000, 256, 256, backward=True),
    Case("35 channels, forward", 50_000, 256, 256, features=32),
    Case("RGB, forward", 600_000, 640, 480),
]


def scene(case: Case) -> tuple[Gaussians, Cameras]:
    """Gaussians of about one pixel, opacities 0.1 to 0.9, SH degree 0, spread evenly over the image."""
    g = torch.Generator().manual_seed(0)
    n, w, h = case.count, case.width, case.height
    z = 2 + 4 * torch.rand(n, generator=g)
    x, y = ((torch.rand(n, generator=g) - 0.5) * side / w * z for side in (w, h))
    gaussians = Gaussians(
        means=torch.stack([x, y, z], dim=-1),
        quats=torch.randn(n, 4, generator=g),
        scales=(z / w)[:, None] * torch.exp(0.3 * torch.randn(n, 3, generator=g)),
        opacities=0.1 + 0.8 * torch.rand(n, generator=g),
        sh=torch.randn(n, 1, 3, generator=g) * 0.5,
        features=torch.rand(n, case.features, generator=g) if case.features else None,
    )
    K = torch.tensor([[[w, 0, w / 2], [0, w, h / 2], [0, 0, 1]]], dtype=torch.float32)
    return gaussians, Cameras(world_to_cam=torch.eye(4)[None], K=K, width=w, height=h)


def job(case: Case) -> Callable[[], None]:
    """The timed call: every image of one view, and with `backward` the gradients to all Gaussian parameters."""
    gaussians, cameras = scene(case)
    leaves = [gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.sh]

    def forward() -> None:
        with torch.no_grad():
            sr3d.render(gaussians, cameras, features=case.features > 0, backend="cpu")

    def both() -> None:
        out = sr3d.render(gaussians, cameras, features=case.features > 0, backend="cpu")
        torch.autograd.grad((out.rgb.sum() + out.depth.sum() + out.alpha.sum()), leaves)

    for leaf in leaves:
        leaf.requires_grad_(case.backward)
    return both if case.backward else forward


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(call: Callable[[], None], repeats: int) -> tuple[float, float, float]:
    """Medians over `repeats`: milliseconds, milliseconds of the matrix product, and their ratio pair by pair."""
    a, b = torch.randn(2, 2000, 2000)
    call()
    a @ b
    pairs = [(seconds(call), seconds(lambda: a @ b)) for _ in range(repeats)]
    return (
        1e3 * statistics.median(t for t, _ in pairs),
        1e3 * statistics.median(p for _, p in pairs),
        statistics.median(t / p for t, p in pairs),
    )


def cpu_model() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] \
        if info.exists() else []  # fmt: skip
    return names[0] if names else platform.processor()


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three repeats instead of eleven")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/render.json"), help="JSON file")
    options = parser.parse_args()
    machine = {"cpu": cpu_model(), "cores": os.cpu_count(), "torch threads": torch.get_num_threads()}
    versions = {"python": platform.python_version(), **{p: version(p) for p in ("torch", "numba", "sr3d")}}
    console = Console()
    console.print(", ".join(f"{k} {v}" for k, v in {**machine, **versions}.items()))

    table = Table("case", "Gaussians", "image", "ms", "matmul ms", "ratio")
    results = []
    for case in CASES:
        ms, product_ms, ratio = measure(job(case), 3 if options.quick else 11)
        size = f"{case.width}x{case.height}"
        table.add_row(case.name, str(case.count), size, f"{ms:.1f}", f"{product_ms:.1f}", f"{ratio:.2f}")
        results.append(
            {"case": case.name, "gaussians": case.count, "image": size, "ms": ms, "matmul_ms": product_ms,
             "ratio": ratio}
        )  # fmt: skip
    console.print(table)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    partial = options.output.with_suffix(".part")
    partial.write_text(json.dumps({"machine": machine, "versions": versions, "results": results}, indent=2) + "\n")
    partial.replace(options.output)
    console.print(f"written: {options.output}")


if __name__ == "__main__":
    main()
