"""RealEstate10K and ACID, in the chunks that pixelSplat reads."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeGuard

import numpy as np
import torch
from torch import Tensor

from sr3d.datasets.assemble import assemble, make_view, pose_problem, whole_image
from sr3d.datasets.clip import Clip, View
from sr3d.datasets.converter import ClipOptions, Drops, Entry, Split, split_of
from sr3d.errors import Sr3dError

_CHUNK = re.compile(r"[0-9]+\.torch")
_FOLDERS = ("train", "validation", "test")
_EXPECTED = "a list of scenes as pixelSplat's: url, timestamps, cameras, images, key"


@dataclass(kw_only=True, frozen=True)
class RealEstate10K:
    """RealEstate10K as pixelSplat's chunks. SRC holds train/ and test/ with 000000.torch, ... and index.json.

    A chunk is a list of scenes: `key`, `url`, `timestamps` int64 [n], `cameras` float32 [n, 18] (fx fy cx cy divided by
    width and height, two unused numbers, a 3x4 OpenCV world-to-camera matrix) and `images`, n tensors of JPEG bytes.
    These bytes are stored as they are. One chunk at a time is in memory (about 100 MB). The scale of the poses is
    arbitrary.

    Splits: "test" is test/. Where there is a validation/ it is "validation" and "train" is all of train/; else the
    tenth of the scenes in train/ whose keys hash to it is "validation" and "train" the rest. Entries are chunks, named
    by split and file.

    Left out and counted: frames with NaN in the pose, without a rotation, of another size than most of their clip (any
    size is taken, not only 640x360), or with a JPEG that is cut off ("pose not finite", "pose not a rotation", "other
    image size", "damaged"); scenes that are not of this form ("damaged"). A chunk that is cut off, or would have to be
    unpickled, is dropped as a whole with a message.
    """

    source: ClassVar[str] = "re10k"
    version: ClassVar[int] = 1
    needs_src: ClassVar[bool] = True
    licence: ClassVar[str] = (
        "cameras CC BY 4.0, Google LLC: https://google.github.io/realestate10k; the videos belong to their uploaders"
    )

    def entries(self, src: Path, split: Split) -> list[Entry]:
        """The chunks with scenes of a split, in the order of their names."""
        parts = [part for part in _FOLDERS if split in ("all", part)]
        folders = {part: src / part for part in parts}
        if "validation" in folders and not folders["validation"].is_dir():
            folders["validation"] = src / "train"
        out = []
        for part, folder in folders.items():
            chunks = sorted(p for p in folder.glob("*.torch") if _CHUNK.fullmatch(p.name)) if folder.is_dir() else []
            if not chunks:
                raise Sr3dError(folder, "chunks", "none", "000000.torch, 000001.torch, ... as pixelSplat reads them")
            _check_index(folder, {p.name for p in chunks})
            out += [Entry(name=f"{part}-{p.stem}", path=p, bytes=p.stat().st_size) for p in chunks]
        return out

    def clips(self, entry: Entry, options: ClipOptions, drops: Drops) -> Iterator[Clip]:
        """The clips of the scenes of a chunk."""
        split = entry.name.split("-")[0]
        shared = entry.path.parent.name == "train" and not (entry.path.parents[1] / "validation").is_dir()
        scenes = read_chunk(entry.path)
        seen, left = set[str](), entry.path.stat().st_size
        while scenes:
            scene = scenes.pop(0)
            try:
                key, cameras, images, times = _parts(scene, entry.path)
                if key in seen:
                    raise Sr3dError(entry.path, "key", f"{key} twice", "a key for every scene")
                # Scenes that share their tensors would make shards far larger than the chunk.
                left -= sum(len(image) for image in images)
                if left < 0:
                    raise Sr3dError(
                        f"{entry.path}: {key}", "images", "more bytes than the file has", "tensors of its own"
                    )
                seen.add(key)
            except Sr3dError as error:
                drops.scene("damaged", str(error))
                continue
            if shared and (split_of(key) == "validation") != (split == "validation"):
                continue
            yield from assemble(
                range(len(images)),
                partial(_view, cameras, images, times, key, options, drops),
                scene=key,
                options=options,
                drops=drops,
                metric=False,
            )


@dataclass(kw_only=True, frozen=True)
class Acid(RealEstate10K):
    """ACID, drone videos of coasts, as pixelSplat's chunks: all as for `re10k`."""

    source: ClassVar[str] = "acid"
    licence: ClassVar[str] = (
        "cameras by Google LLC: https://infinite-nature.github.io; the videos belong to their uploaders"
    )


def read_chunk(path: Path) -> list[Any]:
    """The content of a chunk. Nothing is unpickled but tensors, lists, dictionaries, strings and numbers.

    Raises:
        Sr3dError: The file is missing, cut off, compressed (it could claim any size), needs code to be read, or holds
            no list.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or sum(member.file_size for member in members) > path.stat().st_size:
            raise Sr3dError(path, "chunk", "compressed members", "a file as torch.save writes it")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Sr3dError:
        raise
    # A reader of hostile pickles fails in as many ways as there are pickles.
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise Sr3dError(path, "chunk", reason[:200], "a whole .torch file of tensors") from None
    if not isinstance(content, list):
        raise Sr3dError(path, "chunk", type(content).__name__, _EXPECTED)
    return content


def _check_index(folder: Path, chunks: set[str]) -> None:
    """Raise if `index.json` names a chunk that is not there: a set that was copied in part gives other numbers."""
    path = folder / "index.json"
    if not path.is_file():
        return
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Sr3dError(path, "file", f"{type(error).__name__}: {error}", "JSON: key → chunk") from None
    if not isinstance(index, dict):
        raise Sr3dError(path, "file", type(index).__name__, "JSON: key → chunk")
    missing = sorted({str(name) for name in index.values()} - chunks)
    if missing:
        expected = "every chunk it names (take it away to pack a part)"
        raise Sr3dError(path, "chunks", f"{len(missing)} missing: {', '.join(missing[:3])}", expected)


def _parts(scene: Any, path: Path) -> tuple[str, Tensor, list[Tensor], list[int]]:
    """Key, cameras [n, 18] in float64, JPEG bytes and times of one scene of a chunk."""
    if not isinstance(scene, dict):
        raise Sr3dError(path, "scene", type(scene).__name__, _EXPECTED)
    key, cameras, images, times = (scene.get(name) for name in ("key", "cameras", "images", "timestamps"))
    if not isinstance(key, str) or not 0 < len(key) <= 200:
        raise Sr3dError(path, "key", repr(key)[:60], "the scene's name")
    where = f"{path}: {key}"
    if not isinstance(images, list) or not all(_is_file(image) for image in images):
        raise Sr3dError(where, "images", type(images).__name__, "a list of uint8 tensors of JPEG bytes")
    count = len(images)
    if not _is_plain(cameras) or not cameras.is_floating_point() or cameras.shape != (count, 18):
        raise Sr3dError(where, "cameras", _kind(cameras), f"float32 [{count}, 18], as many as images")
    if not _is_plain(times) or times.is_floating_point() or times.shape != (count,):
        raise Sr3dError(where, "timestamps", _kind(times), f"int64 [{count}], as many as images")
    return key, cameras.double(), images, times.tolist()


def _is_file(image: Any) -> bool:
    # A tensor that repeats one byte by stride 0 would grow when it is read.
    return _is_plain(image) and image.dtype == torch.uint8 and image.ndim == 1 and image.is_contiguous()


def _is_plain(value: Any) -> TypeGuard[Tensor]:
    """Whether something is a tensor with numbers in memory: none that is sparse, without content, or to be learned."""
    return (
        type(value) is Tensor
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.requires_grad
    )


def _kind(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _view(
    cameras: Tensor, images: list[Tensor], times: list[int], key: str, options: ClipOptions, drops: Drops, i: int
) -> View | None:
    """One view of a scene, or None and a drop."""
    where = f"{key}/{times[i]}"
    data = images[i].numpy().tobytes()
    size = whole_image(data)
    world_to_cam = np.eye(4)
    world_to_cam[:3] = cameras[i, 6:].reshape(3, 4).numpy()
    problem = pose_problem(world_to_cam)
    if problem or size is None:
        drops.frame(problem or "damaged", where if problem else f"{where}: no whole 8-bit RGB JPEG or PNG")
        return None
    fx, fy, cx, cy = cameras[i, :4].tolist()
    K = np.array([[fx * size[0], 0, cx * size[0]], [0, fy * size[1], cy * size[1]], [0, 0, 1]])
    try:
        return make_view(
            data,
            size=size,
            K=K,
            world_to_cam=world_to_cam,
            frame=str(times[i]),
            options=options,
            where=key,
        )
    except Sr3dError as error:
        drops.frame("damaged", f"{where}: {error}")
        return None
