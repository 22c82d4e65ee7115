"""Find the defaults of `OptimiseConfig`: PSNR between the input views after per-scene optimisation.

Training worlds from number 100 on, seen by no test. Two input views, three target views between them at four times the
resolution; PSNR over pixels that the coarse scene covers (alpha > 0.8), one mask for all, on depth that is given and
depth from stereo. `settings` varies one group of settings after the other and keeps the best; `starts` compares where
to start from, and `steps` how long to go on, beside the baselines `coarse` and `upsampled`.

    python benchmarks/tune_optimise.py settings --worlds 2 --size 32     # a quarter of an hour on one busy core
    python benchmarks/tune_optimise.py starts steps --worlds 2           # the same
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from common import machine
from torch import Tensor

from sr3d import Gaussians, render
from sr3d.coarse import CoarseConfig, DepthSource, coarse_gaussians, estimate_depth, upsampled_gaussians
from sr3d.datasets import World
from sr3d.datasets.batch import Batch, make_batch
from sr3d.datasets.procedural import world_seed
from sr3d.training.metrics import COVERED_ALPHA, image_metrics
from sr3d.zoom.optimise import START_SIGMA, OptimiseConfig, optimise

FACTOR = 4
FIRST_WORLD = 100
SOURCES: tuple[DepthSource, ...] = ("sweep", "depth")
STAGES: list[dict[str, list]] = [
    {"low": [1.0], "high": [0.0, 0.05, 0.1, 0.2, 0.4, 1.5]},
    {"colors": [0.0, 0.0025, 0.01, 0.015, 0.02, 0.03]},
    {"means": [0.0, 0.005, 0.01, 0.02, 0.05]},
    {"opacities": [0.0, 0.025, 0.1, 0.3, 0.6, 1.0]},
    {"scales": [0.0, 0.005, 0.02]},
    {"quats": [0.0, 0.001, 0.01]},
    {"dssim": [0.0, 0.2, 0.5]},
    {"decay": [1.0, 0.1, 0.01]},
    {"views": [1, None]},
]
STEPS = [0, 10, 30, 60, 100, 200, 300, 600]


@dataclass
class Case:
    """Inputs with depth (given or measured), the views between them, and the pixels that count."""

    batch: Batch
    covered: Tensor


@dataclass
class Score:
    """Means over cases: PSNR of covered pixels in dB, SSIM of the whole image, seconds."""

    psnr: float
    ssim: float
    seconds: float = 0.0


def make_cases(worlds: int, size: int, source: DepthSource) -> list[Case]:
    """One case per world; measured depth takes the place of the given one, to be estimated only once."""
    cases = []
    for number in range(FIRST_WORLD, FIRST_WORLD + worlds):
        world = World.generate(world_seed(0, number, "train"))
        clip = world.render(world.sample_cameras(5, FACTOR * size, FACTOR * size))
        batch = make_batch(clip, [0, 4], [1, 2, 3], FACTOR)
        depths, _ = estimate_depth(batch.context, CoarseConfig(source=source))
        batch = replace(batch, context=replace(batch.context, depths=depths))
        alpha = render(coarse_gaussians(batch.context, CoarseConfig()), batch.target.posed()).alpha
        cases.append(Case(batch, alpha > COVERED_ALPHA))
    return cases


def score(gaussians: Gaussians, case: Case, seconds: float = 0.0) -> Score:
    """Of one case."""
    target = case.batch.target
    values = image_metrics(render(gaussians, target.posed(), lod=False).rgb, target.images, case.covered)
    return Score(float(values["psnr_covered"].mean()), float(values["ssim"].mean()), seconds)


def mean(scores: Sequence[Score]) -> Score:
    """Of several cases."""
    return Score(*(float(np.mean([getattr(s, name) for s in scores])) for name in ("psnr", "ssim", "seconds")))


def upsampled(case: Case, sigma: float = CoarseConfig.upsampled_sigma) -> Gaussians:
    """Method `upsampled`; with `START_SIGMA` it is what `optimise` starts from."""
    return upsampled_gaussians(case.batch.context, FACTOR, CoarseConfig(upsampled_sigma=sigma))


def coarse(case: Case) -> Gaussians:
    """Method `coarse`."""
    return coarse_gaussians(case.batch.context, CoarseConfig())


def optimised(case: Case, config: OptimiseConfig, start: Callable[[Case], Gaussians] | None = None) -> Score:
    """Method `optimise`."""
    done = optimise(start(case) if start else upsampled(case, START_SIGMA), case.batch.context, FACTOR, config)
    return score(done.gaussians, case, done.seconds)


def row(label: str, scores: list[Score]) -> None:
    """Print PSNR and SSIM per set of cases, and the mean PSNR, gain and time."""
    cells = " ".join(f"{s.psnr:9.2f} {s.ssim:7.4f}" for s in scores)
    total = mean(scores)
    print(f"{label:32s} {cells} {total.psnr:8.3f} {total.seconds:7.1f}", flush=True)


def head(title: str, sets: dict[str, list[Case]]) -> None:
    """Print the head of a table."""
    cells = " ".join(f"{s:>9s} {'SSIM':>7s}" for s in sets)
    print(f"\n{title:32s} {cells} {'mean dB':>8s} {'seconds':>7s}")


def baselines(sets: dict[str, list[Case]]) -> None:
    """Rows of what needs no optimisation."""
    for name, method in (("coarse", coarse), ("upsampled", upsampled)):
        row(name, [mean([score(method(case), case) for case in cases]) for cases in sets.values()])


def tune_settings(sets: dict[str, list[Case]], steps: int) -> None:
    """A table per group of settings, of which the best mean PSNR is kept."""
    best = OptimiseConfig(steps=steps)
    for stage in STAGES:
        head(" ".join(stage), sets)
        baselines(sets)
        options: list[dict] = [{}]
        for key, values in stage.items():
            options = [{**option, key: value} for option in options for value in values]
        found = []
        for option in options:
            config = replace(best, **option)
            scores = [mean([optimised(case, config) for case in cases]) for cases in sets.values()]
            row(" ".join(f"{key} {value}" for key, value in option.items()), scores)
            found.append((mean(scores).psnr, option))
        chosen = max(found, key=lambda pair: pair[0])[1]
        print(f"best: {chosen}")
        best = replace(best, **chosen)


def compare_starts(sets: dict[str, list[Case]], steps: int) -> None:
    """A table of starting points."""
    head("start", sets)
    baselines(sets)
    starts: dict[str, Callable[[Case], Gaussians]] = {"from coarse": coarse}
    for sigma in (0.25, 0.3, 0.4, 0.5, 0.6):
        starts[f"from upsampled, sigma {sigma}"] = partial(upsampled, sigma=sigma)
    for label, start in starts.items():
        config = OptimiseConfig(steps=steps)
        row(label, [mean([optimised(case, config, start) for case in cases]) for cases in sets.values()])


def compare_steps(sets: dict[str, list[Case]]) -> None:
    """A table of budgets; the rates decay over each of them."""
    head("steps", sets)
    baselines(sets)
    for steps in STEPS:
        config = OptimiseConfig(steps=steps)
        row(f"optimise:{steps}", [mean([optimised(case, config) for case in cases]) for cases in sets.values()])


def main() -> None:
    """Parse the arguments and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", choices=["settings", "starts", "steps"])
    parser.add_argument("--worlds", type=int, default=4, help=f"number of training worlds, from {FIRST_WORLD} on")
    parser.add_argument("--size", type=int, default=48, help="side of the input views in pixels")
    parser.add_argument("--steps", type=int, default=OptimiseConfig.steps, help="of `settings` and `starts`")
    arguments = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    sets: dict[str, list[Case]] = {source: make_cases(arguments.worlds, arguments.size, source) for source in SOURCES}
    tables: dict[str, Callable[[], None]] = {
        "settings": lambda: tune_settings(sets, arguments.steps),
        "starts": lambda: compare_starts(sets, arguments.steps),
        "steps": lambda: compare_steps(sets),
    }
    for table in arguments.tables:
        tables[table]()


if __name__ == "__main__":
    main()
