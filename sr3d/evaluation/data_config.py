"""What the `data` of a protocol holds: one typed group per kind, its frozen index among the values."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, Literal

from sr3d.datasets.world import Kind
from sr3d.errors import Sr3dError
from sr3d.typed import from_dict

DataKind = Literal["procedural", "folder", "shards", "holdout", "generated"]


@dataclass(kw_only=True)
class WorldEntry:
    """One world of a frozen index.

    Attributes:
        seed: Of `sr3d.datasets.world.World.generate`.
        kind: Of the world, as the seed draws it: written down so that it stays what it is.
    """

    seed: int
    kind: Kind


@dataclass(kw_only=True)
class ProceduralData:
    """Procedural worlds: the truth is drawn at every magnification.

    A world is photographed by `World.sample_cameras(views, size, size)`. The first and the last view, reduced by the
    protocol's factor, are the inputs.

    Attributes:
        worlds: The frozen index.
        checks: Mean of the first view's image of every world, at full size; tells a generator that has changed.
        size: Width and height of the full-size views, pixels.
        views: Of the path of cameras.
        targets: Views between the inputs that are predicted, evenly spread. With a zoom 1: each level has one target,
            the frame of the first input at that magnification.
        levels: Magnifications of the target views; [1] for no zoom.
        centers: Per world the pixel (u, v) of the first low-resolution input that a zoom stays on; empty without one.
    """

    worlds: list[WorldEntry]
    checks: list[float]
    size: int = 192
    views: int = 5
    targets: int = 3
    levels: list[int] = field(default_factory=lambda: [1])
    centers: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        seeds = [world.seed for world in self.worlds]
        _require(bool(seeds), "worlds", "none", "one or more")
        _require(len(set(seeds)) == len(seeds), "worlds", "a seed twice", "every world once")
        _require(min(seeds) >= 0, "worlds", min(seeds), "seeds of 0 or more")
        found = f"{len(self.checks)} for {len(seeds)} worlds"
        _require(len(self.checks) == len(seeds), "checks", found, "one for each world")
        _at_least(self, 1, "size", "targets")
        _levels(self.levels)
        zoom = self.levels != [1]
        _require(not zoom or self.targets == 1, "targets", self.targets, "1 with a zoom")
        _require(
            self.views >= (2 if zoom else self.targets + 2),
            "views",
            self.views,
            "two inputs and the targets between them",
        )
        found = f"{len(self.centers)} for {len(seeds)} worlds"
        expected = "one for each world" if zoom else "none without a zoom"
        _require(len(self.centers) == (len(seeds) if zoom else 0), "centers", found, expected)
        for i, center in enumerate(self.centers):
            inside = len(center) == 2 and all(0 <= c <= self.size for c in center)
            _require(inside, f"centers[{i}]", center, "[u, v] of a pixel of the first input")


@dataclass(kw_only=True)
class FolderData:
    """Captures of the user, turned into test sets; see `sr3d.capture.CaptureConfig`.

    Attributes:
        baseline: Wanted distance of the two inputs as a share of the typical depth.
        pairs: Most pairs of input views of a capture.
        targets: Most target views per pair.
        max_pixels: Captures are reduced first until a low-resolution input has no more pixels than this.
        index: Frozen choice of views, a path; None: by the rule above, the same every time.
    """

    baseline: float = 0.085
    pairs: int = 5
    targets: int = 3
    max_pixels: int = 36_000
    index: str | None = None

    def __post_init__(self) -> None:
        _require(self.baseline > 0, "baseline", self.baseline, "a positive share of the depth")
        _at_least(self, 1, "pairs", "targets", "max_pixels")


@dataclass(kw_only=True)
class ShardsData:
    """Clips of shards, by a frozen evaluation index.

    Attributes:
        index: Path of the index; None: not shipped.
        items: Number of items that the index must have; None where nobody states it.
        image_size: Width and height that views are cropped and resized to first; None: as stored.
        degrade: How inputs are reduced.
        pack: Command that makes the shards.
        where: Where to get the index that has to be named when the protocol is run; "" where none has to be: the ends
            of every clip are the inputs then.
    """

    index: str | None = None
    items: int | None = None
    image_size: list[int] | None = None
    degrade: Literal["area", "lanczos", "bicubic"] = "area"
    pack: str
    where: str

    def __post_init__(self) -> None:
        _require(self.items is None or self.items >= 1, "items", self.items, "1 or more, or null")
        right = self.image_size is None or (len(self.image_size) == 2 and min(self.image_size) >= 1)
        _require(right, "image_size", self.image_size, "[width, height] in pixels, or null")


@dataclass(kw_only=True)
class HoldoutData:
    """Whole captures of which every nth image is tested and all others may be used.

    Attributes:
        scenes: Name of the scene's folder → number of images that it must have.
        every: Of the images in the order of their names, the first of every so many is tested: ceil(images / every).
        input_divisor: Reduction of the originals to the inputs, per side.
        target_divisor: Reduction of the originals to the truth.
        inputs: Nearest training views that are given to feed-forward methods for a test view.
        views: Neighbouring test images of a case, which share their inputs; 2 or more for metrics across views.
        levels: Magnifications of the target views; [1] for no zoom. There is no truth above the factor.
    """

    scenes: dict[str, int]
    every: int = 8
    input_divisor: int
    target_divisor: int
    inputs: int = 4
    views: int = 1
    levels: list[int] = field(default_factory=lambda: [1])

    def __post_init__(self) -> None:
        _require(bool(self.scenes), "scenes", "none", "one or more")
        _at_least(self, 1, "input_divisor", "target_divisor", "inputs", "views")
        _at_least(self, 2, "every")
        _levels(self.levels)
        for name, images in self.scenes.items():
            _require(images > self.inputs, f"scenes.{name}", images, f"more images than the {self.inputs} inputs")


@dataclass(kw_only=True)
class GeneratedData:
    """Scenes of Gaussians without truth, looked at from around.

    Attributes:
        views: Views around each scene.
    """

    views: int = 9

    def __post_init__(self) -> None:
        _at_least(self, 1, "views")


Data = ProceduralData | FolderData | ShardsData | HoldoutData | GeneratedData

_KINDS: dict[DataKind, type[Data]] = {
    "procedural": ProceduralData,
    "folder": FolderData,
    "shards": ShardsData,
    "holdout": HoldoutData,
    "generated": GeneratedData,
}


def data_from_dict(kind: DataKind, values: dict[str, Any], source: str = "protocol") -> Data:
    """The typed `data` of a protocol; the inverse of `dataclasses.asdict`.

    Args:
        kind: Of the protocol.
        values: Plain values.
        source: File, for errors.

    Raises:
        Sr3dError: An unknown or missing key, a wrong type, or a value out of range; names the key.
    """
    data: Data = from_dict(_KINDS[kind], values, source, "data")
    return data


def _require(right: bool, field: str, found: object, expected: str) -> None:
    """`data_from_dict` puts the file and the whole key into the error."""
    if not right:
        raise Sr3dError("sr3d.evaluation.data_config", field, found, expected)


def _at_least(data: Data, least: int, *names: str) -> None:
    for name in names:
        _require(getattr(data, name) >= least, name, getattr(data, name), f"{least} or more")


def _levels(levels: list[int]) -> None:
    rising = all(a < b for a, b in itertools.pairwise(levels))
    _require(bool(levels) and levels[0] >= 1 and rising, "levels", levels, "magnifications from 1 on, rising")
