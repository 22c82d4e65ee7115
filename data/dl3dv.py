"""DL3DV-10K: 10,510 videos of places indoors and outdoors, with cameras of COLMAP in nerfstudio's format."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sr3d.datasets.assemble import frame_clips
from sr3d.datasets.clip import Clip
from sr3d.datasets.converter import ClipOptions, Drops, Entry, Split, split_of
from sr3d.errors import Sr3dError
from sr3d.io.transforms import transforms_frames

from .nerfstudio import count_frames

_HASH = re.compile(r"[0-9a-f]{64}")
_LIST = Path(__file__).with_name("dl3dv_benchmark.txt")


@dataclass(kw_only=True, frozen=True)
class Dl3dv:
    """DL3DV-10K. SRC holds scenes, unzipped, or the subsets 1K to 11K with scenes in them.

    A scene is a folder named by its hash, with `transforms.json` and `images_4/` (960x540) or `images_8/` (480x270) in
    it; in its `nerfstudio/` (the benchmark); or once more in a folder of its hash (some zips). The JSON describes the
    images at full size (`images/`, not downloaded): K is scaled to the copies. Their lens distortion (OPENCV k1 k2 p1
    p2) is removed, so the pixels are encoded again. Poses are taken as they are: `applied_transform` has turned all of
    them alike, which no relative pose shows. Their scale is arbitrary.

    Splits: "test" are the 140 scenes of the benchmark, never part of another split; "validation" is a tenth of the
    others (by a hash of their names), "train" the rest.

    Left out and counted: as in `Nerfstudio`; a scene without a readable `transforms.json` or without the folder of
    copies is dropped as a whole.

    Args:
        images: Which copies to read: images_4 or images_8.
        benchmark: File with the hashes of the benchmark's scenes (benchmark-meta.csv, or one in a line); None takes the
            list that comes with sr3d.
    """

    images: str = "images_4"
    benchmark: Path | None = None

    source: ClassVar[str] = "dl3dv"
    version: ClassVar[int] = 1
    needs_src: ClassVar[bool] = True
    licence: ClassVar[str] = (
        "DL3DV-10K terms of use and CC BY-NC 4.0, no sharing: https://github.com/DL3DV-10K/Dataset/blob/main/License.md"
    )

    def entries(self, src: Path, split: Split) -> list[Entry]:
        """The scenes of a split, by hash."""
        test = self.test_scenes()
        scenes = _scenes(src)
        names = sorted(name for name in scenes if split in ("all", _split(name, test)))
        if not names:
            found = f"none of {len(scenes)} scenes in {split!r}"
            raise Sr3dError(src, "split", found, "another split: test is the benchmark, train and validation the rest")
        return [Entry(name=name, path=scenes[name], bytes=self._bytes(scenes[name])) for name in names]

    def clips(self, entry: Entry, options: ClipOptions, drops: Drops) -> Iterator[Clip]:
        """The clips of a scene."""
        folder = _inside(entry.path)
        if not (folder / self.images).is_dir():
            there = [p.name for p in sorted(folder.glob("images*"))]
            raise Sr3dError(folder, "images", f"no {self.images}/; there is {', '.join(there) or 'none'}", self.images)
        path = folder / "transforms.json"
        frames, points = transforms_frames(path, count_frames(entry.name, drops), self.images)
        yield from frame_clips(
            frames, scene=entry.name, source=path, options=options, drops=drops, metric=False, points=points
        )

    def test_scenes(self) -> frozenset[str]:
        """Hashes of the benchmark's scenes.

        Raises:
            Sr3dError: The file of `benchmark` is missing or holds no hash.
        """
        path = self.benchmark or _LIST
        try:
            found = _HASH.findall(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise Sr3dError(path, "benchmark", f"{type(error).__name__}: {error}", "a text file with hashes") from None
        if not found:
            raise Sr3dError(path, "benchmark", "no hash", "hashes of 64 hexadecimal digits: benchmark-meta.csv")
        return frozenset(found)

    def _bytes(self, scene: Path) -> int:
        """Size of the images, from that of the first: the whole set has three million."""
        images = _inside(scene) / self.images
        files = sorted(images.iterdir()) if images.is_dir() else []
        return len(files) * files[0].stat().st_size if files else 0


def _split(name: str, test: frozenset[str]) -> Split:
    if name in test:
        return "test"
    return "validation" if split_of(name) == "validation" else "train"


def _scenes(src: Path) -> dict[str, Path]:
    """Folders that are named by a hash, in `src` or one below."""
    if not src.is_dir():
        raise Sr3dError(src, "folder", "no such folder", "a folder with scenes of DL3DV-10K")
    if _HASH.fullmatch(src.resolve().name):
        return {src.resolve().name: src}
    near = sorted(p for p in src.iterdir() if p.is_dir())
    below = [p for folder in near if not _HASH.fullmatch(folder.name) for p in sorted(folder.iterdir())]
    out: dict[str, Path] = {}
    for folder in (p for p in [*near, *below] if _HASH.fullmatch(p.name) and p.is_dir()):
        if folder.name in out:
            found = f"two folders: {out[folder.name]} and {folder}"
            raise Sr3dError(src, f"scene {folder.name}", found, "one folder for each scene")
        out[folder.name] = folder
    if not out:
        zips = len(list(src.glob("*.zip"))) + len(list(src.glob("*/*.zip")))
        found = f"{zips} zip files: unzip each into a folder of its name" if zips else "none"
        raise Sr3dError(src, "scenes", found, "folders named by 64 hexadecimal digits, here or in 1K to 11K")
    return out


def _inside(scene: Path) -> Path:
    """The folder of a scene that its `transforms.json` lies in."""
    candidates = (scene, scene / "nerfstudio", scene / scene.resolve().name)
    return next((c for c in candidates if (c / "transforms.json").is_file()), scene)
