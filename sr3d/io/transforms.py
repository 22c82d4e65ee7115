"""`transforms.json` of nerfstudio and instant-ngp → `Scene`. Cameras there are OpenGL camera-to-world."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.io.frames import Frame, choose, load_frames, present, rigid_inverse
from sr3d.io.images import image_size
from sr3d.io.ply import read_points
from sr3d.scene import Scene

_MODELS = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE")
_OPENCV, _FISHEYE = ("k1", "k2", "p1", "p2", "k3"), ("k1", "k2", "k3", "k4")
_SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".PNG", ".JPG")


def load_transforms(path: str | Path, views: Sequence[int] | None = None) -> Scene:
    """Read a `transforms.json` and the files it names.

    Keys: `fl_x fl_y cx cy w h k1 k2 k3 k4 p1 p2 camera_model` and `camera_angle_x camera_angle_y`, each per frame or
    shared; per frame `file_path` (with or without extension), `transform_matrix`, `depth_file_path` (integer PNG times
    `depth_unit_scale_factor`, default 0.001, or `.npy`), `label_file_path`; `ply_file_path` for sparse points.

    Args:
        path: The JSON file.
        views: Frames to decode, counted among those whose image exists; all if None.

    Raises:
        Sr3dError: See `sr3d.load_scene`.
    """
    path = Path(path)
    document = read_json(path)
    entries = _entries(path, document)
    images = [_image(path, entry, i) for i, entry in enumerate(entries)]
    found = present(path, images)
    chosen = [found[i] for i in choose(path, len(found), views)]
    frames = [_frame(path, entries[i], images[i]) for i in chosen]
    return load_frames(path, frames, _points(path, document), path.resolve().parent.name)


def transforms_frames(
    path: Path, on_error: Callable[[str, Sr3dError], None], images: str | None = None, key: str = "frames"
) -> tuple[list[Frame], Float[Tensor, "p 3"] | None]:
    """The frames that a `transforms.json` names, in its order, and its sparse points; no image is decoded.

    Args:
        path: The JSON file.
        on_error: Called with the file name of a frame and what is wrong with it; that frame is left out.
        images: Folder that takes the place of the first one in every `file_path`: `images_4` for copies reduced by 4,
            which nerfstudio and DL3DV keep beside the originals that the file describes. K is scaled to the images
            found there.
        key: Of the list of frames: ScanNet++ has `test_frames` besides.

    Raises:
        Sr3dError: The file is no JSON object with a list of frames, or its sparse points are damaged.
    """
    document = read_json(path)
    frames = []
    for i, entry in enumerate(_entries(path, document, key)):
        try:
            image = _image(path, entry, i, images)
            if not os.path.isfile(image):
                raise Sr3dError(path, f"image of {image.name}", "no such file", image)
            frame = _frame(path, entry, image)
            frames.append(frame if images is None else _scaled(path, frame))
        except Sr3dError as error:
            on_error(str(entry.get("file_path", i)), error)
    return frames, _points(path, document)


def _entries(path: Path, document: dict[str, Any], key: str = "frames") -> list[dict[str, Any]]:
    """The frames, each with the keys that all share; frame keys win over shared ones."""
    entries = document.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Sr3dError(path, key, type(entries).__name__, "a list of objects")
    shared = {name: value for name, value in document.items() if name not in ("frames", key, "file_path")}
    return [shared | entry for entry in entries]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object out of a file.

    Raises:
        Sr3dError: The file is missing or holds anything else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Sr3dError(path, "file", f"{type(error).__name__}: {error}", "a JSON file") from error
    if not isinstance(document, dict):
        raise Sr3dError(path, "file", type(document).__name__, "a JSON object")
    return document


def _image(path: Path, entry: dict[str, Any], number: int, images: str | None = None) -> Path:
    """The image of a frame: the first extension that exists, else the name as written."""
    name = PurePosixPath(_string(path, f"file_path of frame {number}", entry.get("file_path")))
    file = path.parent / (name if images is None else PurePosixPath(images, *(name.parts[1:] or name.parts)))
    candidates = [Path(f"{file}{suffix}") for suffix in _SUFFIXES]
    return next((candidate for candidate in candidates if os.path.isfile(candidate)), file)


def _frame(path: Path, entry: dict[str, Any], image: Path) -> Frame:
    name = image.name
    model = entry.get("camera_model", "OPENCV")
    if model not in _MODELS:
        raise Sr3dError(path, f"camera_model of {name}", model, f"one of {', '.join(_MODELS)}")
    fisheye = model == "OPENCV_FISHEYE" or bool(entry.get("is_fisheye"))
    size = (_size(path, entry, "w", name), _size(path, entry, "h", name))
    width, height = image_size(image)
    numbers = {key: _number(path, entry, key, name) for key in ("k1", "k2", "p1", "p2", "k3", "k4")}
    if numbers["k4"] and not fisheye:
        raise Sr3dError(path, f"k4 of {name}", numbers["k4"], "0: distortion k1 k2 k3 p1 p2")
    fx = _focal(path, entry, "fl_x", "camera_angle_x", size[0] or width, name)
    fy = _focal(path, entry, "fl_y", "camera_angle_y", size[1] or height, name)
    if fx is None:
        raise Sr3dError(path, f"fl_x of {name}", "neither fl_x nor camera_angle_x", "a focal length")
    cx, cy = _number(path, entry, "cx", name), _number(path, entry, "cy", name)
    K = np.array(
        [
            [fx, 0, (size[0] or width) / 2 if cx is None else cx],
            [0, fx if fy is None else fy, (size[1] or height) / 2 if cy is None else cy],
            [0, 0, 1],
        ]
    )
    unit = _number(path, entry, "depth_unit_scale_factor", name)
    if unit is not None and unit <= 0:
        raise Sr3dError(path, f"depth_unit_scale_factor of {name}", unit, "a number > 0")
    return Frame(
        image=image,
        world_to_cam=_pose(path, entry, name),
        K=K,
        size=(size[0] or width, size[1] or height),
        distortion=tuple(numbers[key] or 0.0 for key in (_FISHEYE if fisheye else _OPENCV)),
        fisheye=fisheye,
        depth=_optional(path, entry, "depth_file_path", name),
        depth_unit=0.001 if unit is None else unit,
        labels=_optional(path, entry, "label_file_path", name),
    )


def _scaled(path: Path, frame: Frame) -> Frame:
    """A frame of an image that was reduced after its K was written down."""
    size = image_size(frame.image)
    stated = frame.size or size
    x, y = size[0] / stated[0], size[1] / stated[1]
    if abs(x / y - 1) > 0.02:
        expected = f"the aspect ratio of w, h: {stated[0]}x{stated[1]}"
        raise Sr3dError(path, f"size of {frame.image.name}", f"{size[0]}x{size[1]}", expected)
    return replace(frame, K=np.diag([x, y, 1.0]) @ frame.K, size=size)


def _pose(path: Path, entry: dict[str, Any], name: str) -> NDArray[np.float64]:
    """OpenCV world-to-camera of an OpenGL camera-to-world matrix (y and z axes of the camera turned round)."""
    try:
        matrix = np.array(entry.get("transform_matrix"), dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.empty(0)
    if matrix.shape == (3, 4):
        matrix = np.vstack([matrix, [0, 0, 0, 1]])
    if matrix.shape != (4, 4):
        found = f"shape {matrix.shape}" if "transform_matrix" in entry else "nothing"
        raise Sr3dError(path, f"transform_matrix of {name}", found, "4x4 numbers")
    if not np.isfinite(matrix).all():
        raise Sr3dError(path, f"transform_matrix of {name}", "NaN or inf", "a finite 4x4 matrix")
    return rigid_inverse(matrix * [1, -1, -1, 1])


def _number(path: Path, entry: dict[str, Any], key: str, name: str) -> float | None:
    value = entry.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e18:
        raise Sr3dError(path, f"{key} of {name}", repr(value)[:60], "a finite number")
    return float(value)


def _size(path: Path, entry: dict[str, Any], key: str, name: str) -> int | None:
    value = _number(path, entry, key, name)
    if value is None:
        return None
    if value != int(value) or value < 1:
        raise Sr3dError(path, f"{key} of {name}", value, "a whole number of pixels")
    return int(value)


def _focal(path: Path, entry: dict[str, Any], key: str, angle_key: str, pixels: int, name: str) -> float | None:
    """Focal length in pixels, from the opening angle in radians where it is not given itself."""
    focal = _number(path, entry, key, name)
    angle = _number(path, entry, angle_key, name)
    if focal is not None or angle is None:
        return focal
    if not 0 < angle < math.pi:
        raise Sr3dError(path, f"{angle_key} of {name}", angle, "an angle between 0 and pi")
    return 0.5 * pixels / math.tan(0.5 * angle)


def _string(path: Path, field: str, value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise Sr3dError(path, field, repr(value)[:60], "a file name")
    return value


def _optional(path: Path, entry: dict[str, Any], key: str, name: str) -> Path | None:
    value = entry.get(key)
    return None if value is None else path.parent / _string(path, f"{key} of {name}", value)


def _points(path: Path, document: dict[str, Any]) -> Float[Tensor, "p 3"] | None:
    """Sparse points, if the file names them and they are there."""
    file = _optional(path, document, "ply_file_path", path.name)
    if file is not None and not os.path.isfile(file):
        warnings.warn(f"{path}: ply_file_path: no file {file}; the scene has no sparse points", stacklevel=2)
        return None
    return None if file is None else read_points(file)
