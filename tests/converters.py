"""Converters for tests; importable, so that other processes can unpickle them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from stored import clip

from sr3d import Sr3dError
from sr3d.datasets.clip import Clip, scene_clip
from sr3d.datasets.converter import ClipOptions, Drops, Entry, Split


@dataclass(kw_only=True, frozen=True)
class Toy:
    """Random clips. Scene 3 is damaged, scene 5 breaks off after one of two clips, scene 6 has nothing usable."""

    scenes: int = 12
    seconds: float = 0.0
    empty: bool = False
    listed: Path | None = None

    source: ClassVar[str] = "toy"
    version: ClassVar[int] = 7
    licence: ClassVar[str] = "public domain"
    needs_src: ClassVar[bool] = True

    def entries(self, src: Path, split: Split) -> list[Entry]:
        """By number."""
        if not src.is_dir():
            raise Sr3dError(src, "folder", "missing", "a folder")
        return [Entry(name=f"scene {i}", path=src, bytes=400_000) for i in range(self.scenes)]

    def clips(self, entry: Entry, options: ClipOptions, drops: Drops) -> Iterator[Clip]:
        """Two clips of each scene."""
        number = int(entry.name.split()[1])
        drops.frame("pose not finite", entry.name, 2)
        if self.empty or number == 6:
            drops.scene("fewer than 3 usable frames", entry.name)
            return
        if number == 3:
            raise Sr3dError(entry.path, "frame 7", "cut off", "a whole file")
        for part in range(2):
            if number == 5 and part:
                raise OSError(5, "Input/output error")
            time.sleep(self.seconds)
            made = scene_clip(clip(100 * number + part))
            made.scene = entry.name
            yield made
