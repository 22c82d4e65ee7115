"""One sample of a shard: a clip to named files, and back. `docs/shards.md` describes them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.datasets.clip import AS_STORED, MAX_SIDE, MAX_UNIT, Clip, image_dimensions, measure_overlap
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians, Lod
from sr3d.io.frames import snap
from sr3d.scene import Scene

HEAD = "clip.json"
_FORMAT, VERSION = "sr3d-clip", 2
_OVERLAP, _POINTS, _GAUSSIANS, _TEXT = "overlap.png", "points.npy", "gaussians.safetensors", "text.txt"
_NPY_HEADER = 128  # bytes
_NEEDED, _OPTIONAL = (
    {"means", "quats", "scales", "opacities", "sh"},
    {"features", *(f"lod.{f}" for f in Lod.__dataclass_fields__)},
)
_SHAPES: dict[str, set[tuple[int, ...]]] = {"means": {(3,)}, "quats": {(4,)}, "scales": {(3,)}, "opacities": {()}}
# How a whole file ends: decoders fill what is missing of a file that was cut off with grey.
_ENDINGS = {"jpg": b"\xff\xd9", "png": b"IEND\xaeB`\x82"}


def encode_sample(clip: Clip) -> dict[str, bytes]:
    """The files of a clip: ending → content.

    Raises:
        Sr3dError: No views, or views that differ in size or in what they have.
    """
    first = clip.views[0] if clip.views else None
    if first is None:
        raise Sr3dError(clip.name, "views", "none", "at least one")
    kind = (first.size, first.depth is None, first.labels is None, first.semantics is None)
    for view in clip.views:
        if (view.size, view.depth is None, view.labels is None, view.semantics is None) != kind:
            expected = f"size, depth and ids as {first.frame}"
            raise Sr3dError(clip.name, f"view {view.frame}", f"{view.size}, another set of maps", expected)
    overlap = measure_overlap(clip)
    head = {
        "format": _FORMAT,
        "version": VERSION,
        "name": clip.name,
        "scene": clip.scene,
        "width": first.size[0],
        "height": first.size[1],
        "metric": clip.metric,
        "frames": [v.frame for v in clip.views],
        "images": [v.suffix for v in clip.views],
        "depth_unit": None if first.depth is None else [v.depth_unit for v in clip.views],
        "labels": first.labels is not None,
        "semantics": first.semantics is not None,
        "classes": clip.classes,
        "world_to_cam": [v.world_to_cam.tolist() for v in clip.views],
        "K": [v.K.tolist() for v in clip.views],
    }
    out = {HEAD: json.dumps(head).encode()}
    if overlap is not None:
        out[_OVERLAP] = cv2.imencode(".png", overlap)[1].tobytes()
    if clip.points is not None:
        out[_POINTS] = _npy(clip.points.astype("<f4"))
    if clip.gaussians is not None:
        out[_GAUSSIANS] = _pack_gaussians(clip.gaussians)
    if clip.text is not None:
        out[_TEXT] = clip.text.encode()
    for i, view in enumerate(clip.views):
        out[f"{i:03d}.{view.suffix}"] = view.image
        for name, data in (("depth", view.depth), ("labels", view.labels), ("semantics", view.semantics)):
            if data is not None:
                out[f"{i:03d}.{name}.png"] = data
    return out


class StoredClip:
    """A clip of a shard. Cameras are read at once, pixels only of the views that are asked for.

    Args:
        members: Ending → content, as `encode_sample` makes them.
        source: File named in errors.
        key: Sample named in errors.

    Attributes:
        name: Unique in its data set.
        scene_name: The place.
        cameras: V cameras, float64, with the digits of the data set: rotations may be rounded.
        frames: Names of the frames in the data set.
        metric: World units are metres.
        classes: Names of the semantic ids, from 1 on.

    Raises:
        Sr3dError: `clip.json` is missing or broken, or a camera is impossible.
    """

    def __init__(self, members: Mapping[str, bytes | memoryview], source: str, key: str) -> None:
        self._members, self.source, self.key = members, source, key
        self._head = head = _read_head(self._member(HEAD), source, f"{key}.{HEAD}")
        self.name, self.scene_name, self.frames = head["name"], head["scene"], head["frames"]
        self.metric, self.classes = head["metric"], head["classes"]
        self.cameras = Cameras(
            world_to_cam=self._matrices("world_to_cam", 4),
            K=self._matrices("K", 3),
            width=head["width"],
            height=head["height"],
        )
        self.cameras.check(source, [f"{key} view {i}" for i in range(len(self))])

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def has_depth(self) -> bool:
        """Whether every view has a depth map."""
        return self._head["depth_unit"] is not None

    @property
    def has_labels(self) -> bool:
        """Whether every view has ids as the data set numbers them."""
        return self._head["labels"]

    @property
    def has_semantics(self) -> bool:
        """Whether every view has indices into `classes`."""
        return self._head["semantics"]

    @property
    def overlap(self) -> npt.NDArray[np.uint8] | None:
        """Share of each view (row) that each other one (column) sees, in 255ths; None if it was not measured. [V, V]"""
        if _OVERLAP not in self._members:
            return None
        return self._decode(_OVERLAP, "png", cv2.IMREAD_UNCHANGED, (len(self), len(self))).astype(np.uint8)

    def points(self) -> Float[Tensor, "p 3"] | None:
        """Sparse points, world frame.

        Raises:
            Sr3dError: The member is damaged.
        """
        if _POINTS not in self._members:
            return None
        data = bytes(self._member(_POINTS))
        values = data[_NPY_HEADER:]
        points = np.frombuffer(values[: len(values) // 12 * 12], "<f4").reshape(-1, 3)
        # Only what `encode_sample` writes: numpy's own reader takes archives too, and evaluates headers.
        if data != _npy(points) or not np.isfinite(points).all():
            found = f"{len(data)} bytes of something else, or NaN or inf"
            raise self._error(_POINTS, found, "finite float32 [P, 3] as .npy, version 1")
        return torch.from_numpy(points.copy())

    def gaussians(self) -> Gaussians | None:
        """Coarse Gaussians, world frame.

        Raises:
            Sr3dError: The member is damaged.
        """
        if _GAUSSIANS not in self._members:
            return None
        try:
            tensors = safetensors.torch.load(bytes(self._member(_GAUSSIANS)))
        # KeyError: a type of number that this version of safetensors does not know.
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise self._error(_GAUSSIANS, f"{type(error).__name__}: {error}", "a safetensors file") from None
        problem = _gaussians_problem(tensors)
        if problem is not None:
            raise self._error(_GAUSSIANS, problem, "the tensors of sr3d.Gaussians, finite, of one count")
        lod = {k.removeprefix("lod."): tensors.pop(k) for k in list(tensors) if k.startswith("lod.")}
        return Gaussians(**tensors, lod=Lod(**lod) if lod else None)

    def text(self) -> str | None:
        """The description.

        Raises:
            Sr3dError: It is not UTF-8.
        """
        if _TEXT not in self._members:
            return None
        try:
            return bytes(self._member(_TEXT)).decode()
        except UnicodeDecodeError as error:
            raise self._error(_TEXT, error, "UTF-8") from None

    def scene(self, views: Sequence[int] | None = None) -> Scene:
        """The chosen views, or all: images and depths as floats, labels the semantic ids where there are some.

        Raises:
            Sr3dError: A member is missing, cut off, no image, or of another size than the cameras.
        """
        return self.packed(views).unpacked()

    def packed(self, views: Sequence[int] | None = None) -> Scene:
        """As `scene`, with images in 8 bits."""
        chosen = list(range(len(self))) if views is None else [i % len(self) for i in views]
        cameras, size = self.cameras.index(chosen), (self.cameras.height, self.cameras.width)
        # Stored as the source says; made exactly rigid here, as `load_scene` does.
        cameras = replace(cameras, world_to_cam=snap(cameras.world_to_cam))
        suffixes = self._head["images"]
        names = [(f"{i:03d}.{suffixes[i]}", suffixes[i]) for i in chosen]
        images = np.empty((len(names), *size, 3), np.uint8)
        for image, (name, suffix) in zip(images, names):
            image[:] = self._decode(name, suffix, AS_STORED, (*size, 3))
        depths = labels = None
        if self.has_depth:
            units = np.array(self._head["depth_unit"], np.float64)[chosen].astype(np.float32)
            depths = torch.from_numpy(self._maps("depth", chosen, size).astype(np.float32) * units[:, None, None])
        if self.has_semantics or self.has_labels:
            kind = "semantics" if self.has_semantics else "labels"
            labels = torch.from_numpy(self._maps(kind, chosen, size).astype(np.int64))
        return Scene(
            images=torch.from_numpy(images),
            cameras=cameras.to(torch.float32),
            depths=depths,
            labels=labels,
            name=self.name,
        )

    def _maps(self, kind: str, chosen: Sequence[int], size: tuple[int, int]) -> npt.NDArray[Any]:
        maps = [self._decode(f"{i:03d}.{kind}.png", "png", cv2.IMREAD_UNCHANGED, size) for i in chosen]
        return np.stack(maps)

    def _decode(self, name: str, suffix: str, mode: int, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """One image, whole and of exactly this shape, with 8 bits (colour) or up to 16 bits (maps)."""
        data = np.frombuffer(self._member(name), np.uint8)
        ending = _ENDINGS[suffix]
        if data[-len(ending) :].tobytes() != ending:
            raise self._error(name, f"{len(data)} bytes without the end of a {suffix.upper()}", "a whole image")
        size = image_dimensions(data)
        # Before decoding: a small file can claim gigabytes of pixels.
        if size is not None and size != shape[1::-1]:
            raise self._error(name, f"{size[0]}x{size[1]}", f"{shape[1]}x{shape[0]} ({HEAD})")
        try:
            image = cv2.imdecode(data, mode)
        except cv2.error:
            image = None
        if image is None:
            raise self._error(name, f"{len(data)} bytes that are no image", "a PNG or JPEG image")
        if image.shape != shape or image.dtype not in (np.uint8, np.uint16):
            found = f"{image.shape[1]}x{image.shape[0]}, {image.size // (image.shape[0] * image.shape[1])} channels"
            expected = f"{shape[1]}x{shape[0]} ({HEAD}), {shape[2] if len(shape) > 2 else 1} channels"
            raise self._error(name, found, expected)
        return image

    def _member(self, name: str) -> bytes | memoryview:
        if name not in self._members:
            raise self._error(name, "missing", "a member of the tar file")
        return self._members[name]

    def _matrices(self, name: str, size: int) -> Tensor:
        try:
            out = torch.from_numpy(np.array(self._head.get(name), np.float64))
        except (TypeError, ValueError, RuntimeError, OverflowError):
            out = torch.zeros(0, dtype=torch.float64)
        if tuple(out.shape) != (len(self), size, size):
            expected = f"{len(self)} matrices of {size}x{size} numbers"
            raise self._error(f"{HEAD}: {name}", f"shape {tuple(out.shape)}", expected)
        return out

    def _error(self, name: str, found: object, expected: str) -> Sr3dError:
        return Sr3dError(self.source, f"{self.key}.{name}", found, expected)


def _npy(points: npt.NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, points)
    return buffer.getvalue()


def _pack_gaussians(gaussians: Gaussians) -> bytes:
    """Tensors by the names of the fields; those of the level of detail start with `lod.`."""
    fields = {name: getattr(gaussians, name) for name in ("means", "quats", "scales", "opacities", "sh", "features")}
    if gaussians.lod is not None:
        fields |= {f"lod.{k}": v for k, v in asdict(gaussians.lod).items()}
    return safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in fields.items() if v is not None})


def _gaussians_problem(tensors: dict[str, Tensor]) -> str | None:
    """What is wrong with the tensors of a file, or None."""
    if not set(tensors) >= _NEEDED or (extra := set(tensors) - _NEEDED - _OPTIONAL):
        return f"{sorted(tensors)}" if not set(tensors) >= _NEEDED else f"unknown {sorted(extra)}"
    levels = {k for k in tensors if k.startswith("lod.")}
    if levels and levels != {f"lod.{f}" for f in Lod.__dataclass_fields__}:
        return f"only {sorted(levels)}"
    count = tensors["opacities"].shape[:1]
    for name, tensor in tensors.items():
        if tensor.shape[:1] != count or tuple(tensor.shape[1:]) not in _SHAPES.get(name, {tuple(tensor.shape[1:])}):
            return f"{name} of shape {list(tensor.shape)}"
        if (name == "sh" and (tensor.ndim != 3 or tensor.shape[2] != 3)) or (name == "features" and tensor.ndim != 2):
            return f"{name} of shape {list(tensor.shape)}"
        if name != "lod.level" and tensor.dtype not in (torch.float32, torch.float64, torch.float16):
            return f"{name} of {tensor.dtype}"
        if name != "lod.coarser" and not tensor.isfinite().all():
            return f"{name} with NaN or inf"
    return None if bool((tensors["scales"] > 0).all()) else "scales that are not positive"


def _read_head(data: bytes | memoryview, source: str, field: str) -> dict[str, Any]:
    """The checked content of `clip.json`, poses and K apart."""
    try:
        head = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise Sr3dError(source, field, f"{type(error).__name__}: {error}", "JSON") from None
    if not isinstance(head, dict):
        raise Sr3dError(source, field, type(head).__name__, "a JSON object")

    def need(name: str, right: bool, expected: str) -> None:
        if not right:
            raise Sr3dError(source, f"{field}: {name}", repr(head.get(name))[:80], expected)

    def texts(name: str) -> bool:
        value = head.get(name)
        return isinstance(value, list) and all(isinstance(v, str) for v in value)

    need("format", head.get("format") == _FORMAT, _FORMAT)
    need("version", type(head.get("version")) is int and head["version"] == VERSION, f"{VERSION}: pack the data again")
    for name in ("width", "height"):
        value = head.get(name)
        need(name, isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_SIDE, f"1 to {MAX_SIDE}")
    for name in ("name", "scene"):
        need(name, isinstance(head.get(name), str), "a string")
    for name in ("labels", "semantics", "metric"):
        need(name, isinstance(head.get(name), bool), "true or false")
    need("classes", texts("classes"), "a list of names")
    need("frames", texts("frames") and len(head["frames"]) > 0, "a name for every view")
    views = len(head["frames"])
    need("images", texts("images") and len(head["images"]) == views and set(head["images"]) <= {"jpg", "png"},
         f"'jpg' or 'png' for each of {views} views")  # fmt: skip
    units = head.get("depth_unit")
    right = isinstance(units, list) and len(units) == views and all(_is_unit(u) for u in units)
    need("depth_unit", units is None or right, f"null, or world units per count for each of {views} views")
    return head


def _is_unit(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and 0 < value < MAX_UNIT
