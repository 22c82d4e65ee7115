"""What a converter of a data set is. The steps that converters share are in `sr3d.datasets.assemble`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from sr3d.datasets.clip import Clip, ImageFormat
from sr3d.errors import Sr3dError

Split = Literal["train", "validation", "test", "all"]
_MOST_EXAMPLES, _LONGEST_EXAMPLE = 20, 600
_GROUP = "sr3d.converters"  # entry points: other packages can add converters


@dataclass(kw_only=True, frozen=True)
class Entry:
    """A unit of work of a converter: one scene, or one file with several scenes.

    Attributes:
        name: Unique in the data set; the scene's name where the entry is one scene.
        path: What is read.
        bytes: About how much it adds to the shards; they are planned by it.
    """

    name: str
    path: Path
    bytes: int


@dataclass(kw_only=True)
class Drops:
    """What was left out, by reason.

    Attributes:
        frames: Number of frames per reason.
        scenes: Number of scenes per reason.
        examples: The first few of them with details.
    """

    frames: Counter[str] = field(default_factory=Counter)
    scenes: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def frame(self, reason: str, where: str, count: int = 1) -> None:
        """Count a frame (or several of one kind). `reason` is a short phrase out of a small set: "pose not finite"."""
        self.frames[reason] += count
        self._note(f"frame {where}: {reason}")

    def scene(self, reason: str, where: str) -> None:
        """Count a scene that gives no clip at all."""
        self.scenes[reason] += 1
        self._note(f"scene {where}: {reason}")

    def add(self, other: Drops) -> None:
        """Take over what another one has counted."""
        self.frames += other.frames
        self.scenes += other.scenes
        self.examples = (self.examples + other.examples)[:_MOST_EXAMPLES]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, reasons in alphabetical order."""
        sort = {"frames": dict(sorted(self.frames.items())), "scenes": dict(sorted(self.scenes.items()))}
        return {**sort, "examples": self.examples}

    @staticmethod
    def from_dict(content: dict[str, Any]) -> Drops:
        """The inverse of `as_dict`."""
        frames, scenes = (Counter[str]({k: int(v) for k, v in content[name].items()}) for name in ("frames", "scenes"))
        return Drops(frames=frames, scenes=scenes, examples=list(content["examples"]))

    def _note(self, text: str) -> None:
        if len(self.examples) < _MOST_EXAMPLES:
            # Names of files need not be text.
            self.examples.append(text[:_LONGEST_EXAMPLE].encode("utf-8", "backslashreplace").decode())


@dataclass(kw_only=True, frozen=True)
class ClipOptions:
    """How scenes are cut into clips; the same for every converter.

    Args:
        views: Most views per clip; longer scenes give several clips of about equal length. 0: one clip per scene.
        stride: Keep every n-th frame.
        max_side: Images are reduced (by area) until their longer side has at most this many pixels. 0: as they are.
        lossless: Images that are encoded again (undistorted, cropped, reduced) become PNG, not JPEG of quality 95.
        min_views: Scenes with fewer usable frames are dropped.
    """

    views: int = 64
    stride: int = 1
    max_side: int = 0
    lossless: bool = False
    min_views: int = 3

    @property
    def suffix(self) -> ImageFormat:
        """Of images that are encoded again."""
        return "png" if self.lossless else "jpg"


@runtime_checkable
class Converter(Protocol):
    """One data set on disk → clips. A frozen data class: its fields are its options, and go into the index.

    Attributes:
        source: Name on the command line.
        version: Counted up whenever the same files would give other clips.
        licence: Of the data, in a sentence with its address.
        needs_src: Whether there is a folder to read.
    """

    source: ClassVar[str]
    version: ClassVar[int]
    licence: ClassVar[str]
    needs_src: ClassVar[bool]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def entries(self, src: Path, split: Split) -> list[Entry]:
        """What there is to convert in `src`, in a fixed order; nothing heavy is read.

        Raises:
            Sr3dError: `src` does not look like this data set, or gives nothing for the split.
        """
        ...

    def clips(self, entry: Entry, options: ClipOptions, drops: Drops) -> Iterator[Clip]:
        """The clips of an entry, one at a time. What is left out is counted in `drops`.

        Raises:
            Sr3dError: The entry is unusable; the caller counts it as a dropped scene ("damaged") with this message.
        """
        ...


def converters() -> list[str]:
    """Names of the converters that are installed, in alphabetical order."""
    return sorted(entry_points(group=_GROUP).names)


def find_converter(name: str) -> type[Any]:
    """The class of a converter.

    Raises:
        Sr3dError: There is none of this name, or it cannot be loaded.
    """
    points = entry_points(group=_GROUP, name=name)
    if not points:
        raise Sr3dError("sr3d pack", "source", repr(name), ", ".join(converters()))
    point = next(iter(points))
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise Sr3dError(point.value, f"converter {name}", error, "an importable class") from error


def split_of(name: str) -> Split:
    """The split of a scene of a data set without official ones: by a hash of its name, 80 / 10 / 10 %."""
    digest = hashlib.sha256(name.encode("utf-8", "backslashreplace")).digest()
    share = int.from_bytes(digest[:4], "big") / 2**32
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"
