"""One clip as files: views to 8-bit images, 16-bit depth and cameras in JSON, and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.scene import Scene

_CAMERAS = "cameras.json"
_MAX_COUNT = 65535


@dataclass(kw_only=True)
class StoredClip:
    """A decoded clip, small enough to keep: integers instead of floats.

    Attributes:
        images: [V, H, W, 3]
        depths: Counts of `depth_unit` metres, 0 where unknown. [V, H, W]
        depth_unit: World units per count.
        labels: [V, H, W]
        cameras: V cameras, float32.
        name: Of the clip.
    """

    images: npt.NDArray[np.uint8]
    depths: npt.NDArray[np.uint16] | None
    depth_unit: float
    labels: npt.NDArray[np.uint16] | None
    cameras: Cameras
    name: str

    def scene(self) -> Scene:
        """The clip as floating-point images and depths and int64 labels."""
        depths = None if self.depths is None else self.depths.astype(np.float32) * np.float32(self.depth_unit)
        return Scene(
            images=torch.from_numpy(self.images.astype(np.float32) / np.float32(255)),
            cameras=self.cameras,
            depths=None if depths is None else torch.from_numpy(depths),
            labels=None if self.labels is None else torch.from_numpy(self.labels.astype(np.int64)),
            name=self.name,
        )


def encode_clip(clip: Scene, image_format: Literal["png", "jpg"] = "png") -> dict[str, bytes]:
    """Members of one sample: suffix → bytes.

    Depth is stored in counts of (largest depth / 65535): at most half of that is lost.

    Raises:
        Sr3dError: The clip has no poses, is a batch, or has labels outside 0..65535 or depths that are negative or
            not finite.
    """
    cameras = clip.posed()
    if clip.images.ndim != 4:
        raise Sr3dError(clip.name, "images", f"shape {tuple(clip.images.shape)}", "one clip [V, H, W, 3]")
    cameras.check(clip.name)
    unit = None if clip.depths is None else _depth_unit(clip)
    content = {
        "name": clip.name,
        "width": cameras.width,
        "height": cameras.height,
        "views": len(clip),
        "image_format": image_format,
        "depth_unit": unit,
        "labels": clip.labels is not None,
        "world_to_cam": cameras.world_to_cam.double().tolist(),
        "K": cameras.K.double().tolist(),
    }
    out = {_CAMERAS: json.dumps(content).encode()}
    for i in range(len(clip)):
        image = (clip.images[i].cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8)
        out[f"{i:03d}.{image_format}"] = _encode(image[..., ::-1], image_format)
        if clip.depths is not None and unit is not None:
            depth = clip.depths[i].cpu().double().numpy()
            counts = np.where(depth > 0, np.maximum(1, (depth / unit).round()), 0).clip(0, _MAX_COUNT)
            out[f"{i:03d}.depth.png"] = _encode(counts.astype(np.uint16), "png")
        if clip.labels is not None:
            labels = clip.labels[i].cpu().numpy()
            if labels.min() < 0 or labels.max() > _MAX_COUNT:
                raise Sr3dError(clip.name, "labels", f"{labels.min()} to {labels.max()}", f"0 to {_MAX_COUNT}")
            out[f"{i:03d}.labels.png"] = _encode(labels.astype(np.uint8 if labels.max() < 256 else np.uint16), "png")
    return out


def decode_clip(members: dict[str, Any], source: str, key: str) -> StoredClip:
    """The clip of one sample.

    Args:
        members: Suffix → bytes, as `encode_clip` makes them; other entries are ignored.
        source: File named in errors.
        key: Sample named in errors.

    Raises:
        Sr3dError: A member is missing, cannot be decoded, or has another size than the cameras.
    """
    head = _read_head(_member(members, _CAMERAS, source, key), source, f"{key}.{_CAMERAS}")
    views, shape = head["views"], (head["height"], head["width"])
    cameras = Cameras(
        world_to_cam=_matrices(head, "world_to_cam", 4, source, key),
        K=_matrices(head, "K", 3, source, key),
        width=head["width"],
        height=head["height"],
    )
    cameras.check(source, [f"{key} view {i}" for i in range(views)])

    def planes(ending: str, mode: int, channels: tuple[int, ...]) -> npt.NDArray[Any]:
        names = [f"{i:03d}.{ending}" for i in range(views)]
        return np.stack([_decode(members, n, mode, (*shape, *channels), source, key) for n in names])

    unit = head["depth_unit"]
    return StoredClip(
        images=np.ascontiguousarray(planes(head["image_format"], cv2.IMREAD_COLOR, (3,))[..., ::-1]),
        depths=None if unit is None else planes("depth.png", cv2.IMREAD_UNCHANGED, ()).astype(np.uint16, copy=False),
        depth_unit=unit or 0.0,
        labels=planes("labels.png", cv2.IMREAD_UNCHANGED, ()).astype(np.uint16) if head["labels"] else None,
        cameras=cameras,
        name=head["name"],
    )


def _depth_unit(clip: Scene) -> float:
    assert clip.depths is not None
    if not torch.isfinite(clip.depths).all() or clip.depths.min() < 0:
        raise Sr3dError(clip.name, "depths", "negative, NaN or inf", "finite z-depths, 0 where unknown")
    return float(clip.depths.max()) / _MAX_COUNT or 1.0


def _encode(image: npt.NDArray[Any], image_format: str) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if image_format == "jpg" else []
    return cv2.imencode(f".{image_format}", np.ascontiguousarray(image), options)[1].tobytes()


def _member(members: dict[str, Any], name: str, source: str, key: str) -> bytes:
    if name not in members:
        raise Sr3dError(source, f"{key}.{name}", "missing", "a member of the tar file")
    return members[name]


def _read_head(data: bytes, source: str, field: str) -> dict[str, Any]:
    """The checked content of `cameras.json`, poses and K apart."""
    try:
        head = json.loads(data)
    except ValueError as error:
        raise Sr3dError(source, field, f"{type(error).__name__}: {error}", "JSON") from None
    if not isinstance(head, dict):
        raise Sr3dError(source, field, type(head).__name__, "a JSON object")

    def need(name: str, right: bool, expected: str) -> None:
        if not right:
            raise Sr3dError(source, f"{field}: {name}", repr(head.get(name))[:80], expected)

    for name in ("width", "height", "views"):
        value = head.get(name)
        need(name, isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1 << 16, "1 to 65536")
    need("name", isinstance(head.get("name"), str), "a string")
    need("image_format", head.get("image_format") in ("png", "jpg"), "'png' or 'jpg'")
    need("labels", isinstance(head.get("labels"), bool), "true or false")
    unit = head.get("depth_unit")
    need("depth_unit", unit is None or (isinstance(unit, float | int) and 0 < unit < 1e9), "null, or metres per count")
    return head


def _matrices(head: dict[str, Any], name: str, size: int, source: str, key: str) -> torch.Tensor:
    try:
        out = torch.tensor(head.get(name), dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        out = torch.zeros(0)
    if tuple(out.shape) != (head["views"], size, size):
        expected = f"{head['views']} matrices of {size}x{size} numbers"
        raise Sr3dError(source, f"{key}.{_CAMERAS}: {name}", f"shape {tuple(out.shape)}", expected)
    return out.float()


def _decode(
    members: dict[str, Any], name: str, mode: int, shape: tuple[int, ...], source: str, key: str
) -> npt.NDArray[Any]:
    """One image, of exactly this shape, with 8 bits (colour) or up to 16 bits (depth and labels)."""
    data = np.frombuffer(_member(members, name, source, key), np.uint8)
    try:
        image = cv2.imdecode(data, mode) if len(data) else None
    except cv2.error:
        image = None
    if image is None:
        raise Sr3dError(source, f"{key}.{name}", f"{len(data)} bytes that are no image", "a PNG or JPEG image")
    if image.shape != shape or image.dtype not in (np.uint8, np.uint16):
        found = f"{image.shape[1]}x{image.shape[0]}, {image.size // (image.shape[0] * image.shape[1])} channels"
        expected = f"{shape[1]}x{shape[0]} (cameras.json), {shape[2] if len(shape) > 2 else 1} channels"
        raise Sr3dError(source, f"{key}.{name}", found, expected)
    return image
