"""ScanNet's `.sens` recordings, version 4, read frame by frame.

The layout is that of `SensReader` (`sensorData.h`, `SensorData.py`), little-endian and without padding:

    uint32 version, uint64 + bytes sensor name,
    float32 4x4 colour intrinsics, colour extrinsics, depth intrinsics, depth extrinsics (row-major),
    int32 colour compression (0 raw, 1 png, 2 jpeg), int32 depth compression (0 raw, 1 zlib, 2 occi),
    uint32 colour width, height, depth width, height, float32 depth shift (counts per metre), uint64 frames,
    per frame: float32 4x4 camera to world (OpenCV axes; -inf where tracking was lost), uint64 colour and depth time,
    uint64 colour and depth bytes, the colour file, the depth map;
    then IMU records, which are not read.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from numpy.typing import NDArray

from sr3d.errors import Sr3dError

_VERSION = 4
_COLOR = ("raw", "png", "jpeg")
_DEPTH = ("raw", "zlib", "occi")
_FRAME = struct.Struct("<16f4Q")
_MAX_SIDE = 8192
_MAX_NAME = 4096
_MOST_FRAMES = 1_000_000


@dataclass(kw_only=True, frozen=True)
class SensFrame:
    """Pose of a frame, and where its colour and its depth lie in the file.

    Attributes:
        camera_to_world: As stored, OpenCV axes, metres; not finite where tracking was lost. [4, 4]
        color_at: First byte of the colour file, which `depth_at` follows.
        color_bytes: Its size.
        depth_at: First byte of the depth map.
        depth_bytes: Its size; 0 if there is none.
    """

    camera_to_world: Float64[np.ndarray, "4 4"]
    color_at: int
    color_bytes: int
    depth_at: int
    depth_bytes: int


@dataclass(kw_only=True, frozen=True)
class Sens:
    """Header and frame index of a recording; pixels are read when they are asked for.

    Attributes:
        path: The file.
        color_K: Pixels of the colour image, as the file has it. [3, 3]
        depth_K: The same of the depth map. [3, 3]
        color_size: Width and height.
        depth_size: Width and height.
        color_compression: "raw", "png" or "jpeg".
        depth_compression: "raw" or "zlib".
        depth_shift: Counts per metre.
        frames: In the order of the recording.
    """

    path: Path
    color_K: Float64[np.ndarray, "3 3"]
    depth_K: Float64[np.ndarray, "3 3"]
    color_size: tuple[int, int]
    depth_size: tuple[int, int]
    color_compression: str
    depth_compression: str
    depth_shift: float
    frames: list[SensFrame]

    def color(self, index: int) -> bytes | UInt8[np.ndarray, "h w 3"]:
        """The colour file of a frame as stored (padding zeros at its end left out), or its pixels if they are raw.

        Raises:
            Sr3dError: The file cannot be read, or raw pixels are of another size than the header says.
        """
        frame = self.frames[index]
        data = self._read(frame.color_at, frame.color_bytes)
        if self.color_compression != "raw":
            return data.rstrip(b"\0")
        width, height = self.color_size
        self._size(f"colour of frame {index}", len(data), width * height * 3)
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)

    def depth(self, index: int) -> Float32[np.ndarray, "h w"]:
        """z-depth of a frame in metres, at the pixels of the depth camera; 0 where unknown.

        Raises:
            Sr3dError: The map is damaged, or of another size than the header says.
        """
        width, height = self.depth_size
        frame, wanted = self.frames[index], width * height * 2
        data = self._read(frame.depth_at, frame.depth_bytes)
        if self.depth_compression == "zlib":
            try:
                # One byte more than is right shows a map that is too long without unpacking all of it.
                data = zlib.decompressobj().decompress(data, wanted + 1)
            except zlib.error as error:
                raise Sr3dError(self.path, f"depth of frame {index}", error, "zlib data") from error
        self._size(f"depth of frame {index}", len(data), wanted)
        counts = np.frombuffer(data, "<u2").reshape(height, width)
        return (counts / np.float32(self.depth_shift)).astype(np.float32)

    def _size(self, field: str, found: int, wanted: int) -> None:
        if found != wanted:
            raise Sr3dError(self.path, field, f"{found} bytes or more", f"{wanted} bytes")

    def _read(self, at: int, count: int) -> bytes:
        try:
            with self.path.open("rb") as stream:
                stream.seek(at)
                data = stream.read(count)
        except OSError as error:
            raise Sr3dError(self.path, "file", error, "a readable file") from error
        if len(data) < count:
            raise Sr3dError(self.path, "size", f"{at + len(data)} bytes", f"{at + count}: it was cut off meanwhile")
        return data


def read_sens(path: str | Path) -> Sens:
    """Read the header and walk over the frames, whose sizes are checked against the size of the file.

    Args:
        path: A `.sens` file.

    Raises:
        Sr3dError: The file is missing, of another version, cut off, or its header is impossible; depth is compressed
            with OpenNI's codec; or colour and depth camera stand apart (extrinsics that are not the identity).
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, io.SEEK_END)
            stream.seek(0)
            return _Reader(path, stream, size).sens()
    except OSError as error:
        raise Sr3dError(path, "file", error, "a readable .sens file") from error


