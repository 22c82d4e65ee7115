"""Forests on disk, small ones, and what of them has to stay the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from lod_scenes import camera, plane_forest, surfels

import sr3d
from sr3d.lod import Forest, Level


def small(levels: int = 3, size: int = 34, seed: int = 0) -> Forest:
    """Levels with features and SH of degree 1; the first has two blocks."""
    forest = plane_forest(levels, 2, size=size, features=3, bumps=1.0, seed=seed)
    g = torch.Generator().manual_seed(seed)
    made = []
    for level in forest.levels:
        sh = torch.cat([level.gaussians.sh, 0.2 * torch.randn(len(level), 3, 3, generator=g)], dim=1)
        made.append(replace(level, gaussians=replace(level.gaussians, sh=sh)))
    return Forest(levels=tuple(made))


def more(forest: Forest) -> Forest:
    """One further level: children of ten rows of the last one."""
    level = forest.levels[-1]
    native = level.lod.native[:10].double() / 2
    children = surfels(level.gaussians.means[:10].double() + level.origin, native, torch.Generator(), features=3)
    sh = torch.cat([children.sh, torch.zeros(10, 3, 3, dtype=torch.float64)], dim=1)
    return forest.append(replace(children, sh=sh), forest.starts[-2] + torch.arange(10))


def frames(forest: Forest) -> list[torch.Tensor]:
    out = []
    for factor in (1, 1.7, 3, 4):
        drawn = sr3d.render(forest, camera(factor, size=34), features=True, ids=True)
        out += [drawn.rgb, drawn.depth, drawn.features, drawn.ids]
    return out


def tensors(level: Level) -> dict[str, torch.Tensor]:
    parts = [level.gaussians, level.lod, level.blocks, level.split]
    found = {f"{type(p).__name__}.{k}": v for p in parts for k, v in vars(p).items() if isinstance(v, torch.Tensor)}
    return found | {"parents": level.parents, "origin": level.origin}


def same(a: Forest, b: Forest) -> bool:
    pairs = [(tensors(x), tensors(y)) for x, y in zip(a.levels, b.levels)]
    numbers = [[level.number for level in forest.levels] for forest in (a, b)]
    return numbers[0] == numbers[1] and all(torch.equal(x[k], y[k]) for x, y in pairs for k in x | y)


def stored(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.iterdir()}
