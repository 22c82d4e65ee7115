"""Captures of nerfstudio and instant-ngp: a `transforms.json` and the files it names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sr3d.datasets.assemble import frame_clips
from sr3d.datasets.clip import Clip
from sr3d.datasets.converter import ClipOptions, Drops, Entry, Split, split_of
from sr3d.errors import Sr3dError
from sr3d.io.frames import Frame
from sr3d.io.images import natural_key
from sr3d.io.transforms import transforms_frames

_FILE = "transforms.json"


@dataclass(kw_only=True, frozen=True)
class Nerfstudio:
    """Captures of nerfstudio and instant-ngp. SRC is one scene (its folder or JSON file), or a folder of scenes.

    Cameras are OpenGL camera-to-world there; lens distortion is removed. A folder of scenes is split by a hash of the
    scenes' names (80 / 10 / 10 %); a single scene is given to whatever split is asked for.

    Left out and counted: frames without an image file ("image missing"), without the depth or label file that the JSON
    names ("depth missing", "labels missing"), with NaN in the pose or a matrix that is no rotation ("pose not finite",
    "pose not a rotation"), of another size than the rest of their clip ("other image size"), and whatever cannot be
    decoded or has a K that does not belong to its image ("damaged").

    Args:
        metric: World units are metres. None: they are where the scene has depth maps in counts (nerfstudio takes these
            to be millimetres), else not.
        images: Read the copies in this folder (images_2, images_4, ...) in place of the images that the JSON names.
    """

    metric: bool | None = None
    images: str | None = None

    source: ClassVar[str] = "nerfstudio"
    version: ClassVar[int] = 1
    needs_src: ClassVar[bool] = True
    licence: ClassVar[str] = "that of the capture"

    def entries(self, src: Path, split: Split) -> list[Entry]:
        """The scenes of a split, in natural order of their names."""
        if src.suffix == ".json" and src.is_file():
            return [Entry(name=src.resolve().parent.name, path=src, bytes=folder_bytes(src.parent))]
        return scene_entries(src, split, lambda folder: (folder / _FILE).is_file(), _FILE)

    def clips(self, entry: Entry, options: ClipOptions, drops: Drops) -> Iterator[Clip]:
        """The clips of a scene."""
        path = entry.path if entry.path.is_file() else entry.path / _FILE
        frames, points = transforms_frames(path, count_frames(entry.name, drops), self.images)
        frames = with_maps(frames, entry.name, drops)
        metric = self.metric
        if metric is None:
            metric = any(f.depth is not None and f.depth.suffix.lower() != ".npy" for f in frames)
        yield from frame_clips(
            frames, scene=entry.name, source=path, options=options, drops=drops, metric=metric, points=points
        )


def scene_entries(src: Path, split: Split, is_scene: Callable[[Path], bool], expected: str) -> list[Entry]:
    """One scene, or the scenes of a split among the folders in `src`: a hash of their names decides.

    Args:
        src: A scene, which is given to every split, or a folder of scenes.
        split: Of the scenes in a folder.
        is_scene: Whether a folder is one.
        expected: What a scene holds; for errors.

    Raises:
        Sr3dError: No such folder, or no scene in it or in the split.
    """
    if not src.is_dir():
        raise Sr3dError(src, "folder", "no such folder", f"a folder with {expected}, or a folder of such scenes")
    if is_scene(src):
        return [Entry(name=src.resolve().name, path=src, bytes=folder_bytes(src))]
    folders = sorted((p for p in src.iterdir() if p.is_dir()), key=lambda p: natural_key(p.name))
    scenes = [folder for folder in folders if is_scene(folder)]
    if not scenes:
        found = ", ".join(sorted(p.name for p in src.iterdir())[:8]) or "an empty folder"
        raise Sr3dError(src, "scenes", f"none; the folder holds {found}", f"{expected}, here or in folders one below")
    return entries_of_split(src, split, scenes)


def entries_of_split(src: Path, split: Split, scenes: Sequence[Path]) -> list[Entry]:
    """The scenes whose names hash to `split`.

    Raises:
        Sr3dError: There is none.
    """
    chosen = [scene for scene in scenes if split in ("all", split_of(scene.name))]
    if not chosen:
        expected = "another split (80 / 10 / 10 % by a hash of the scenes' names), or `all`"
        raise Sr3dError(src, "split", f"none of {len(scenes)} scenes in {split!r}", expected)
    return [Entry(name=scene.name, path=scene, bytes=folder_bytes(scene)) for scene in chosen]


def folder_bytes(folder: Path) -> int:
    """Sum of the sizes of all files in a folder and below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def count_frames(scene: str, drops: Drops) -> Callable[[str, Sr3dError], None]:
    """What the readers in `sr3d.io` call for a frame they leave out: counts it under a reason."""
    reasons = {"no such file": "image missing", "NaN or inf": "pose not finite"}

    def count(name: str, error: Sr3dError) -> None:
        reason = reasons.get(error.found)
        drops.frame(reason or "damaged", f"{scene}/{name}" if reason else f"{scene}/{name}: {error}")

    return count


def with_maps(frames: Sequence[Frame], scene: str, drops: Drops) -> list[Frame]:
    """The frames whose depth and label files are there, where they name any; the others are counted."""
    out = []
    for frame in frames:
        maps = {"depth": frame.depth, "labels": frame.labels}
        # Path.is_file raises for names that no file system takes.
        missing = [kind for kind, file in maps.items() if file is not None and not os.path.isfile(file)]
        if missing:
            drops.frame(f"{missing[0]} missing", f"{scene}/{frame.image.name}")
        else:
            out.append(frame)
    return out