class _Reader:
    """Little-endian fields of an open file, one after the other."""

    def __init__(self, path: Path, stream: BinaryIO, size: int) -> None:
        self.path, self.stream, self.size = path, stream, size

    def take(self, layout: struct.Struct) -> tuple:
        data = self.stream.read(layout.size)
        self.need(self.stream.tell() + layout.size - len(data), "header")
        return layout.unpack(data)

    def need(self, end: int, what: str) -> None:
        if end > self.size:
            expected = f"at least {end} for its {what}: the file is cut off"
            raise Sr3dError(self.path, "size", f"{self.size} bytes", expected)

    def sens(self) -> Sens:
        version, name = self.take(struct.Struct("<IQ"))
        if version != _VERSION:
            raise Sr3dError(self.path, "version", version, _VERSION)
        if name > _MAX_NAME:
            raise Sr3dError(self.path, "length of the sensor's name", name, f"at most {_MAX_NAME}")
        self.need(self.stream.tell() + name, "sensor name")
        self.stream.seek(name, io.SEEK_CUR)
        matrices = np.array(self.take(struct.Struct("<64f")), np.float64).reshape(4, 4, 4)
        color, depth = self.take(struct.Struct("<2i"))
        sides = self.take(struct.Struct("<4I"))
        shift, count = self.take(struct.Struct("<fQ"))
        depth_compression = self.name("depth compression", depth, _DEPTH)
        if depth_compression == "occi":
            expected = "raw or zlib: export the frames with ScanNet's SensReader"
            raise Sr3dError(self.path, "depth compression", "occi_ushort", expected)
        if not 0 < shift < float("inf"):
            raise Sr3dError(self.path, "depth shift", shift, "counts per metre, > 0")
        if max(sides) > _MAX_SIDE or min(sides) < 1:
            raise Sr3dError(self.path, "image sizes", sides, f"1 to {_MAX_SIDE} pixels")
        for extrinsics, camera in zip(matrices[1::2], ("colour", "depth")):
            if not np.abs(extrinsics - np.eye(4)).max() < 1e-3:
                found = np.array2string(extrinsics, precision=4).replace("\n", "")
                raise Sr3dError(self.path, f"extrinsics of the {camera} camera", found, "the identity, as in ScanNet")
        return Sens(
            path=self.path,
            color_K=matrices[0, :3, :3],
            depth_K=matrices[2, :3, :3],
            color_size=(sides[0], sides[1]),
            depth_size=(sides[2], sides[3]),
            color_compression=self.name("colour compression", color, _COLOR),
            depth_compression=depth_compression,
            depth_shift=float(shift),
            frames=self.frames(count),
        )

    def name(self, field: str, number: int, names: Sequence[str]) -> str:
        if not 0 <= number < len(names):
            raise Sr3dError(self.path, field, number, f"0 to {len(names) - 1}: {', '.join(names)}")
        return names[number]

    def frames(self, count: int) -> list[SensFrame]:
        if count > _MOST_FRAMES:
            raise Sr3dError(self.path, "frames", count, f"at most {_MOST_FRAMES:,}: nine hours of video")
        self.need(self.stream.tell() + count * _FRAME.size, f"{count} frames")
        out = []
        for i in range(count):
            fields = self.take(_FRAME)
            at, color, depth = self.stream.tell(), fields[-2], fields[-1]
            self.need(at + color + depth, f"frame {i} of {count}")
            pose: NDArray[np.float64] = np.array(fields[:16], np.float64).reshape(4, 4)
            frame = SensFrame(
                camera_to_world=pose, color_at=at, color_bytes=color, depth_at=at + color, depth_bytes=depth
            )
            out.append(frame)
            self.stream.seek(color + depth, io.SEEK_CUR)
        return out
