"""One case: every method makes its scene, draws the target views, and is measured against the same truth."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.coarse import CoarseConfig
from sr3d.errors import Sr3dError
from sr3d.evaluation.case import Case, Made, Task
from sr3d.evaluation.meter import Meter
from sr3d.evaluation.methods import Method
from sr3d.evaluation.metrics.base import Observation, SetMetric, ViewMetric
from sr3d.evaluation.metrics.check import check_observation
from sr3d.evaluation.results import Scored
from sr3d.gaussians import Gaussians
from sr3d.io.images import write_image
from sr3d.lod import Forest
from sr3d.rendering import render
from sr3d.scene import Scene
from sr3d.training.metrics import COVERED_ALPHA

Metrics = Mapping[str, ViewMetric | SetMetric]
States = dict[str, dict[str, dict[str, Tensor]]]
"""Method → metric → what the case contributes to a metric of all views."""


@dataclass(kw_only=True)
class Scoring:
    """What all cases of a run share.

    Attributes:
        methods: Label → method.
        metrics: Name → metric.
        coarse: Coarse stage, the same for all methods.
        device: Where scenes are made and drawn.
        folder: Where pictures are written to, in `pictures/`.
        seed: Of everything random, together with the names of case and method.
    """

    methods: dict[str, Method]
    metrics: Metrics
    coarse: CoarseConfig
    device: str
    folder: Path
    seed: int = 0


def score_case(case: Case, run: Scoring) -> tuple[Scored, States]:
    """Scores of every method on one case.

    Args:
        case: Inputs and truth.
        run: Methods, metrics and settings.

    Returns:
        The scores, and what the case contributes to metrics of all views.

    Raises:
        Sr3dError: A method cannot be used here, or drew something that cannot be scored: names case, method and view.
    """
    task = Task(
        name=case.name,
        scene=case.scene,
        given=case.context,
        factor=case.factor,
        cameras=case.cameras,
        config=run.coarse,
        zoom=None if case.center is None else (case.center, max(case.levels)),
        text=case.text,
        classes=case.classes,
        folder=case.folder,
    )
    with Meter(run.device) as start:
        coarse = None if task.given is None else task.coarse
    covered = _covered(coarse, task.cameras.to(run.device))
    scored = Scored(
        case=case.name,
        scene=case.scene,
        frames=list(case.frames),
        levels=list(case.levels),
        coverage=covered.double().mean(dim=(-2, -1)).tolist(),
        values={},
        gaussians={},
    )
    shown = len(case.frames) // 2
    _save(scored, run.folder, "covered", covered[shown, ..., None].expand(-1, -1, 3).float())
    if case.context is not None:
        _save(scored, run.folder, "input", _nearest_input(case, shown))
    if case.truth is not None:
        _save(scored, run.folder, "truth", case.truth.images[shown])
    truth = None if case.truth is None else case.truth.to(run.device)
    states: States = {}
    for label, method in run.methods.items():
        # Only methods in two dimensions are given anything of the target views.
        given = replace(task, reduced=case.reduced) if method.two_dimensional else task
        torch.manual_seed(_seed(run.seed, case.name, label))
        with Meter(run.device) as cost:
            made = method.make(given)
        scored.seconds[label] = cost.seconds + (start.seconds if method.uses_coarse else 0.0)
        scored.peak_bytes[label] = max(cost.peak_bytes, start.peak_bytes if method.uses_coarse else 0)
        scored.notes[label] = made.notes
        seen, fps = _observe(case, label, made, covered, truth, run.device)
        scored.gaussians[label] = None if made.gaussians is None else _count(made.gaussians)
        if fps is not None:
            scored.fps[label] = fps
        scored.values[label], states[label] = _measure(seen, run.metrics)
        _save(scored, run.folder, label, seen.rgb[shown])
    return scored, states


def available(metric: ViewMetric | SetMetric, seen: Observation) -> bool:
    """Whether an observation has all that a metric needs."""
    truth = seen.truth
    there = {
        "truth": truth is not None,
        "depths": truth is not None and truth.depths is not None and seen.depth is not None,
        "labels": truth is not None and truth.labels is not None and seen.logits is not None,
        "text": bool(seen.text.strip()),
        "estimated": seen.estimated is not None and seen.given is not None,
        "depth": seen.depth is not None,
    }
    return all(there[need] for need in metric.needs)


def slug(name: str) -> str:
    """A file name for a case or a method: readable, and different for different names."""
    short = re.sub(r"[^A-Za-z0-9.+=-]+", "_", name)[:80].lstrip(".")
    return short if short == name else f"{short}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _covered(coarse: Gaussians | None, cameras: Cameras) -> Bool[Tensor, "t h w"]:
    """Pixels where the coarse scene is solid; all of them where nothing is coarse."""
    device = cameras.K.device
    if coarse is None:
        return torch.ones((len(cameras), cameras.height, cameras.width), dtype=torch.bool, device=device)
    with torch.no_grad():
        return render(coarse.to(device), cameras).alpha > COVERED_ALPHA


def _observe(
    case: Case, label: str, made: Made, covered: Bool[Tensor, "t h w"], truth: Scene | None, device: str
) -> tuple[Observation, float | None]:
    """The target views as a method shows them, checked, and how many of them it draws per second."""
    drawn, fps = None, None
    if made.gaussians is not None:
        cameras = case.cameras.to(device)
        features = made.classify is not None
        with torch.no_grad(), Meter(device) as cost:
            drawn = render(made.gaussians, cameras, features=features)
        fps = len(cameras) / cost.seconds
    images = made.images if drawn is None else drawn.rgb
    if images is None:
        raise Sr3dError(case.name, f"method {label}", "neither Gaussians nor images", "one of them")
    logits = None
    if drawn is not None and drawn.features is not None and made.classify is not None:
        logits = made.classify(drawn.features)
    seen = Observation(
        case=case.name,
        method=label,
        frames=case.frames,
        cameras=case.cameras.to(device),
        rgb=images.float().clamp(0, 1),
        covered=covered,
        truth=truth,
        alpha=None if drawn is None else drawn.alpha,
        depth=None if drawn is None else drawn.depth,
        logits=logits,
        text=case.text,
        estimated=made.cameras,
        given=None if case.context is None else case.context.cameras,
    )
    check_observation(seen)
    return seen, fps


@torch.no_grad()
def _measure(seen: Observation, metrics: Metrics) -> tuple[dict[str, list[float | None]], dict[str, dict[str, Tensor]]]:
    """Values of every view, and what the case contributes to metrics of all views."""
    values: dict[str, list[float | None]] = {}
    states: dict[str, dict[str, Tensor]] = {}
    for name, metric in metrics.items():
        if not available(metric, seen):
            continue
        if isinstance(metric, SetMetric):
            states[name] = metric.state(seen)
            continue
        for column, found in metric.measure(seen).items():
            values[column] = [None if math.isnan(v) else v for v in found.double().tolist()]
    return values, states


def _nearest_input(case: Case, shown: int) -> Float[Tensor, "h w 3"]:
    """The input view whose camera is nearest to that of a target view."""
    assert case.context is not None
    distance = (case.context.posed().positions - case.cameras.positions[shown].to(case.context.images)).norm(dim=-1)
    return case.context.images[int(distance.argmin())]


def _count(scene: Gaussians | Forest) -> int:
    """Gaussians that can be seen."""
    return int((scene.gaussians() if isinstance(scene, Forest) else scene).opacities.gt(0).sum())


def _seed(seed: int, case: str, label: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {case} {label}".encode()).digest()[:4], "big")


def _save(scored: Scored, folder: Path, name: str, image: Float[Tensor, "h w 3"]) -> None:
    """One picture of a case."""
    path = Path("pictures") / slug(scored.case) / f"{slug(name)}.png"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    write_image(folder / path, image)
    scored.pictures[name] = str(path)
