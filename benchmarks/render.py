"""Time of the renderer: Gaussians × resolution × channels × levels, forward and backward, on every device.

    python benchmarks/render.py [--quick]

CPU times are also ratios to a 2000³ float32 matrix product in the same process, which is what compares between
machines. The plot shows the frame time against stored Gaussians while the visible ones stay the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from common import Report, matrix_product, measure
from stored import stored_study

import sr3d
from sr3d import Cameras, Gaussians
from sr3d.lod import Lod

matplotlib.use("agg")


@dataclass
class Case:
    """One line of the table."""

    count: int
    width: int
    height: int
    features: int = 0
    levels: int = 1
    backward: bool = False


QUICK = [
    Case(50_000, 256, 256),
    Case(50_000, 256, 256, backward=True),
    Case(50_000, 256, 256, features=32),
    Case(50_000, 256, 256, features=32, backward=True),
    Case(50_000, 256, 256, levels=3),
    Case(50_000, 256, 256, levels=3, backward=True),
    Case(130_000, 256, 256),
    Case(130_000, 256, 256, backward=True),
    Case(600_000, 640, 480),
]
FULL = [
    *QUICK,
    *[
        Case(count, size, size, features, levels, backward)
        for count in (50_000, 500_000)
        for size in (128, 512)
        for features in (0, 128)
        for levels in (1, 4)
        for backward in (False, True)
    ],
    Case(50_000, 256, 256, features=512),
]


def scene(case: Case) -> tuple[Gaussians, Cameras]:
    """Gaussians of about one pixel, opacities 0.1 to 0.9, SH degree 0, spread evenly over the image.

    With several levels they take turns: each level is half as coarse as the one before, and the view lies between the
    last two.
    """
    g = torch.Generator().manual_seed(0)
    n, w, h = case.count, case.width, case.height
    z = 2 + 4 * torch.rand(n, generator=g)
    x, y = ((torch.rand(n, generator=g) - 0.5) * side / w * z for side in (w, h))
    level = torch.arange(n, dtype=torch.int32) % case.levels
    native = z / w * 1.4 * 2.0 ** (case.levels - 1 - level)
    coarser = torch.where(level > 0, 2 * native, torch.inf)
    finer = torch.where(level < case.levels - 1, native / 2, 0)
    gaussians = Gaussians(
        means=torch.stack([x, y, z], dim=-1),
        quats=torch.randn(n, 4, generator=g),
        scales=(z / w)[:, None] * torch.exp(0.3 * torch.randn(n, 3, generator=g)),
        opacities=0.1 + 0.8 * torch.rand(n, generator=g),
        sh=torch.randn(n, 1, 3, generator=g) * 0.5,
        features=torch.rand(n, case.features, generator=g) if case.features else None,
        lod=Lod(native=native, coarser=coarser, finer=finer, level=level) if case.levels > 1 else None,
    )
    K = torch.tensor([[[w, 0, w / 2], [0, w, h / 2], [0, 0, 1]]], dtype=torch.float32)
    return gaussians, Cameras(world_to_cam=torch.eye(4)[None], K=K, width=w, height=h)


def job(case: Case, device: str) -> Callable[[], None]:
    """The timed call: every image of one view, and with `backward` the gradients to all Gaussian parameters."""
    gaussians, cameras = (part.to(device) for part in scene(case))
    leaves = [gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.sh]

    def forward() -> None:
        with torch.no_grad():
            sr3d.render(gaussians, cameras, features=case.features > 0)

    def both() -> None:
        out = sr3d.render(gaussians, cameras, features=case.features > 0)
        loss = out.rgb.sum() + out.depth.sum() + out.alpha.sum()
        if out.features is not None:
            loss = loss + out.features.sum()
        torch.autograd.grad(loss, [*leaves, gaussians.features] if gaussians.features is not None else leaves)

    for leaf in leaves if gaussians.features is None else [*leaves, gaussians.features]:
        leaf.requires_grad_(case.backward)
    return both if case.backward else forward


def main() -> None:
    """Print the tables, write them as JSON, and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cases and repeats, at most 1.3 M stored Gaussians")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks"), help="folder for JSON and plot")
    options = parser.parse_args()
    report = Report(options.output, "render")
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        rows = []
        for case in QUICK if options.quick else FULL:
            time = measure(job(case, device), matrix_product(), 5 if options.quick else 9)
            rows.append(
                {
                    "Gaussians": case.count,
                    "image": f"{case.width}x{case.height}",
                    "channels": 3 + case.features,
                    "levels": case.levels,
                    "pass": "forward + backward" if case.backward else "forward",
                    "ms": time.ms,
                    "matmul ms": time.yardstick_ms,
                    "ratio": time.ratio,
                }
            )
        report.table(f"renderer, {device}", rows)
    stored_study(report, copies=[1, 2, 4, 8, 16], size=32 if options.quick else 90, repeats=15)


if __name__ == "__main__":
    main()
