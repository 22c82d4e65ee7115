"""Procedural worlds photographed into shards."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from sr3d.datasets.converter import find_converter
from sr3d.datasets.pack import PackConfig, pack
from sr3d.datasets.world import Kind
from sr3d.errors import Sr3dError

Split = Literal["train", "validation", "test"]
_MAX_SCENES = 1_000_000


def world_seed(seed: int, scene: int, split: Split) -> int:
    """Seed of one world of a set; no two of (seed, scene, split) share one.

    Raises:
        Sr3dError: A negative seed, a scene outside 0..999999 or an unknown split.
    """
    splits = get_args(Split)
    if seed < 0 or not 0 <= scene < _MAX_SCENES or split not in splits:
        found = f"seed {seed}, scene {scene}, split {split!r}"
        raise Sr3dError("sr3d.datasets.world_seed", "arguments", found, f"seed >= 0, scene < {_MAX_SCENES}, {splits}")
    return (seed * _MAX_SCENES + scene) * len(splits) + splits.index(split)


def pack_procedural(
    folder: str | Path,
    *,
    scenes: int,
    views: int,
    size: int,
    seed: int = 0,
    split: Split = "train",
    kind: Kind | None = None,
    workers: int = 1,
    progress: bool = True,
) -> Path:
    """Render procedural worlds, one clip each, and write them as shards.

    Args:
        folder: Made if missing; completed if it was begun before, with the same options.
        scenes: Number of worlds.
        views: Views per clip, along a short path; the first and the last see most of what the others see.
        size: Width and height in pixels.
        seed: Of the whole set.
        split: Worlds of different splits never share a seed.
        kind: "room" or "table"; both if None.
        workers: Processes; 0 takes one per core.
        progress: Show a bar with the time left.

    Returns:
        Path of the index.

    Raises:
        Sr3dError: See `sr3d.datasets.pack.pack`.
    """
    converter = find_converter("procedural")(scenes=scenes, views=views, size=size, seed=seed, kind=kind)
    config = PackConfig(workers=workers)
    return pack(converter, ".", folder, split=split, config=config, progress=progress).path
