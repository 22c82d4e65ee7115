"""ScanNet → clips: `.sens` recordings or exported frames, with depth and semantic labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float64, Int16, Int64
from numpy.typing import NDArray

from sr3d.datasets.assemble import assemble, decode_image, make_view, pose_problem, whole_image
from sr3d.datasets.clip import Clip, View
from sr3d.datasets.converter import ClipOptions, Drops, Entry, Split
from sr3d.errors import Sr3dError
from sr3d.io.frames import reproject

from .borders import black_borders
from .nyu40 import CLASSES, nyu40_classes, scannet_classes
from .scannet_files import Reader, Scan, Shot, decode_ids, find_scans, has_labels, id_files, open_scan, scan_bytes

_LISTS = {"train": "scannetv2_train.txt", "validation": "scannetv2_val.txt", "test": "scannetv2_test.txt"}
_TABLE = "scannetv2-labels.combined.tsv"
_BENCHMARK = "https://github.com/ScanNet/ScanNet/tree/master/Tasks/Benchmark"
_SAMPLES = 8  # frames that black borders are looked for in


@dataclass(kw_only=True, frozen=True)
class ScanNet:
    """ScanNet v2 (arXiv 1702.04405): RGB-D videos of rooms, poses in OpenCV axes, metres.

    Read: `scans/` and `scans_test/` (or the folder itself) with `scene0000_00/` in them, each with `scene0000_00.sens`
    or the frames exported from it (`color/ depth/ pose/ intrinsic/`); label images in `label-filt/`, `label/`,
    `<scan>_2d-label-filt.zip` or `<scan>_2d-label.zip`; the same of `instance`. Depth is resampled to the colour
    camera's pixels with both intrinsics. All scans of a room are one scene: they stay on one side of a split.

    One error for all: no scan; the list of a split, or the table of labels, is missing. A scan is dropped if its
    recording is cut off, its intrinsics belong to another resolution, its cameras stand apart, its zip archive is
    damaged or hostile, or too few frames are left. A frame is dropped and counted: "pose not finite" (tracking lost),
    "pose not a rotation", "pose missing or damaged", "other image size", "depth missing", "labels missing", "damaged".
    "label id outside the table" counts frames with ids that the table does not have: their pixels become unknown, the
    frame stays.

    Args:
        crop: Pixels to cut off at each side of the colour image; -1 finds the black borders of every scan.
        labels: Ids that are stored: ScanNet's classes or its instances. none: neither ids nor semantics.
        label_ids: What label images count: raw is ScanNet's own ids, nyu40 is for exported copies that were mapped.
        label_map: The table of raw ids; scannetv2-labels.combined.tsv beside the scans if None.
        split_files: Folder of scannetv2_train.txt and the other lists; the data set's folder or its splits/ if None.
    """

    crop: int = -1
    labels: Literal["classes", "instances", "none"] = "classes"
    label_ids: Literal["raw", "nyu40"] = "raw"
    label_map: Path | None = None
    split_files: Path | None = None

    source: ClassVar[str] = "scannet"
    version: ClassVar[int] = 1
    needs_src: ClassVar[bool] = True
    licence: ClassVar[str] = (
        "ScanNet Terms of Use, non-commercial research only, no redistribution: http://www.scan-net.org/ScanNet/"
    )

    def entries(self, src: Path, split: Split) -> list[Entry]:
        """The scans of a split that are on disk, by name. See `Converter`."""
        folders = find_scans(src)
        if not folders:
            raise Sr3dError(src, "scans", "none", "scans/scene0000_00/scene0000_00.sens, or exported frames")
        if split != "all":
            path = self._list(src, split)
            wanted = set(path.read_text(encoding="utf-8", errors="replace").split())
            folders = {name: folder for name, folder in folders.items() if name in wanted}
            if not folders:
                raise Sr3dError(src, f"scans of {path.name}", "none on disk", f"some of its {len(wanted)} scans")
        if self.labels != "none" and self.label_ids == "raw":
            labelled = next((f for f in folders.values() if has_labels(f)), None)
            if labelled is not None:
                self._table(labelled)
        return [Entry(name=name, path=folder, bytes=scan_bytes(folder)) for name, folder in folders.items()]

    def clips(self, entry: Entry, options: ClipOptions, drops: Drops) -> Iterator[Clip]:
        """The clips of one scan. See `Converter`."""
        scan, name = open_scan(entry.path, drops), entry.path.name
        shots = []
        for shot in scan.shots:
            problem = pose_problem(shot.world_to_cam)
            if problem:
                drops.frame(problem, f"{name}/{shot.name}")
            else:
                shots.append(shot)
        window = _borders(scan, shots) if self.crop < 0 else (self.crop, self.crop, self.crop, self.crop)
        with ExitStack() as stack:
            classes = None if self.labels == "none" else stack.enter_context(id_files(entry.path, "label"))
            ids = stack.enter_context(id_files(entry.path, "instance")) if self.labels == "instances" else classes
            if classes is not None and ids is None:
                expected = f"{name}_2d-instance-filt.zip, or labels classes"
                raise Sr3dError(entry.path, "instances", "label images only", expected)
            encoder = _Encoder(
                name=name,
                scan=scan,
                window=window,
                classes=classes,
                ids=ids,
                table=None if classes is None else self._table(entry.path),
                raw=self.label_ids == "raw",
                options=options,
                drops=drops,
            )
            for clip in assemble(shots, encoder.view, scene=name, options=options, drops=drops, metric=True):
                yield replace(clip, scene=name.split("_")[0], classes=[] if classes is None else CLASSES)

    def _list(self, src: Path, split: Split) -> Path:
        folders = [src, src / "splits"] if self.split_files is None else [self.split_files]
        found = next((f / _LISTS[split] for f in folders if (f / _LISTS[split]).is_file()), None)
        if found is None:
            expected = f"{_LISTS[split]} of {_BENCHMARK} there or in split_files; or split all"
            raise Sr3dError(folders[0], f"list of the split {split}", "none", expected)
        return found

    def _table(self, folder: Path) -> Int16[np.ndarray, " n"]:
        if self.label_ids == "nyu40":
            return nyu40_classes()
        candidates = [parent / _TABLE for parent in list(folder.absolute().parents)[:2]]
        found = self.label_map or next((path for path in candidates if path.is_file()), None)
        if found is None:
            expected = f"{_TABLE} there (download-scannet.py --label_map), or label_map, or labels none"
            raise Sr3dError(candidates[-1].parent, "table of labels", "none", expected)
        return scannet_classes(found)


@dataclass(kw_only=True)
class _Encoder:
    """Makes the views of a scan; `window` is what is cut off on the left, top, right and bottom."""

    name: str
    scan: Scan
    window: tuple[int, int, int, int]
    classes: Reader | None
    ids: Reader | None
    table: Int16[np.ndarray, " n"] | None
    raw: bool
    options: ClipOptions
    drops: Drops
    K: Float64[np.ndarray, "3 3"] = field(init=False)
    size: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        left, top, right, bottom = self.window
        self.size = self.scan.size[0] - left - right, self.scan.size[1] - top - bottom
        self.K = self.scan.K - np.array([[0, 0, left], [0, 0, top], [0, 0, 0]])
        if min(self.size) < 1:
            raise Sr3dError(self.name, "crop", self.window, f"less than the image, {self.scan.size}")

    @cached_property
    def _depth_pixels(self) -> Int64[np.ndarray, "h w"]:
        """Which depth pixel every colour pixel sees, counted from 1; 0 for none. One map serves all frames."""
        assert self.scan.depth_size is not None
        width, height = self.scan.depth_size
        numbers = np.arange(1, width * height + 1).reshape(height, width)
        return reproject(numbers, self.scan.depth_K, self.K, self.size)

    def view(self, shot: Shot) -> View | None:
        """The view of a frame, or None and a drop."""
        try:
            found = self._view(shot)
        except Sr3dError as error:
            self.drops.frame("damaged", f"{self.name}/{shot.name}: {error}")
            return None
        if isinstance(found, str):
            self.drops.frame(found, f"{self.name}/{shot.name}")
            return None
        return found

    def _view(self, shot: Shot) -> View | str:
        """The view, or the reason why there is none."""
        image = shot.color()
        size = whole_image(image) if isinstance(image, bytes) else self.scan.size
        if size is None:
            raise Sr3dError(self.name, f"image of frame {shot.name}", "damaged", "an 8-bit RGB JPEG or PNG")
        if size != self.scan.size:
            return "other image size"
        left, top = self.window[:2]
        cut = slice(top, top + self.size[1]), slice(left, left + self.size[0])
        if any(self.window):
            image = (decode_image(image) if isinstance(image, bytes) else image)[cut]
        depth = None
        if self.scan.depth_size is not None:
            if shot.depth is None:
                return "depth missing"
            values = shot.depth()
            if values.shape[::-1] != self.scan.depth_size:
                return "other image size"
            depth = np.append(np.float32(0), values.ravel())[self._depth_pixels]
        maps = {}
        for read in dict.fromkeys([self.ids, self.classes]):
            if read is not None:
                data = read(shot.name)
                if data is None:
                    return "labels missing"
                deep = read is self.classes and self.raw
                maps[read] = decode_ids(data, self.scan.size, f"labels of {self.name}/{shot.name}", deep)[cut]
        return make_view(
            image,
            size=self.size,
            K=self.K,
            world_to_cam=shot.world_to_cam,
            frame=shot.name,
            options=self.options,
            where=self.name,
            depth=depth,
            depth_unit=self.scan.depth_unit,
            labels=None if self.ids is None else maps[self.ids],
            semantics=None if self.classes is None else self._semantics(maps[self.classes], shot),
        )

    def _semantics(self, ids: Int64[np.ndarray, "h w"], shot: Shot) -> Int64[np.ndarray, "h w"]:
        assert self.table is not None
        semantics = self.table[ids].astype(np.int64)
        unknown = semantics < 0
        if unknown.any():
            outside = np.unique(ids[unknown])[:5].tolist()
            self.drops.frame("label id outside the table", f"{self.name}/{shot.name}, kept; ids {outside}")
        return np.where(unknown, 0, semantics)


def _borders(scan: Scan, shots: Sequence[Shot]) -> tuple[int, int, int, int]:
    """Black borders that some frames out of the whole scan have in common."""
    chosen = [shots[i] for i in np.unique(np.linspace(0, len(shots) - 1, _SAMPLES).astype(np.int64))] if shots else []
    images: list[NDArray[np.uint8]] = []
    for shot in chosen:
        try:
            image = shot.color()
            if isinstance(image, bytes) and whole_image(image) == scan.size:
                image = decode_image(image)
        except Sr3dError:
            continue  # counted when its turn comes
        if not isinstance(image, bytes):
            images.append(image)
    return black_borders(images)
