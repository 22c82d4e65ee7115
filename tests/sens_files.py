"""Writes ScanNet's `.sens` files byte by byte, as its `sensorData.h` does."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

COLOR = {"raw": 0, "png": 1, "jpeg": 2}
DEPTH = {"raw": 0, "zlib": 1, "occi": 2}


def intrinsics(K: np.ndarray) -> np.ndarray:
    """4x4, as the files have them."""
    out = np.eye(4)
    out[:3, :3] = K
    return out


def color_bytes(image: np.ndarray, compression: str) -> bytes:
    """One RGB frame [H, W, 3] uint8."""
    if compression == "raw":
        return image.tobytes()
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, compression.upper(), **({"quality": 95} if compression == "jpeg" else {}))
    return stream.getvalue()


def depth_bytes(counts: np.ndarray, compression: str) -> bytes:
    """One depth map [H, W] uint16."""
    data = counts.astype("<u2").tobytes()
    return data if compression == "raw" else zlib.compress(data, 8)


def frame_bytes(camera_to_world: np.ndarray, color: bytes, depth: bytes, sizes: tuple[int, int] | None = None) -> bytes:
    """One frame; `sizes` puts other numbers of bytes into its header."""
    head = camera_to_world.astype("<f4").tobytes() + struct.pack("<QQ", 1000, 1001)
    return head + struct.pack("<QQ", *(sizes or (len(color), len(depth)))) + color + depth


def header_bytes(
    color_K: np.ndarray,
    depth_K: np.ndarray,
    color_size: tuple[int, int],
    depth_size: tuple[int, int],
    count: int,
    *,
    color: str | int = "jpeg",
    depth: str | int = "zlib",
    shift: float = 1000.0,
    version: int = 4,
    name: bytes = b"StructureSensor",
    name_length: int | None = None,
    extrinsics: np.ndarray | None = None,
) -> bytes:
    """Everything before the first frame."""
    matrices = [intrinsics(color_K), np.eye(4), intrinsics(depth_K), np.eye(4) if extrinsics is None else extrinsics]
    out = struct.pack("<IQ", version, len(name) if name_length is None else name_length) + name
    out += b"".join(m.astype("<f4").tobytes() for m in matrices)
    out += struct.pack("<ii", COLOR.get(color, color), DEPTH.get(depth, depth))
    return out + struct.pack("<IIII", *color_size, *depth_size) + struct.pack("<fQ", shift, count)


def imu_bytes(count: int) -> bytes:
    """The records that follow the frames: five vectors of doubles and a time each."""
    return struct.pack("<Q", count) + b"".join(struct.pack("<15dQ", *range(15), 7) for _ in range(count))


def sens_bytes(
    poses: Sequence[np.ndarray],
    images: Sequence[np.ndarray],
    counts: Sequence[np.ndarray],
    color_K: np.ndarray,
    depth_K: np.ndarray,
    **options,
) -> bytes:
    """A whole recording: camera-to-world poses, RGB images and depth counts; `options` of `header_bytes`."""
    color, depth = options.get("color", "jpeg"), options.get("depth", "zlib")
    sizes = (images[0].shape[1], images[0].shape[0]), (counts[0].shape[1], counts[0].shape[0])
    head = header_bytes(color_K, depth_K, *sizes, len(poses), **options)
    frames = [
        frame_bytes(pose, color_bytes(image, color), depth_bytes(count, depth))
        for pose, image, count in zip(poses, images, counts)
    ]
    return head + b"".join(frames) + imu_bytes(2)
