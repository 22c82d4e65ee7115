"""Procedural worlds by their seeds: inputs at both ends of a path, truth between them or at any magnification."""

from __future__ import annotations

from dataclasses import asdict

import torch

from sr3d.datasets.batch import make_batch
from sr3d.datasets.layout import CLASSES
from sr3d.datasets.world import World
from sr3d.errors import Sr3dError
from sr3d.evaluation.case import Case
from sr3d.evaluation.cases.base import CaseSet, plain_case, zoomed_case
from sr3d.evaluation.data_config import ProceduralData, WorldEntry
from sr3d.scene import Scene

_SAME = 2e-3  # largest change of a world's mean brightness that rounding and libraries explain


def open_procedural(data: ProceduralData, factor: int) -> CaseSet:
    """One case for each world."""
    names = [f"{world.kind}-{world.seed}" for world in data.worlds]
    zoom = data.levels != [1]

    def load(i: int) -> Case:
        views = photograph_world(data, i)
        if zoom:
            return _zoom(data, i, names[i], views, factor)
        return _between(data, names[i], views, factor)

    views = len(data.levels) if zoom else data.targets
    return CaseSet(names=names, scenes=names, views=views * len(names), index=asdict(data), load=load)


def photograph_world(data: ProceduralData, i: int) -> Scene:
    """All views of the path through the i-th world.

    Raises:
        Sr3dError: The world is not what it was when the index was frozen.
    """
    world, found = _world(data.worlds[i]), data.worlds[i]
    views = world.render(world.sample_cameras(data.views, data.size, data.size))
    mean = float(views.images[0].double().mean())
    if abs(mean - data.checks[i]) > _SAME:
        expected = f"{data.checks[i]:.4f}, as the index was frozen: the generator has changed"
        raise Sr3dError(f"world {found.seed}", "mean of the first view", f"{mean:.4f}", expected)
    return views


def _world(entry: WorldEntry) -> World:
    return World.generate(entry.seed, entry.kind)


def _between(data: ProceduralData, name: str, views: Scene, factor: int) -> Case:
    """Targets between the ends of the path."""
    last = data.views - 1
    spread = [round(i * last / (data.targets + 1)) for i in range(1, data.targets + 1)]
    batch = make_batch(views, [0, last], spread, factor)
    frames = [f"view {i}" for i in spread]
    return plain_case(name, name, batch.context, batch.target, factor, frames, classes=CLASSES[1:])


def _zoom(data: ProceduralData, i: int, name: str, views: Scene, factor: int) -> Case:
    """Frames of the first input, with as many pixels, at every magnification about a pixel."""
    context = make_batch(views, [0, data.views - 1], [], factor).context
    u, v = data.centers[i]
    world = _world(data.worlds[i])
    return zoomed_case(name, name, context, factor, data.levels, center=(u, v), truth=world.render, classes=CLASSES[1:])


def mean_brightness(entry: WorldEntry, views: int, size: int) -> float:
    """What `checks` of a new index holds: mean of the first view's image."""
    world = _world(entry)
    first = world.sample_cameras(views, size, size).index([0])
    return float(world.render(first).images.to(torch.float64).mean())
