"""Shards: clips of posed views in tar files (webdataset), read as a stream.

One sample is one clip. With KEY a number, a tar holds

    KEY.cameras.json        name, width, height, world_to_cam and K of every view (float64), metres per depth count
    KEY.000.png  (or jpg)   view 0, 8-bit RGB
    KEY.000.depth.png       16-bit z-depth in counts, 0 where unknown (optional)
    KEY.000.labels.png      8- or 16-bit class or instance ids (optional)

and `index.json` in the folder lists the tar files with clip counts, sizes and SHA-256. Nothing that is read is
unpickled, executed or unpacked to disk.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import random
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import webdataset as wds
from torch.utils.data import IterableDataset, get_worker_info

from sr3d.datasets.clip import StoredClip, decode_clip, encode_clip
from sr3d.errors import Sr3dError
from sr3d.scene import Scene

_FORMAT, _VERSION = "sr3d-shards", 1
_SHUFFLE_BUFFER = 200


@dataclass(kw_only=True)
class Shard:
    """One tar file, and what the index says of it (None where there is no index)."""

    path: Path
    clips: int | None = None
    size: int | None = None


def write_shards(
    clips: Iterable[Scene],
    folder: str | Path,
    *,
    shard_bytes: int = 200_000_000,
    image_format: Literal["png", "jpg"] = "png",
    options: dict[str, Any] | None = None,
) -> Path:
    """Write clips into tar files and an index.

    Args:
        clips: Posed scenes; taken one at a time, never all in memory.
        folder: Made if missing; must not hold an index yet.
        shard_bytes: A tar file is closed when it has reached this size.
        image_format: "png" keeps 8-bit images exactly; "jpg" (quality 95) is several times smaller.
        options: Written into the index as they are (how the clips were made).

    Returns:
        Path of the index.

    Raises:
        Sr3dError: The folder holds shards already, there are no clips, or a clip has no poses.
    """
    folder = Path(folder)
    index = folder / "index.json"
    if index.exists():
        raise Sr3dError(index, "folder", "shards that are there already", "a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    count, stream = 0, iter(clips)
    clip = next(stream, None)
    while clip is not None:
        path = folder / f"shard-{len(entries):06d}.tar"
        temporary = path.with_name(f".{path.name}.part")
        names: list[str] = []
        try:
            with open(temporary, "wb") as file, wds.TarWriter(file, encoder=False, mtime=0) as tar:
                while clip is not None and (not names or file.tell() < shard_bytes):
                    tar.write({"__key__": f"{count:08d}", **encode_clip(clip, image_format)})
                    names.append(clip.name)
                    count, clip = count + 1, next(stream, None)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        entries.append(_entry(path, names))
    if not entries:
        raise Sr3dError(folder, "clips", "none", "at least one")
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "writer": f"sr3d {importlib.metadata.version('sr3d')}",
        "options": {"image_format": image_format, **(options or {})},
        "clips": count,
        "shards": entries,
    }
    part = index.with_name(".index.json.part")
    part.write_text(json.dumps(content, indent=1))
    os.replace(part, index)
    return index


def list_shards(source: str | Path | Sequence[str | Path]) -> list[Shard]:
    """The tar files of a folder with an `index.json`, or those given by path.

    Raises:
        Sr3dError: No or a broken index, or a tar file that is missing or has another size than the index says.
    """
    if not isinstance(source, str | Path):
        shards = [s for part in source for s in list_shards(part)]
    elif Path(source).suffix == ".tar":
        shards = [Shard(path=Path(source))]
    else:
        shards = _read_index(Path(source) / "index.json")
    for shard in shards:
        _check_whole(shard)
    return shards


class ShardDataset(IterableDataset[Scene]):
    """Streams the clips of shards.

    Every process of a distributed run and every data-loading worker gets its own part: whole tar files where there
    are enough of them, else every n-th clip. Each pass is one epoch, counted by the dataset itself: keep workers alive
    (`persistent_workers=True`) for a new order in every epoch.

    Args:
        source: Folder with an index, a tar file, or a list of these.
        shuffle: Draw the order of tar files and clips from (seed, epoch); else the order they are stored in.
        seed: Of that order.
        epoch: Number of the first pass.
        even: Give every worker of every process equally many clips (rounded down, at least one), so that processes
            that wait for each other in every step finish together. Needs an index.
        cache: Keep decoded clips (8-bit images) in memory; for sets that fit.

    Raises:
        Sr3dError: See `list_shards`; while reading, any tar file or member that is broken.
    """

    def __init__(
        self,
        source: str | Path | Sequence[str | Path],
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        even: bool = False,
        cache: bool = False,
    ) -> None:
        super().__init__()
        self.shards = list_shards(source)
        self.shuffle, self.seed, self.epoch, self.even, self.cache = shuffle, seed, epoch, even, cache
        self._decoded: dict[tuple[str, str], StoredClip] = {}
        if even and self.clips is None:
            raise Sr3dError("sr3d.datasets.ShardDataset", "even", "tar files without index", "a folder with index.json")

    @property
    def clips(self) -> int | None:
        """How many clips there are in all, if the indexes say so."""
        counts = [s.clips for s in self.shards]
        return None if None in counts else sum(c for c in counts if c is not None)

    def __iter__(self) -> Iterator[Scene]:
        part, parts = worker_part()
        rng = random.Random(f"{self.seed} {self.epoch}")
        self.epoch += 1
        if not self.even:
            yield from self._pass(rng, part, parts)
            return
        left = max(1, (self.clips or 0) // parts)
        while left:
            before = left
            for clip in self._pass(rng, part, parts):
                yield clip
                left -= 1
                if not left:
                    return
            if left == before:
                raise Sr3dError(self.shards[0].path, "clips", self.clips, f"at least {parts} (processes x workers)")

    def _pass(self, rng: random.Random, part: int, parts: int) -> Iterator[Scene]:
        """One pass over this worker's clips."""
        shards = list(self.shards)
        # With a cache every worker keeps to the same clips, else each would come to hold all of them.
        if self.shuffle and not self.cache:
            rng.shuffle(shards)
        by_shard = len(shards) >= parts
        samples = (s for shard in (shards[part::parts] if by_shard else shards) for s in read_samples(shard))
        mine = (s for i, s in enumerate(samples) if by_shard or i % parts == part)
        if self.shuffle:
            own = random.Random(f"{rng.random()} {part}")
            mine = wds.shuffle(_SHUFFLE_BUFFER, initial=_SHUFFLE_BUFFER, rng=own)(mine)
        for sample in mine:
            name = (sample["__url__"], sample["__key__"])
            clip = self._decoded.get(name) or decode_clip(sample, *name)
            if self.cache:
                self._decoded[name] = clip
            yield clip.scene()


