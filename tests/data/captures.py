"""Cameras and pictures that the tests of converters write to disk, and what a converter made of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from sr3d.datasets.clip import Clip
from sr3d.datasets.converter import ClipOptions, Converter, Drops, Split


def poses(count: int, seed: int = 3) -> np.ndarray:
    """Camera-to-world matrices of an OpenCV camera that looks at the origin. [V, 4, 4]"""
    rng = np.random.default_rng(seed)
    out = np.tile(np.eye(4), (count, 1, 1))
    for pose in out:
        eye = np.array([2.0, -1.0, 0.7]) + rng.normal(0, 0.3, 3)
        forward = -eye / np.linalg.norm(eye)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
        pose[:3, 3] = eye
    return out


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """A smooth RGB picture. [H, W, 3] uint8"""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 5, 3)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def file_of(image: np.ndarray, kind: str) -> bytes:
    """A picture as the bytes of a "JPEG" or "PNG" file."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind)
    return stream.getvalue()


def write(path: Path, content: bytes | str | np.ndarray) -> Path:
    """Write bytes, text or a picture (16-bit counts or RGB), with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray):
        assert cv2.imwrite(str(path), content[..., ::-1] if content.ndim == 3 else content)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def convert(converter: Converter, src: Path, split: Split = "all", **options: Any) -> tuple[list[Clip], Drops]:
    """All clips of all entries, and what was left out."""
    drops = Drops()
    chosen = ClipOptions(**{"views": 0, "min_views": 1, **options})
    return [clip for entry in converter.entries(src, split) for clip in converter.clips(entry, chosen, drops)], drops


def to_world(clip: Clip) -> np.ndarray:
    """Camera-to-world matrices of a clip. [V, 4, 4]"""
    return np.linalg.inv(np.stack([view.world_to_cam for view in clip.views]))


def decode(data: bytes | None) -> np.ndarray:
    """A picture of a clip; colour as RGB."""
    image = cv2.imdecode(np.frombuffer(data or b"", np.uint8), cv2.IMREAD_UNCHANGED)
    return image[..., ::-1] if image.ndim == 3 else image
