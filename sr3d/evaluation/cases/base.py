"""A frozen list of cases, each of which is read when its turn comes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sr3d.cameras import Cameras
from sr3d.datasets.batch import reduce_scene
from sr3d.errors import Sr3dError
from sr3d.evaluation.case import Case
from sr3d.scene import Scene


@dataclass(kw_only=True)
class CaseSet:
    """What is evaluated.

    Attributes:
        names: Every case, in the order of the tables; each once, since they name the files of results.
        scenes: Scene of every case.
        views: Target views that all cases have together.
        index: The frozen choice of views, plain values; with the protocol it says what was evaluated.
        load: Reads the i-th case. Raises Sr3dError.

    Raises:
        Sr3dError: Two cases have one name.
    """

    names: list[str]
    scenes: list[str]
    views: int
    index: dict[str, Any]
    load: Callable[[int], Case]

    def __post_init__(self) -> None:
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise Sr3dError("sr3d eval", "cases", f"{twice[0]} twice", "a name of its own for every case")

    @property
    def digest(self) -> str:
        """SHA-256 of the index."""
        return hashlib.sha256(json.dumps(self.index, sort_keys=True).encode()).hexdigest()


@dataclass(kw_only=True)
class Sources:
    """Where the data of a protocol lies.

    Attributes:
        paths: Folders, as the kind of protocol needs them.
        index: Frozen index that takes the place of the protocol's own.
    """

    paths: list[Path] = field(default_factory=list)
    index: Path | None = None


def plain_case(
    name: str,
    scene: str,
    context: Scene,
    target: Scene,
    factor: int,
    frames: Sequence[str],
    *,
    text: str = "",
    classes: Sequence[str] = (),
    folder: str = "",
) -> Case:
    """A case without a zoom.

    Args:
        name: Of the case.
        scene: Of its scene.
        context: Low-resolution input views. [V]
        target: Target views at full resolution. [T]
        factor: Ratio of the resolutions.
        frames: Names of the target views. [T]
        text: Description of the scene.
        classes: Names of the label ids from 1 on.
        folder: Of the scene's own files.

    Raises:
        Sr3dError: `factor` does not divide the size of the target views.
    """
    return Case(
        name=name,
        scene=scene,
        context=context,
        factor=factor,
        cameras=target.posed(),
        frames=list(frames),
        truth=target,
        levels=[1] * len(target),
        reduced=reduce_scene(target, factor),
        text=text,
        classes=list(classes),
        folder=folder,
    )


def zoomed_case(
    name: str,
    scene: str,
    context: Scene,
    factor: int,
    levels: Sequence[int],
    *,
    center: tuple[float, float] | None = None,
    truth: Callable[[Cameras], Scene] | None = None,
    classes: Sequence[str] = (),
    folder: str = "",
) -> Case:
    """A case that looks at frames of the first input, with as many pixels, at every magnification.

    Args:
        name: Of the case.
        scene: Of its scene.
        context: Low-resolution input views. [V]
        factor: Ratio of the resolutions of one level.
        levels: Magnifications.
        center: Pixel of the first input that keeps its place; its middle if None.
        truth: What cameras see; None where nobody knows.
        classes: Names of the label ids from 1 on.
        folder: Of the scene's own files.
    """
    first = context.posed().index([0])
    fixed = (first.width / 2, first.height / 2) if center is None else center
    cameras = Cameras.cat([first.zoomed(float(level), fixed) for level in levels])
    return Case(
        name=name,
        scene=scene,
        context=context,
        factor=factor,
        cameras=cameras,
        frames=[f"{level}x" for level in levels],
        truth=None if truth is None else truth(cameras),
        levels=list(levels),
        reduced=context.views([0] * len(levels)),
        center=fixed,
        classes=list(classes),
        folder=folder,
    )