def worker_part() -> tuple[int, int]:
    """Number of this data-loading worker among those of all processes, and how many there are."""
    ranks = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if ranks else (0, 1)
    info = get_worker_info()
    worker, workers = (info.id, info.num_workers) if info else (0, 1)
    return rank * workers + worker, world * workers


def read_samples(shard: Shard) -> Iterator[dict[str, Any]]:
    """Raw members of every clip of one tar file: suffix → bytes, plus `__key__` and `__url__` (the path).

    Raises:
        Sr3dError: The file is no tar file, is cut short, has a member of another name than this format's, or has
            another number of clips than the index says.
    """
    _check_whole(shard)
    count = 0
    try:
        with open(shard.path, "rb") as file:
            members = wds.tariterators.tar_file_expander([{"url": str(shard.path), "stream": file}])
            for sample in wds.tariterators.group_by_keys(members, keys=_split_name, lcase=False):
                count += 1
                yield sample
    except _BadName as error:
        expected = "names such as 00000000.cameras.json, 00000000.000.png, 00000000.000.depth.png"
        raise Sr3dError(shard.path, "member", repr(str(error.args[0])), expected) from None
    except (tarfile.TarError, ValueError, OSError, EOFError) as error:
        if isinstance(error, Sr3dError):
            raise
        reason = str(error.args[0]).split(" @ ")[0]
        raise Sr3dError(shard.path, "tar file", f"{type(error).__name__}: {reason}", "a readable tar file") from None
    if shard.clips is not None and count != shard.clips:
        raise Sr3dError(shard.path, "clips", count, f"{shard.clips} (index.json)")


class _BadName(Exception):
    """A member whose name is not of this format."""


_MEMBER = re.compile(r"([0-9A-Za-z_-]+)\.(cameras\.json|[0-9]{3,}\.(?:png|jpg|depth\.png|labels\.png))", re.ASCII)


def _split_name(name: str) -> tuple[str, str]:
    match = _MEMBER.fullmatch(name)
    if match is None:
        raise _BadName(name)
    return match[1], match[2]


def _entry(path: Path, names: list[str]) -> dict[str, Any]:
    """What the index says of one tar file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "clips": len(names), "bytes": path.stat().st_size, "sha256": digest, "names": names}


def _read_index(path: Path) -> list[Shard]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise Sr3dError(path, "file", "missing", "the index that `write_shards` leaves beside its tar files") from None
    except (OSError, ValueError) as error:
        raise Sr3dError(path, "content", f"{type(error).__name__}: {error}", "JSON") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT or content.get("version") != _VERSION:
        raise Sr3dError(path, "format", str(content)[:80], f"{_FORMAT} version {_VERSION}")
    entries = content.get("shards")
    if not isinstance(entries, list) or not entries:
        raise Sr3dError(path, "shards", entries, "a list of at least one tar file")
    shards = []
    for i, entry in enumerate(entries):
        name, clips, size = (
            (entry.get(k) for k in ("file", "clips", "bytes")) if isinstance(entry, dict) else (None,) * 3
        )
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*\.tar", name, re.ASCII):
            raise Sr3dError(path, f"shards[{i}].file", repr(name), "the name of a tar file in this folder")
        for field, value in (("clips", clips), ("bytes", size)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise Sr3dError(path, f"shards[{i}].{field}", repr(value), "a whole number above 0")
        shards.append(Shard(path=path.parent / name, clips=clips, size=size))
    return shards


def _check_whole(shard: Shard) -> None:
    """Raise if a tar file is missing, has another size than its index says, or lacks the zeros that end a tar."""
    try:
        size = shard.path.stat().st_size
        with open(shard.path, "rb") as file:
            file.seek(max(0, size - 1024))
            end = file.read()
    except OSError as error:
        raise Sr3dError(shard.path, "tar file", error.strerror or type(error).__name__, "a readable tar file") from None
    if shard.size is not None and size != shard.size:
        raise Sr3dError(shard.path, "size", f"{size} bytes", f"{shard.size} bytes (index.json): copy it again")
    if end != bytes(1024):
        raise Sr3dError(shard.path, "tar file", f"no end mark after {size} bytes", "a whole, uncompressed tar file")
