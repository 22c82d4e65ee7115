"""Find the defaults of `CoarseConfig`: PSNR of `coarse` and `upsampled` between their input views.

Worlds 0 to 11. Four of them (2, 5, 8, 11) are among the test worlds of `make demo`: if anything, that favours the
baselines. Two input views, one target view between them at four times the
resolution; PSNR over pixels that the coarse scene covers (alpha > 0.8), one mask for all settings.

    python benchmarks/tune_baselines.py                     # all of it: about forty minutes on one busy core
    python benchmarks/tune_baselines.py --seeds 2 --sizes 48
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sr3d import Gaussians, Scene, render
from sr3d.coarse import CoarseConfig, DepthSource, coarse_gaussians, estimate_depth, upsampled_gaussians
from sr3d.datasets import World

FACTOR = 4


@dataclass
class Case:
    """Two views with depth (given or measured), and what a camera between them sees."""

    inputs: Scene
    target: Scene
    covered: Tensor


def make_cases(seeds: int, size: int, source: DepthSource) -> list[Case]:
    """One case per training world; measured depth takes the place of the given one, to be estimated only once."""
    cases = []
    for seed in range(seeds):
        world = World.generate(seed)
        cameras = world.sample_cameras(3, size, size, seed=0)
        inputs = world.render(cameras.index([0, 2]))
        target = world.render(cameras.index([1]).resized(FACTOR * size, FACTOR * size))
        covered = render(coarse_gaussians(inputs, CoarseConfig()), target.cameras).alpha > 0.8
        config = CoarseConfig(source=source)
        cases.append(Case(replace(inputs, depths=estimate_depth(inputs, config)[0]), target, covered))
    return cases


def coarse(case: Case, config: CoarseConfig) -> Gaussians:
    """Method `coarse`."""
    return coarse_gaussians(case.inputs, config)


def upsampled(case: Case, config: CoarseConfig) -> Gaussians:
    """Method `upsampled`."""
    return upsampled_gaussians(case.inputs, FACTOR, config)


def score(method: Callable[[Case, CoarseConfig], Gaussians], cases: list[Case], config: CoarseConfig) -> float:
    """Mean PSNR in dB over covered pixels."""
    values = []
    for case in cases:
        image = render(method(case, config), case.target.cameras).rgb.clamp(0, 1)
        error = (image - case.target.images)[case.covered].square().mean()
        values.append(-10 * torch.log10(error).item())
    return float(np.mean(values))


def tune(name: str, method: Callable[[Case, CoarseConfig], Gaussians], sets: dict[str, list[Case]]) -> None:
    """Print a table per setting, one column per set of cases, and keep the best mean."""
    prefix = "upsampled_" if name == "upsampled" else ""
    stages: list[dict[str, list]] = [
        {f"{prefix}sigma": [0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55], f"{prefix}opacity": [0.7, 0.9, 0.95, 0.99]},
        {"thickness": [0.03, 0.1, 0.3, 1.0]},
        {"max_stretch": [1.0, 2.0, 3.0, 5.0]},
    ]
    if name == "upsampled":
        stages.append({"enlargement": ["nearest", "bilinear", "edge", "joint"]})
    best = CoarseConfig()
    for stage in stages:
        print(f"\n{name:24s} " + " ".join(f"{s:>12s}" for s in sets) + f" {'mean':>7s}")
        options: list[dict] = [{}]
        for key, values in stage.items():
            options = [{**o, key: v} for o in options for v in values]
        rows = []
        for option in options:
            scores = [score(method, cases, replace(best, **option)) for cases in sets.values()]
            rows.append((float(np.mean(scores)), option))
            label = " ".join(f"{k.removeprefix('upsampled_')} {v}" for k, v in option.items())
            print(f"{label:24s} " + " ".join(f"{s:12.2f}" for s in scores) + f" {rows[-1][0]:7.2f}", flush=True)
        chosen = max(rows, key=lambda row: row[0])
        print(f"best: {chosen[1]}")
        best = replace(best, **chosen[1])


def main() -> None:
    """Parse the arguments and tune both methods."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=12, help="number of training worlds, from seed 0")
    parser.add_argument("--sizes", type=int, nargs="+", default=[48, 64], help="sides of the input views in pixels")
    arguments = parser.parse_args()
    sets = {
        f"{source} {size}": make_cases(arguments.seeds, size, source)
        for source in ("depth", "sweep")
        for size in arguments.sizes
    }
    tune("coarse", coarse, sets)
    tune("upsampled", upsampled, sets)


if __name__ == "__main__":
    main()
