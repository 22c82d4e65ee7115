"""COLMAP models, text or binary → `Scene`.

Read here and not by pycolmap, which takes what a truncated file leaves undefined as numbers, and may not return.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.gaussians import quat_to_matrix
from sr3d.io.frames import NO_DISTORTION, Frame, choose, load_frames, present
from sr3d.io.images import natural_key
from sr3d.scene import Scene

# Camera models in the order of COLMAP's numbers, with their parameter counts.
_MODELS = {
    "SIMPLE_PINHOLE": 3, "PINHOLE": 4, "SIMPLE_RADIAL": 4, "RADIAL": 5, "OPENCV": 8, "OPENCV_FISHEYE": 8,
    "FULL_OPENCV": 12, "FOV": 5, "SIMPLE_RADIAL_FISHEYE": 4, "RADIAL_FISHEYE": 5, "THIN_PRISM_FISHEYE": 12,
    "RAD_TAN_THIN_PRISM_FISHEYE": 16,
}  # fmt: skip
# COLMAP's fisheye models are OpenCV's: the angle's polynomial with k1 to k4.
_FISHEYE = ("OPENCV_FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE")
_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0", ".")
_FILES = ("cameras", "images")


@dataclass(kw_only=True)
class _Camera:
    model: str
    width: int
    height: int
    params: tuple[float, ...]


@dataclass(kw_only=True)
class _Image:
    name: str
    camera: int
    quat: tuple[float, ...]
    translation: tuple[float, ...]


@dataclass(kw_only=True)
class _Model:
    """A model, and the folder that its images lie in."""

    cameras_file: Path
    images_file: Path
    points_file: Path
    cameras: dict[int, _Camera]
    images: list[_Image]
    root: Path

    def points(self) -> Float[Tensor, "p 3"] | None:
        read = _points_binary if self.points_file.suffix == ".bin" else _points_text
        return read(self.points_file) if self.points_file.is_file() else None


def find_model(folder: str | Path) -> Path | None:
    """The first of sparse/0, sparse, colmap/sparse/0 and the folder itself that holds a COLMAP model, or None."""
    candidates = [Path(folder) / name for name in _FOLDERS]
    return next((c for c in candidates if _suffix(c) is not None), None)


def load_colmap(folder: str | Path, views: Sequence[int] | None = None) -> Scene:
    """Read a COLMAP model and its images; views are in natural order of the image names.

    Args:
        folder: Holds the model (see `find_model`). Images lie in `images/` of this folder, of one above, or in it.
        views: Frames to decode, counted among those whose image exists; all if None.

    Raises:
        Sr3dError: See `sr3d.load_scene`; also for lens models that are not perspective with radial and tangential
            distortion.
    """
    folder = Path(folder)
    model = _read_model(folder)
    found = present(model.images_file, [model.root / image.name for image in model.images])
    chosen = [model.images[found[i]] for i in choose(model.images_file, len(found), views)]
    frames = [_frame(model, image) for image in chosen]
    return load_frames(model.images_file, frames, model.points(), folder.resolve().name)


def colmap_frames(
    folder: Path, on_error: Callable[[str, Sr3dError], None], images: Path | None = None
) -> tuple[list[Frame], Float[Tensor, "p 3"] | None]:
    """The images of a COLMAP model in natural order of their names, and its sparse points; no image is decoded.

    Args:
        folder: See `load_colmap`.
        on_error: Called with the name of an image and what is wrong with it; that image is left out.
        images: The folder that image names start from; see `load_colmap` if None.

    Raises:
        Sr3dError: There is no model, or one of its files is damaged.
    """
    model = _read_model(folder)
    if images is not None:
        model = replace(model, root=images)
    frames = []
    for image in model.images:
        try:
            if not os.path.isfile(model.root / image.name):
                raise Sr3dError(model.images_file, f"image {image.name}", "no such file", model.root / image.name)
            frames.append(_frame(model, image))
        except Sr3dError as error:
            on_error(image.name, error)
    return frames, model.points()


def _read_model(folder: Path) -> _Model:
    model = find_model(folder)
    if model is None:
        raise Sr3dError(folder, "COLMAP model", "none", f"cameras and images (.bin or .txt) in {', '.join(_FOLDERS)}")
    suffix = _suffix(model)
    cameras_file, images_file, points_file = (model / f"{name}{suffix}" for name in (*_FILES, "points3D"))
    cameras = (_cameras_binary if suffix == ".bin" else _cameras_text)(cameras_file)
    images = (_images_binary if suffix == ".bin" else _images_text)(images_file)
    images = sorted(images, key=lambda image: natural_key(image.name))
    return _Model(
        cameras_file=cameras_file,
        images_file=images_file,
        points_file=points_file,
        cameras=cameras,
        images=images,
        root=_image_root(folder, model, images),
    )


def _suffix(model: Path) -> str | None:
    """`.bin` or `.txt`, whichever the model is complete in."""
    return next((s for s in (".bin", ".txt") if all((model / f"{f}{s}").is_file() for f in _FILES)), None)


def _image_root(folder: Path, model: Path, images: Sequence[_Image]) -> Path:
    """The folder that image names are relative to: the first with any of the images."""
    around = [folder, *list(model.resolve().parents)[:3]]
    candidates = [parent / "images" for parent in around] + [folder, model]
    return next((c for c in candidates if any(os.path.isfile(c / image.name) for image in images)), folder / "images")


def _frame(model: _Model, image: _Image) -> Frame:
    camera, source = model.cameras.get(image.camera), model.cameras_file
    if camera is None:
        expected = f"one of {sorted(model.cameras)[:8]}"
        raise Sr3dError(source, f"camera {image.camera} of {image.name}", "none", expected)
    K, distortion = _intrinsics(source, image.camera, camera)
    quat = torch.tensor(image.quat, dtype=torch.float64)
    if not torch.isfinite(quat.norm()) or quat.norm() == 0:
        raise Sr3dError(model.images_file, f"pose of {image.name}", image.quat, "a quaternion of norm > 0")
    pose = np.eye(4)
    pose[:3, :3] = quat_to_matrix(quat).numpy()
    pose[:3, 3] = image.translation
    return Frame(
        image=model.root / image.name,
        world_to_cam=pose,
        K=K,
        size=(camera.width, camera.height),
        distortion=distortion,
        fisheye=camera.model in _FISHEYE,
    )


def _intrinsics(source: Path, number: int, camera: _Camera) -> tuple[NDArray[np.float64], tuple[float, ...]]:
    """K, and k1 k2 p1 p2 k3; of a fisheye k1 k2 k3 k4."""
    p = camera.params
    distortion: tuple[float, ...] = NO_DISTORTION
    if camera.model in ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL"):
        fx, fy, cx, cy = p[0], p[0], p[1], p[2]
        k = [*p[3:], 0.0, 0.0][:2]
        distortion = (k[0], k[1], 0.0, 0.0, 0.0)
    elif camera.model in ("PINHOLE", "OPENCV", "OPENCV_FISHEYE"):
        fx, fy, cx, cy = p[:4]
        distortion = {"PINHOLE": NO_DISTORTION, "OPENCV": (*p[4:], 0.0)}.get(camera.model, p[4:])
    elif camera.model in _FISHEYE:
        fx, fy, cx, cy = p[0], p[0], p[1], p[2]
        k = [*p[3:], 0.0, 0.0, 0.0][:4]
        distortion = (k[0], k[1], k[2], k[3])
    else:
        expected = "a perspective model, OPENCV, or a fisheye of up to four k (colmap image_undistorter makes PINHOLE)"
        raise Sr3dError(source, f"model of camera {number}", camera.model, expected)
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), distortion


class _Reader:
    """Little-endian fields of a file, one after the other."""

    def __init__(self, path: Path) -> None:
        self.path, self.data, self.at = path, path.read_bytes(), 0

    def take(self, layout: str) -> tuple[Any, ...]:
        """The fields of a `struct` layout; Sr3dError where the file ends early."""
        layout = "<" + layout
        end = self.at + struct.calcsize(layout)
        self.need(end)
        values = struct.unpack_from(layout, self.data, self.at)
        self.at = end
        return values

    def skip(self, count: int) -> None:
        self.need(self.at + count)
        self.at += count

    def text(self) -> str:
        """A name that ends in a zero byte."""
        end = self.data.find(b"\0", self.at)
        self.need(end + 1 if end >= 0 else len(self.data) + 1)
        name = self.data[self.at : end].decode("utf-8", errors="replace")
        self.at = end + 1
        return name

    def need(self, end: int) -> None:
        if end > len(self.data):
            raise Sr3dError(self.path, "size", f"{len(self.data)} bytes", f"at least {end}: the file is cut off")


def _cameras_binary(path: Path) -> dict[int, _Camera]:
    reader, out, names = _Reader(path), {}, list(_MODELS)
    for _ in range(reader.take("Q")[0]):
        number, model, width, height = reader.take("IiQQ")
        if not 0 <= model < len(names):
            raise Sr3dError(path, f"model of camera {number}", model, f"0 to {len(names) - 1}")
        params = reader.take(f"{_MODELS[names[model]]}d")
        out[number] = _Camera(model=names[model], width=width, height=height, params=params)
    return out


def _images_binary(path: Path) -> list[_Image]:
    reader, out = _Reader(path), []
    for _ in range(reader.take("Q")[0]):
        _, *pose, camera = reader.take("I7dI")
        out.append(_Image(name=reader.text(), camera=camera, quat=tuple(pose[:4]), translation=tuple(pose[4:])))
        reader.skip(24 * reader.take("Q")[0])
    return out


def _points_binary(path: Path) -> Float[Tensor, "p 3"]:
    reader, out = _Reader(path), []
    for _ in range(reader.take("Q")[0]):
        _, x, y, z, _, _, _, _, track = reader.take("Q3d3BdQ")
        out.append((x, y, z))
        reader.skip(8 * track)
    return _points(path, out)


def _lines(path: Path) -> Iterator[str]:
    """Lines without comments."""
    try:
        text = path.read_text(encoding="utf-8")
    except ValueError as error:
        raise Sr3dError(path, "file", error, "UTF-8 text") from error
    return (line.strip() for line in text.splitlines() if not line.startswith("#"))


def _parse(path: Path, line: str, f: Callable[[str], Any]) -> Any:
    try:
        return f(line)
    except (ValueError, IndexError, OverflowError) as error:
        raise Sr3dError(path, "line", repr(line[:60]), "COLMAP's columns, complete") from error


def _cameras_text(path: Path) -> dict[int, _Camera]:
    def parse(line: str) -> tuple[int, _Camera]:
        number, model, width, height, *params = line.split()
        if model in _MODELS and len(params) != _MODELS[model]:
            raise ValueError
        values = tuple(float(p) for p in params)
        return int(number), _Camera(model=model, width=int(width), height=int(height), params=values)

    return dict(_parse(path, line, parse) for line in _lines(path) if line)


def _images_text(path: Path) -> list[_Image]:
    def parse(line: str) -> _Image:
        _, *pose, camera, name = line.split(maxsplit=9)
        quat, translation = tuple(float(p) for p in pose[:4]), tuple(float(p) for p in pose[4:])
        if len(translation) != 3:
            raise ValueError
        return _Image(name=name, camera=int(camera), quat=quat, translation=translation)

    out, lines = [], _lines(path)
    for line in lines:
        if line:
            out.append(_parse(path, line, parse))
            next(lines, "")  # the observations of this image, possibly none
    return out


def _points_text(path: Path) -> Float[Tensor, "p 3"]:
    def parse(line: str) -> tuple[float, ...]:
        _, x, y, z, *_ = line.split()
        return float(x), float(y), float(z)

    return _points(path, [_parse(path, line, parse) for line in _lines(path) if line])


def _points(path: Path, rows: Sequence[tuple[float, ...]]) -> Float[Tensor, "p 3"]:
    points = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)
    if not torch.isfinite(points).all():
        raise Sr3dError(path, "points", "NaN or inf", "finite positions")
    return points.float()
