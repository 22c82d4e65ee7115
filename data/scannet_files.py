"""The scans of ScanNet on disk: `.sens` recordings, exported frames, folders and archives of label images."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float64, Int64
from numpy.typing import NDArray
from PIL import Image

from sr3d.datasets.assemble import check_K
from sr3d.datasets.converter import Drops
from sr3d.errors import Sr3dError
from sr3d.io.archive import ZipMembers
from sr3d.io.frames import Frame, rigid_inverse
from sr3d.io.images import list_images, read_depth
from sr3d.io.scannet import check_centre, first_size, is_scannet, scannet_frames
from sr3d.io.sens import Sens, read_sens

_SCAN = re.compile(r"scene\d{4}_\d{2}")
_MOST_LABEL_BYTES = 1 << 26

Reader = Callable[[str], bytes | None]


@dataclass(kw_only=True)
class Shot:
    """A frame whose pixels have not been read.

    Attributes:
        name: Number of the frame.
        world_to_cam: OpenCV axes, metres; all NaN where tracking was lost. [4, 4]
        color: Reads the colour file, or its pixels if they are not compressed.
        depth: Reads z-depth in metres at the pixels of the depth camera; None if there is none.
    """

    name: str
    world_to_cam: Float64[np.ndarray, "4 4"]
    color: Callable[[], bytes | NDArray[np.uint8]]
    depth: Callable[[], Float[np.ndarray, "h w"]] | None


@dataclass(kw_only=True)
class Scan:
    """The frames of a scan, and its two cameras, which share centre and axes.

    Attributes:
        K: Pixels of the colour image. [3, 3]
        size: Its width and height.
        depth_K: Pixels of the depth map. [3, 3]
        depth_size: Its width and height; None if the scan has no depth.
        depth_unit: Metres per stored count.
        shots: In the order of the recording.
    """

    K: Float64[np.ndarray, "3 3"]
    size: tuple[int, int]
    depth_K: Float64[np.ndarray, "3 3"]
    depth_size: tuple[int, int] | None
    depth_unit: float
    shots: list[Shot]


def open_scan(folder: Path, drops: Drops) -> Scan:
    """The recording of a scan, or else the frames that were exported from it.

    Raises:
        Sr3dError: There is neither, the recording is cut off or damaged, or intrinsics belong to another resolution.
    """
    recording = folder / f"{folder.name}.sens"
    return _recorded(read_sens(recording)) if recording.is_file() else _exported(folder, drops)


def _recorded(sens: Sens) -> Scan:
    """A `.sens` file."""
    cameras = {
        "the colour camera": (sens.color_K, sens.color_size),
        "the depth camera": (sens.depth_K, sens.depth_size),
    }
    for name, (K, size) in cameras.items():
        check_centre(K, size, sens.path)
        check_K(K, size, sens.path, name)
    shots = []
    for i, frame in enumerate(sens.frames):
        tracked = np.isfinite(frame.camera_to_world).all()
        shots.append(
            Shot(
                name=str(i),
                world_to_cam=rigid_inverse(frame.camera_to_world) if tracked else np.full((4, 4), np.nan),
                color=partial(sens.color, i),
                depth=partial(sens.depth, i) if frame.depth_bytes else None,
            )
        )
    return Scan(
        K=sens.color_K,
        size=sens.color_size,
        depth_K=sens.depth_K,
        depth_size=sens.depth_size,
        depth_unit=1 / sens.depth_shift,
        shots=shots,
    )


def _exported(folder: Path, drops: Drops) -> Scan:
    """A folder of frames."""
    if not is_scannet(folder):
        raise Sr3dError(folder, "scan", "no recording", f"{folder.name}.sens, or color/, pose/ and intrinsic/")

    def count(image: str, error: Sr3dError) -> None:
        drops.frame("pose missing or damaged", f"{folder.name}/{image}: {error}")

    frames = scannet_frames(folder, count)
    if not frames:
        raise Sr3dError(folder / "pose", "poses", "none", "one text file of 4x4 numbers per image")
    first = frames[0]
    size = first_size(frame.image for frame in frames)
    depths = [frame.depth for frame in frames if frame.depth is not None]
    depth_size = first_size(depths)
    if size is None or (depths and depth_size is None):
        raise Sr3dError(folder, "color" if size is None else "depth", "no image that can be read", "PNG or JPEG images")
    check_K(first.K, size, folder, "the colour camera")
    # Without intrinsics of their own, depth maps show what the colour image shows.
    scale = (1.0, 1.0) if depth_size is None else (depth_size[0] / size[0], depth_size[1] / size[1])
    if first.depth_K is None and abs(scale[0] / scale[1] - 1) > 0.01:
        raise Sr3dError(folder / "depth", "size", depth_size, f"the aspect ratio of {size}, or intrinsic_depth.txt")
    return Scan(
        K=first.K,
        size=size,
        depth_K=np.diag([*scale, 1.0]) @ first.K if first.depth_K is None else first.depth_K,
        depth_size=depth_size,
        depth_unit=first.depth_unit,
        shots=[_exported_shot(frame) for frame in frames],
    )


def _exported_shot(frame: Frame) -> Shot:
    depth = None if frame.depth is None else partial(read_depth, frame.depth, frame.depth_unit)
    return Shot(name=frame.image.stem, world_to_cam=frame.world_to_cam, color=partial(_read, frame.image), depth=depth)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Sr3dError(path, "file", error, "a readable file") from error


def find_scans(src: Path) -> dict[str, Path]:
    """Folders of the scans by name, in order; of two with one name the one in `scans/`."""
    found: dict[str, Path] = {}
    for folder in (src / "scans", src / "scans_test", src):
        if folder.is_dir():
            for path in folder.iterdir():
                if _SCAN.fullmatch(path.name) and path.is_dir():
                    found.setdefault(path.name, path)
    return dict(sorted(found.items()))


def scan_bytes(folder: Path) -> int:
    """About how much a scan adds to the shards."""
    recording = folder / f"{folder.name}.sens"
    if recording.is_file():
        return recording.stat().st_size
    images = list_images(folder / "color") if (folder / "color").is_dir() else []
    return len(images) * images[0].stat().st_size if images else 0


def has_labels(folder: Path) -> bool:
    """Whether a scan has label images, as a folder or as an archive."""
    names = [f"label{suffix}" for suffix in ("-filt", "")]
    return any((folder / n).is_dir() or (folder / f"{folder.name}_2d-{n}.zip").is_file() for n in names)


@contextmanager
def id_files(folder: Path, kind: str) -> Iterator[Reader | None]:
    """What reads the files of label images by frame name (None: there is no such frame); None without any images.

    Filtered images are preferred, and a folder to an archive.

    Args:
        folder: The scan's.
        kind: "label" or "instance".

    Raises:
        Sr3dError: The archive is damaged or hostile.
    """
    for name in (f"{kind}-filt", kind):
        path = folder / f"{folder.name}_2d-{name}.zip"
        if (folder / name).is_dir():
            yield partial(_loose, folder / name)
            return
        if path.is_file():
            with ZipMembers(path) as members:
                yield partial(_packed, members, name)
            return
    yield None


def decode_ids(data: bytes, size: tuple[int, int], where: str, deep: bool) -> Int64[np.ndarray, "h w"]:
    """Ids of a PNG file, by nearest neighbour at the pixels of a colour image.

    Args:
        data: The file.
        size: Width and height of the colour image.
        where: Frame named in errors.
        deep: Refuse 8 bits: ScanNet's own label ids come in 16, ids of copies that were mapped to NYU40 in 8.

    Raises:
        Sr3dError: The file is damaged, no single channel of integers, or of another aspect ratio.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        width, height = image.size
        fits = abs(width / height / (size[0] / size[1]) - 1) < 0.01 and width <= 2 * size[0]
        ids = np.asarray(image) if fits else None  # sizes are checked before the pixels are unpacked
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Sr3dError(where, "image", f"{type(error).__name__}: {error}", "a readable PNG") from error
    if ids is None:
        raise Sr3dError(where, "size", f"{width}x{height}", f"the colour image's {size[0]}x{size[1]}")
    if deep and image.mode == "L":
        raise Sr3dError(where, "bits", 8, "16: ScanNet's own ids (label_ids nyu40 for ids that were mapped)")
    if ids.ndim != 2 or not 0 <= ids.min() <= ids.max() < 65536:
        raise Sr3dError(where, "channels", image.mode, "one channel of ids from 0 to 65535")
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(np.int64) for n, m in zip(size[::-1], (height, width)))
    return ids[rows[:, None], columns].astype(np.int64)


def _loose(folder: Path, frame: str) -> bytes | None:
    path = folder / f"{frame}.png"
    return _read(path) if path.is_file() else None


def _packed(members: ZipMembers, name: str, frame: str) -> bytes | None:
    """Frames of exported copies may be padded with zeros, those of the archives are not."""
    number = str(int(frame)) if frame.isdecimal() else frame
    file = f"{name}/{number}.png"
    return members.read(file, _MOST_LABEL_BYTES) if file in members else None
