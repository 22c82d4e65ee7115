"""Folders of images, depth maps and poses, in the layouts that RGB-D data sets and scanners' tools leave."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from sr3d.datasets.assemble import frame_clips
from sr3d.datasets.clip import Clip
from sr3d.datasets.converter import ClipOptions, Drops, Entry, Split
from sr3d.errors import Sr3dError
from sr3d.gaussians import quat_to_matrix
from sr3d.io.frames import NO_DISTORTION, Frame, rigid_inverse
from sr3d.io.images import list_images
from sr3d.io.scannet import is_scannet, scannet_frames

from .nerfstudio import count_frames, folder_bytes, scene_entries, with_maps

_Matrix = npt.NDArray[np.float64]

_KINECT = (640, 480)
# 7-Scenes' cameras were not calibrated: its authors name 585 for depth, 525 is what everyone takes for colour.
_SEVEN_COLOUR, _SEVEN_DEPTH = (525.0, 525.0, 320.0, 240.0), (585.0, 585.0, 320.0, 240.0)
_SEVEN_UNKNOWN = 65535
_SEVEN_FRAME = re.compile(r"frame-[0-9]+\.color\.(png|jpg)")
# vision.in.tum.de/data/datasets/rgbd-dataset/file_formats: pixel centres at +0 there; fx fy cx cy k1 k2 p1 p2 k3.
_TUM = {
    "freiburg1": (517.3, 516.5, 318.6, 255.3, 0.2624, -0.9531, -0.0054, 0.0026, 1.1633),
    "freiburg2": (520.9, 521.0, 325.1, 249.7, 0.2312, -0.7849, -0.0033, -0.0001, 0.9172),
    "freiburg3": (535.4, 539.2, 320.1, 247.6),
}
_TUM_OTHER = (525.0, 525.0, 319.5, 239.5)
_TUM_UNIT = 1 / 5000
_TUM_SECONDS = 0.02
_IMAGES, _POSES, _LABELS = ("color", "images", "rgb"), ("pose", "poses"), ("label", "labels")
_INTRINSICS = ("intrinsics.txt", "intrinsic.txt", "camera-intrinsics.txt", "K.txt")


@dataclass(kw_only=True, frozen=True)
class Folders:
    """Folders of images, depth maps and poses. SRC is one scene, or a folder of scenes.

    The layout is found out:

    * ScanNet, exported: color/ depth/ pose/ label/ and intrinsic/intrinsic_color.txt (the source `scannet` reads the
      data set itself).
    * 7-Scenes and 3DMatch: frame-000000.color.png .depth.png .pose.txt, in the folder or in seq-01, seq-02, ...; depth
      in millimetres, 65535 is unknown. K from camera-intrinsics.txt here or one above, for both cameras; without it
      525 for colour and 585 for depth, which is then carried over to the colour camera (both taken to have one centre).
    * TUM RGB-D: rgb.txt, groundtruth.txt and depth.txt. An image gets the pose nearest in time, and a depth map of its
      own as TUM's associate.py finds it, both within 0.02 s; depth in 1/5000 m. Lens by the sequence's name (freiburg1,
      freiburg2, freiburg3), else 525, 319.5, 239.5.
    * Plain: color/, images/ or rgb/; pose/ or poses/ with a text file of a 4x4 OpenCV camera-to-world matrix for every
      image; depth/ (16-bit PNG in millimetres) and label/ or labels/ if there are any; and a 3x3 or 4x4 matrix in
      intrinsics.txt, intrinsic.txt, camera-intrinsics.txt or K.txt (pixel centres at +0.5).

    A folder of scenes is split by a hash of the scenes' names (80 / 10 / 10 %), a scene's sequences together; a single
    scene is given to whatever split is asked for. Several TUM sequences show one office: split those by hand.

    Left out and counted: frames without pose or with NaN in it ("pose missing", "pose not finite"), with a matrix that
    is no rotation ("pose not a rotation"), without depth or labels where the scene has some ("depth missing", "labels
    missing"), of another size than the rest ("other image size"), and whatever cannot be decoded or has a K that does
    not belong to its image ("damaged").

    Args:
        intrinsics: fx, fy, cx, cy of the colour images in pixels (pixel centres at +0.5), instead of the layout's own;
            their lens then counts as free of distortion.
        depth_unit: Metres per count of the depth maps, instead of the layout's own.
    """

    intrinsics: tuple[float, float, float, float] | None = None
    depth_unit: float | None = None

    source: ClassVar[str] = "folders"
    version: ClassVar[int] = 1
    needs_src: ClassVar[bool] = True
    licence: ClassVar[str] = "that of the capture"

    def entries(self, src: Path, split: Split) -> list[Entry]:
        """The scenes of a split, in natural order of their names; one entry for each sequence of a scene."""
        expected = ", or ".join(what for what, _, _ in _LAYOUTS)
        places = scene_entries(src, split, lambda folder: bool(_sequences(folder)), expected)
        sequences = [folder for place in places for folder in _sequences(place.path)]
        return [Entry(name=_names(f)[0], path=f, bytes=folder_bytes(f)) for f in sequences]

    def clips(self, entry: Entry, options: ClipOptions, drops: Drops) -> Iterator[Clip]:
        """The clips of a sequence."""
        read = next(read for _, is_layout, read in _LAYOUTS if is_layout(entry.path))
        frames = [self._own(frame) for frame in read(entry.path, entry.name, drops)]
        frames = with_maps(frames, entry.name, drops)
        clips = frame_clips(
            frames, scene=entry.name, source=entry.path, options=options, drops=drops, metric=True, points=None
        )
        for clip in clips:
            yield replace(clip, scene=_names(entry.path)[1])

    def _own(self, frame: Frame) -> Frame:
        """A frame with what the options say of it."""
        if self.intrinsics is not None:
            frame = replace(frame, K=_K(self.intrinsics), size=None, distortion=NO_DISTORTION, fisheye=False)
        return frame if self.depth_unit is None else replace(frame, depth_unit=self.depth_unit)


def _names(folder: Path) -> tuple[str, str]:
    """Names of a sequence and of the place it shows."""
    folder = folder.resolve()
    if folder.name.startswith("seq-"):
        return f"{folder.parent.name}-{folder.name}", folder.parent.name
    return folder.name, folder.name


def _sequences(folder: Path) -> list[Path]:
    """The folder itself if it has a known layout, else those called seq-... in it that have one."""
    if any(is_layout(folder) for _, is_layout, _ in _LAYOUTS):
        return [folder]
    return [f for f in sorted(folder.glob("seq-*")) if any(is_layout(f) for _, is_layout, _ in _LAYOUTS)]


def _is_seven(folder: Path) -> bool:
    return any(_SEVEN_FRAME.fullmatch(path.name) for path in folder.glob("frame-*"))


def _is_tum(folder: Path) -> bool:
    return (folder / "rgb.txt").is_file() and (folder / "groundtruth.txt").is_file()


def _is_plain(folder: Path) -> bool:
    parts = (_first(folder, _IMAGES), _first(folder, _POSES), _first(folder, _INTRINSICS))
    return folder.is_dir() and None not in parts


def _read_scannet(folder: Path, scene: str, drops: Drops) -> list[Frame]:
    return scannet_frames(folder, count_frames(scene, drops))


def _read_seven(folder: Path, scene: str, drops: Drops) -> list[Frame]:
    images = [image for image in list_images(folder) if _SEVEN_FRAME.fullmatch(image.name)]
    file = next((f for f in (folder / _INTRINSICS[2], folder.resolve().parent / _INTRINSICS[2]) if f.is_file()), None)
    depths = {image: folder / f"{image.name.split('.')[0]}.depth.png" for image in images}
    has_depth = any(depth.is_file() for depth in depths.values())
    frames = []
    for image in images:
        pose = _pose(folder / f"{image.name.split('.')[0]}.pose.txt", image, scene, drops)
        if pose is not None:
            frame = Frame(
                image=image,
                world_to_cam=pose,
                K=_K(_SEVEN_COLOUR) if file is None else _matrix(file)[:3, :3],
                size=_KINECT if file is None else None,
                depth=depths[image] if has_depth else None,
                depth_end=(_SEVEN_UNKNOWN - 0.5) * Frame.depth_unit,
                depth_K=_K(_SEVEN_DEPTH) if file is None else None,
            )
            frames.append(frame)
    return frames


def _read_tum(folder: Path, scene: str, drops: Drops) -> list[Frame]:
    colour = _table(folder / "rgb.txt", 1, str)
    truth = _table(folder / "groundtruth.txt", 7, float)
    depth = _table(folder / "depth.txt", 1, str) if (folder / "depth.txt").is_file() else None
    pairs = {} if depth is None else _pairs(colour[0], depth[0])
    numbers = next((n for name, n in _TUM.items() if name in folder.resolve().name), _TUM_OTHER)
    K = _K(numbers[:4])
    K[:2, 2] += 0.5
    frames = []
    for i, (name,) in enumerate(colour[1]):
        pose = _nearest(truth, colour[0][i])
        near = depth[1][pairs[i]] if depth is not None and i in pairs else None
        problems = {
            "image missing": not os.path.isfile(folder / name),
            "pose missing": pose is None,
            "depth missing": depth is not None and near is None,
        }
        problem = next((reason for reason, holds in problems.items() if holds), None)
        if problem is not None or pose is None:
            drops.frame(problem or "pose missing", f"{scene}/{name}")
            continue
        frame = Frame(
            image=folder / name,
            world_to_cam=_tum_pose(np.array(pose)),
            K=K,
            size=_KINECT,
            distortion=numbers[4:] or NO_DISTORTION,
            depth=None if near is None else folder / near[0],
            depth_unit=_TUM_UNIT,
        )
        frames.append(frame)
    return frames


def _read_plain(folder: Path, scene: str, drops: Drops) -> list[Frame]:
    images, poses, intrinsics = (_first(folder, names) or folder for names in (_IMAGES, _POSES, _INTRINSICS))
    depth, labels = _first(folder, ("depth",)), _first(folder, _LABELS)
    K = _matrix(intrinsics)[:3, :3]
    frames = []
    for image in list_images(images):
        pose = _pose(poses / f"{image.stem}.txt", image, scene, drops)
        if pose is not None:
            frame = Frame(
                image=image,
                world_to_cam=pose,
                K=K,
                depth=None if depth is None else depth / f"{image.stem}.png",
                labels=None if labels is None else labels / f"{image.stem}.png",
            )
            frames.append(frame)
    return frames


_Reader = Callable[[Path, str, Drops], list[Frame]]
# What a layout looks like, how it is told from others, and how it is read; the first that fits is taken.
_LAYOUTS: tuple[tuple[str, Callable[[Path], bool], _Reader], ...] = (
    ("color/ pose/ intrinsic/intrinsic_color.txt (ScanNet, exported)", is_scannet, _read_scannet),
    ("frame-000000.color.png .depth.png .pose.txt (7-Scenes), also in seq-01/", _is_seven, _read_seven),
    ("rgb.txt depth.txt groundtruth.txt (TUM RGB-D)", _is_tum, _read_tum),
    (f"images ({', '.join(_IMAGES)}), poses ({', '.join(_POSES)}) and one of {', '.join(_INTRINSICS)}", _is_plain,
     _read_plain),
)  # fmt: skip


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)


def _K(numbers: tuple[float, ...]) -> _Matrix:
    fx, fy, cx, cy = numbers
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def _pose(path: Path, image: Path, scene: str, drops: Drops) -> _Matrix | None:
    """World-to-camera of a file with a camera-to-world matrix, or None and a drop."""
    if not path.is_file():
        drops.frame("pose missing", f"{scene}/{image.name}")
        return None
    try:
        matrix = _matrix(path)
        if matrix.shape != (4, 4):
            raise Sr3dError(path, "matrix", f"shape {matrix.shape}", "4x4 numbers")
    except Sr3dError as error:
        drops.frame("damaged", f"{scene}/{image.name}: {error}")
        return None
    return rigid_inverse(matrix)


def _matrix(path: Path) -> _Matrix:
    """3x3 or 4x4 numbers of a text file."""
    try:
        matrix = np.array([line.split() for line in path.read_text().splitlines() if line.strip()], dtype=np.float64)
    except (OSError, ValueError) as error:
        raise Sr3dError(path, "file", f"{type(error).__name__}: {error}", "3x3 or 4x4 numbers") from None
    if matrix.shape not in ((3, 3), (4, 4)):
        raise Sr3dError(path, "matrix", f"shape {matrix.shape}", "3x3 or 4x4 numbers")
    return matrix


def _table(path: Path, columns: int, kind: Callable[[str], Any]) -> tuple[_Matrix, list[list[Any]]]:
    """Times, and what stands in the columns after them. Lines that begin with # are comments."""
    try:
        lines = [line.split() for line in path.read_text().splitlines() if line.strip() and line[0] != "#"]
        rows = [[kind(value) for value in line[1:]] for line in lines]
        if not rows or any(len(row) != columns for row in rows):
            raise ValueError(f"{len(rows)} lines, {sorted({len(line) for line in lines})} columns")
        return np.array([float(line[0]) for line in lines]), rows
    except (OSError, ValueError) as error:
        raise Sr3dError(path, "file", f"{type(error).__name__}: {error}", f"lines of 1 + {columns} columns") from None


def _pairs(times: _Matrix, others: _Matrix) -> dict[int, int]:
    """Index of a time → index of its partner among the others: the closest pairs first, each used once."""
    near = [(float(abs(others[j] - t)), i, int(j)) for i, t in enumerate(times) for j in _within(others, t)]
    out: dict[int, int] = {}
    taken: set[int] = set()
    for _, i, j in sorted(near):
        if i not in out and j not in taken:
            out[i] = j
            taken.add(j)
    return out


def _within(times: _Matrix, time: float) -> npt.NDArray[np.int64]:
    return np.flatnonzero(np.abs(times - time) <= _TUM_SECONDS)


def _nearest(table: tuple[_Matrix, list[list[Any]]], time: float) -> list[Any] | None:
    """The row nearest in time, within `_TUM_SECONDS`."""
    gaps = np.abs(table[0] - time)
    i = int(gaps.argmin())
    return table[1][i] if gaps[i] <= _TUM_SECONDS else None


def _tum_pose(row: _Matrix) -> _Matrix:
    """World-to-camera of tx ty tz qx qy qz qw, camera-to-world."""
    pose = np.eye(4)
    pose[:3, :3] = quat_to_matrix(torch.from_numpy(row[[6, 3, 4, 5]])).numpy()
    pose[:3, 3] = row[:3]
    return rigid_inverse(pose)
