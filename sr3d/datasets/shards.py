"""Shards: tar files of clips (webdataset) and their index. `docs/shards.md` describes the format.

Nothing that is read is unpickled, executed or unpacked to disk.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import webdataset as wds

from sr3d.datasets.clip import Clip, ImageFormat, scene_clip
from sr3d.datasets.index import FILE, Index, ShardEntry, parse_index
from sr3d.datasets.sample import StoredClip, encode_sample
from sr3d.datasets.tar import samples
from sr3d.errors import Sr3dError
from sr3d.io.remote import Counters, RemoteConfig, expand, fetch_open, is_remote, join, read_bytes
from sr3d.scene import Scene

_INDEX_BYTES = 1 << 30


@dataclass(kw_only=True)
class Shard:
    """One tar file, and what the index says of it (None where there is no index).

    Attributes:
        url: Path or address.
        entry: Its line in the index.
        source: Data set, as the index names it.
    """

    url: str
    entry: ShardEntry | None = None
    source: str = "unknown"


def write_shards(
    clips: Iterable[Scene | Clip],
    folder: str | Path,
    *,
    shard_bytes: int = 200_000_000,
    image_format: ImageFormat = "png",
    options: dict[str, Any] | None = None,
) -> Path:
    """Write clips into tar files and an index, one after the other. `sr3d.datasets.pack` does it for whole data sets.

    Args:
        clips: Posed scenes or clips; taken one at a time, never all in memory.
        folder: Made if missing; must not hold an index yet.
        shard_bytes: A tar file is closed when it has reached this size.
        image_format: Of the images of scenes: "png" keeps 8-bit images exactly; "jpg" (quality 95) is much smaller.
        options: Written into the index as they are (how the clips were made).

    Returns:
        Path of the index.

    Raises:
        Sr3dError: The folder holds shards already, there are no clips, or a clip has no poses.
    """
    folder = Path(folder)
    index = folder / FILE
    if index.exists():
        raise Sr3dError(index, "folder", "shards that are there already", "a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    whole = (clip if isinstance(clip, Clip) else scene_clip(clip, image_format) for clip in clips)
    entries = write_tars(whole, folder, "shard", 0, shard_bytes)
    if not entries:
        raise Sr3dError(folder, "clips", "none", "at least one")
    Index(
        source="python",
        converter_version=0,
        writer=writer(),
        split="all",
        licence="unknown",
        options={"image_format": image_format, **(options or {})},
        dropped={"frames": {}, "scenes": {}, "examples": []},
        shards=entries,
    ).write(index)
    return index


def writer() -> str:
    """Program and version, as the index names them."""
    return f"sr3d {importlib.metadata.version('sr3d')}"


def write_tars(clips: Iterable[Clip], folder: Path, stem: str, number: int, shard_bytes: int) -> list[ShardEntry]:
    """Write clips into `STEM-NNNNNN-00.tar`, `-01.tar` and so on; a file appears when it is whole.

    Args:
        clips: Taken one at a time.
        folder: Exists.
        stem: Of the file names.
        number: Of the file names, and of the keys of the samples.
        shard_bytes: A tar file is closed when it has reached this size.

    Returns:
        What the index says of each file.

    Raises:
        Sr3dError: A file cannot be written (the disk is full), or whatever taking the clips raises.
    """
    entries: list[ShardEntry] = []
    stream = iter(clips)
    count, clip = 0, next(stream, None)
    while clip is not None:
        path = folder / f"{stem}-{number:06d}-{len(entries):02d}.tar"
        names, scenes, offsets, views = list[str](), list[str](), list[int](), 0
        # A name of its own for every try: two processes on one file would otherwise mix their bytes.
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                with wds.TarWriter(file, encoder=False, mtime=0) as tar:
                    while clip is not None and (not names or tar.tarstream.offset < shard_bytes):
                        offsets.append(tar.tarstream.offset)
                        tar.write({"__key__": f"{number:06d}-{count:04d}", **encode_sample(clip)})
                        names.append(clip.name)
                        scenes.append(clip.scene)
                        views += len(clip.views)
                        count, clip = count + 1, next(stream, None)
                file.flush()
                os.fsync(file.fileno())
            size, digest = checksum(Path(temporary))
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except OSError as error:
            found, expected = error.strerror or error, "room and the right to write"
            if isinstance(error, FileNotFoundError) and folder.is_dir():
                found, expected = (
                    "its unfinished part gone",
                    "one run at a time for a task: does another one pack here?",
                )
            raise Sr3dError(path, "tar file", found, expected) from None
        finally:
            Path(temporary).unlink(missing_ok=True)
        entries.append(
            ShardEntry(
                file=path.name, bytes=size, sha256=digest, offsets=offsets, names=names, scenes=scenes, views=views
            )
        )
    return entries


def checksum(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def is_tar(source: str | Path) -> bool:
    """Whether a path or an address names a tar file."""
    return (urlsplit(str(source)).path if is_remote(source) else str(source)).endswith(".tar")


def read_index(source: str | Path, remote: RemoteConfig | None = None, counters: Counters | None = None) -> Index:
    """The index of a folder of shards.

    Args:
        source: The folder, its `index.json`, or the address of either.
        remote: How addresses are read.
        counters: Takes note of retries.

    Raises:
        Sr3dError: It is missing, broken, or of another version.
    """
    if is_remote(source):
        url = str(source) if str(source).endswith(".json") else join(str(source), FILE)
        return parse_index(read_bytes(url, remote or RemoteConfig(), _INDEX_BYTES, counters=counters), url)
    path = Path(source) if Path(source).suffix == ".json" else Path(source) / FILE
    try:
        return parse_index(path.read_bytes(), path)
    except FileNotFoundError:
        raise Sr3dError(path, "file", "missing", "the index that `sr3d pack` leaves beside its tar files") from None
    except OSError as error:
        raise Sr3dError(path, "file", error.strerror or error, "a readable file") from None


def list_shards(
    source: str | Path | Sequence[str | Path], remote: RemoteConfig | None = None, counters: Counters | None = None
) -> list[Shard]:
    """The tar files of a folder with an index, or those given by path or address.

    Args:
        source: A folder with `index.json`, that file, a tar file, the address (http, https, s3, gs) of one of these, an
            address with webdataset's braces (`shard-{000000..000009}-00.tar`), or a list of all of these.
        remote: How addresses are read.
        counters: Takes note of retries.

    Raises:
        Sr3dError: No or a broken index, or a local tar file that is missing or has another size than the index says.
    """
    if not isinstance(source, str | Path):
        return [s for part in source for s in list_shards(part, remote, counters)]
    if is_tar(source):
        names = expand(str(source)) if is_remote(source) or "{" in str(source) else [str(source)]
        shards = [Shard(url=name) for name in names]
    else:
        folder = str(source).removesuffix(FILE)
        index = read_index(source, remote, counters)
        if is_remote(source):
            shards = [Shard(url=join(folder, e.file), entry=e, source=index.source) for e in index.shards]
        else:
            shards = [Shard(url=str(Path(folder) / e.file), entry=e, source=index.source) for e in index.shards]
    for shard in shards:
        if not is_remote(shard.url):
            _check_whole(Path(shard.url), shard.entry)
    return shards


def read_clips(shard: Shard, remote: RemoteConfig | None = None) -> Iterator[StoredClip]:
    """Every clip of one tar file, in stored order, every member name checked.

    Raises:
        Sr3dError: The file is no tar file, is cut short, has a member of another name than this format's, or has
            another number of clips than the index says.
    """
    count = 0
    for _, key, members in samples(_mapped(shard, remote or RemoteConfig()), shard.url):
        count += 1
        yield StoredClip(members, shard.url, key)
    if not count or (shard.entry is not None and count != shard.entry.clips):
        expected = "1 or more" if shard.entry is None else f"{shard.entry.clips} (index.json)"
        raise Sr3dError(shard.url, "clips", count, expected)


class ShardReader:
    """Random access to the clips of shards; remote ones are fetched when they are first needed.

    Args:
        shards: From `list_shards`. Those without index are read through once, here.
        remote: How addresses are read.
        counters: Takes note of downloads and retries, over all workers.
    """

    def __init__(self, shards: Sequence[Shard], remote: RemoteConfig, counters: Counters | None = None) -> None:
        self.shards, self.remote, self.counters = list(shards), remote, counters
        self._offsets = [s.entry.offsets if s.entry else self._walk(s) for s in self.shards]

    @property
    def counts(self) -> list[int]:
        """Number of clips per shard."""
        return [len(offsets) for offsets in self._offsets]

    def places(self) -> dict[str, tuple[int, int]]:
        """Name of every clip → its shard and its number there. Without index every clip is read for it."""
        out = {}
        for shard, offsets in enumerate(self._offsets):
            entry = self.shards[shard].entry
            for clip in range(len(offsets)):
                out[entry.names[clip] if entry else self.read(shard, clip).name] = (shard, clip)
        return out

    def read(self, shard: int, clip: int) -> StoredClip:
        """One clip.

        Raises:
            Sr3dError: The shard cannot be fetched, or is damaged.
        """
        offsets, last = self._offsets[shard], clip + 1 == len(self._offsets[shard])
        url, start = self.shards[shard].url, offsets[clip]
        with _open(self.shards[shard], self.remote, self.counters) as file:
            file.seek(start)
            data = memoryview(file.read(-1 if last else offsets[clip + 1] - start))
        found = list(samples(data, url, whole=last))
        if len(found) != 1:
            raise Sr3dError(url, f"samples at byte {start}", len(found), "one, up to the next offset (index.json)")
        _, key, members = found[0]
        out, entry = StoredClip(members, url, key), self.shards[shard].entry
        if entry is not None and out.name != entry.names[clip]:
            raise Sr3dError(url, f"name of {key}", repr(out.name), f"{entry.names[clip]!r} (index.json)")
        return out

    def _walk(self, shard: Shard) -> list[int]:
        return [offset for offset, _, _ in samples(_mapped(shard, self.remote, self.counters), shard.url)]


def _open(shard: Shard, remote: RemoteConfig, counters: Counters | None = None) -> BinaryIO:
    """The file of a shard: itself, or its whole and verified copy in the cache."""
    if is_remote(shard.url):
        size, digest = (shard.entry.bytes, shard.entry.sha256) if shard.entry else (None, None)
        return fetch_open(shard.url, remote, size=size, sha256=digest, counters=counters)
    try:
        return Path(shard.url).open("rb")
    except OSError as error:
        raise Sr3dError(shard.url, "tar file", error.strerror or error, "a readable tar file") from None


def _mapped(
    shard: Shard, remote: RemoteConfig, counters: Counters | None = None, start: int = 0, length: int = 0
) -> memoryview:
    """Bytes of a shard (all from `start` on if `length` is 0), not copied; given back when nobody looks at them."""
    try:
        with _open(shard, remote, counters) as file:
            return memoryview(mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=start))
    except (OSError, ValueError) as error:
        if isinstance(error, Sr3dError):
            raise
        raise Sr3dError(shard.url, "tar file", f"{type(error).__name__}: {error}", "a readable tar file") from None


def _check_whole(path: Path, entry: ShardEntry | None) -> None:
    """Raise if a tar file is missing, has another size than its index says, or lacks the zeros that end a tar."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            file.seek(max(0, size - 1024))
            end = file.read()
    except OSError as error:
        raise Sr3dError(path, "tar file", error.strerror or type(error).__name__, "a readable tar file") from None
    if entry is not None and size != entry.bytes:
        raise Sr3dError(path, "size", f"{size} bytes", f"{entry.bytes} bytes (index.json): copy it again")
    if end != bytes(1024):
        raise Sr3dError(path, "tar file", f"no end mark after {size} bytes", "a whole, uncompressed tar file")
