"""The procedural world: rooms and table-tops drawn from a seed, with exact depth and semantics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, get_args

from sr3d.cameras import Cameras
from sr3d.datasets.assemble import clip_name, cut
from sr3d.datasets.clip import Clip, scene_clip
from sr3d.datasets.converter import ClipOptions, Drops, Entry, Split
from sr3d.datasets.layout import CLASSES
from sr3d.datasets.procedural import Split as Part
from sr3d.datasets.procedural import world_seed
from sr3d.datasets.world import Kind, World
from sr3d.errors import Sr3dError
from sr3d.figures import busiest_window

_BYTES_PER_PIXEL = 3.2  # colour, depth and semantics as PNG
_MOST_MAGNIFIED = 1024  # beyond which surfaces have no texture left
_SPOT = 8  # a spot's side, as a share of the image's


@dataclass(kw_only=True, frozen=True)
class Procedural:
    """Procedural worlds, one clip each. Nothing is read; there is no SRC.

    Images, depth and semantics are PNG files, exact up to rounding; world units are metres. A world's label values are
    the clip's semantic ids as they are: 0 is "unknown" in both, and `classes` names those from 1 on.

    No two splits share a world; "all" gives `scenes` worlds of each. A camera that `World.sample_cameras` cannot place
    drops its world ("damaged").

    Args:
        scenes: Number of worlds.
        views: Views of a world, along a short path; the first and the last see most of what the others see.
        size: Width and height in pixels; `max_side` makes it smaller.
        seed: Of the whole set.
        kind: "room" or "table"; both if None.
        magnify: Photograph through a longer lens, ≥ 1: all views by this factor about what the first one shows in the
            busiest spot of its middle. What a level of a zoom looks at.
    """

    scenes: int = 100
    views: int = 8
    size: int = 192
    seed: int = 0
    kind: Kind | None = None
    magnify: float = 1.0

    source: ClassVar[str] = "procedural"
    version: ClassVar[int] = 1
    licence: ClassVar[str] = "Apache-2.0 as sr3d; photographs on some surfaces are scikit-image's own"
    needs_src: ClassVar[bool] = False

    def entries(self, src: Path, split: Split) -> list[Entry]:
        """One entry for each world, named by the world's seed."""
        least = {"scenes": 1, "views": 1, "size": 2}
        for field, low in least.items():
            if getattr(self, field) < low:
                raise Sr3dError("procedural", field, getattr(self, field), f"{low} or more")
        if self.kind not in (None, *get_args(Kind)):
            raise Sr3dError("procedural", "kind", repr(self.kind), f"None or one of {get_args(Kind)}")
        if not 1 <= self.magnify <= _MOST_MAGNIFIED:
            raise Sr3dError("procedural", "magnify", self.magnify, f"1 to {_MOST_MAGNIFIED}")
        parts = get_args(Part) if split == "all" else (split,)
        seeds = [world_seed(self.seed, i, part) for part in parts for i in range(self.scenes)]
        size = int(self.views * self.size**2 * _BYTES_PER_PIXEL)
        return [Entry(name=f"procedural-{seed}", path=src, bytes=size) for seed in seeds]

    def clips(self, entry: Entry, options: ClipOptions, drops: Drops) -> Iterator[Clip]:
        """The clip of a world, cut if it is longer than the options allow."""
        size = min(self.size, options.max_side or self.size)
        world = World.generate(int(entry.name.rsplit("-", 1)[1]), self.kind)
        cameras = world.sample_cameras(self.views, size, size)
        clip = scene_clip(world.render(cameras if self.magnify == 1 else _magnified(world, cameras, self.magnify)))
        for view in clip.views:
            view.labels, view.semantics = None, view.labels
        parts = [part for part in cut(clip.views, options) if len(part) >= options.min_views]
        if not parts:
            drops.scene(f"fewer than {options.min_views} usable frames", clip.scene)
        for i, part in enumerate(parts):
            name = clip_name(clip.scene, i, len(parts))
            yield Clip(name=name, scene=clip.scene, views=part, metric=True, classes=list(CLASSES[1:]))


def _magnified(world: World, cameras: Cameras, factor: float) -> Cameras:
    """The views through a longer lens, about a busy spot in the middle of the first one."""
    first = cameras.index([0])
    seen = world.render(first, samples=1)
    h, w = cameras.height, cameras.width
    size = max(1, max(h, w) // _SPOT)
    top, left = busiest_window(seen.images[0, h // 4 : h - h // 4, w // 4 : w - w // 4], size)
    row, column = (min(start + side // 4 + size // 2, side - 1) for start, side in ((top, h), (left, w)))
    assert seen.depths is not None
    point = first.unproject(seen.depths)[0, row, column]
    pixels, _ = cameras.project(point[None])
    return cameras.zoomed(factor, pixels[:, 0])
