"""Remote shards: whole files behind http(s), s3 and gs URLs, kept in a local cache of bounded size.

Processes of one machine share the cache: a file is downloaded once, by whoever asks first, while the others wait. A
copy appears under its name only after its length and SHA-256 were checked, so what a killed process leaves never looks
whole. Room is made before a download by removing the copies used longest ago; on POSIX a process that has such a
copy open or mapped keeps reading it, its disk space is free once the last one closes it.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch
import webdataset as wds
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import get_worker_info

from sr3d.errors import Sr3dError
from sr3d.io.cache import lock, make_room, open_copy, publish
from sr3d.io.transfer import Partial, RemoteConfig, check_url, download, local_path, printable, shown

__all__ = ["Counters", "RemoteConfig", "expand", "fetch", "fetch_open", "is_remote", "join", "read_bytes"]

_STEP = 1 << 26


class Counters:
    """Counts of remote reading, over all data-loading workers of this process and itself.

    The counts lie in shared memory and survive the workers; every worker writes a row of its own, so nothing is
    locked. Hand it to forked or spawned workers (inside a dataset), at most one running set of them at a time.

    Args:
        workers: Most data-loading workers there can be.
    """

    names = ("retries", "downloads", "bytes")

    def __init__(self, workers: int = 128) -> None:
        self.counts: Int64[Tensor, "workers_and_1 3"] = torch.zeros(workers + 1, 3, dtype=torch.int64).share_memory_()

    def add(self, *, retries: int = 0, downloads: int = 0, bytes: int = 0) -> None:
        """Count in the row of the calling worker.

        Raises:
            Sr3dError: More workers than there are rows.
        """
        worker = get_worker_info()
        row = 0 if worker is None else worker.id + 1
        if row >= len(self.counts):
            raise Sr3dError("sr3d.io.remote.Counters", "worker", row - 1, f"below {len(self.counts) - 1} (workers)")
        self.counts[row] += torch.tensor([retries, downloads, bytes])

    def total(self) -> dict[str, int]:
        """Retries, finished downloads and their bytes so far."""
        return dict(zip(self.names, self.counts.sum(0).tolist(), strict=True))


def is_remote(source: str | Path) -> bool:
    """Whether this is a URL (of any scheme: those that are not supported are refused by `fetch`) and no local path."""
    return isinstance(source, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://|(?:file|pipe):", source) is not None


def expand(source: str) -> list[str]:
    """Paths or URLs that webdataset's notation names: `shard-{000000..000009}.tar`, and several joined by `::`.

    Raises:
        Sr3dError: Braces that do not match, an unset variable, or an empty name.
    """
    try:
        names: list[str] = wds.shardlists.expand_urls(source)
    except (ValueError, AssertionError) as error:
        raise Sr3dError(printable(source), "source", printable(str(error)), "braces such as {000000..000009}") from None
    if not all(names):
        raise Sr3dError(printable(source), "source", "an empty name", "names joined by ::")
    return names


def join(base: str, name: str) -> str:
    """URL of a file in the folder `base`; a query of `base` (such as an access token) is kept.

    Raises:
        Sr3dError: `base` is no URL that is supported, or `name` is not a plain file name.
    """
    if not re.fullmatch(r"[\w-][\w.-]*", name, re.ASCII):
        raise Sr3dError(shown(base), "name", repr(printable(name)), "a file name of letters, digits and ._-")
    folder, mark, query = base.partition("?") if base[:4].lower() == "http" else (base, "", "")
    url = f"{folder.rstrip('/')}/{name}{mark}{query}"
    check_url(url)
    return url


def read_bytes(
    url: str,
    config: RemoteConfig,
    limit: int,
    *,
    on_retry: Callable[[str], None] | None = None,
    counters: Counters | None = None,
) -> bytes:
    """Content of a small remote file, such as an index; never cached.

    Args:
        url: http, https, s3, gs or file.
        config: Tries and times.
        limit: Most bytes it may have.
        on_retry: Called with the reason before every retry.
        counters: Counts the retries.

    Raises:
        Sr3dError: See `fetch`; or the file is longer than `limit`.
    """

    def reserve(length: int) -> None:
        if length > limit:
            raise Sr3dError(shown(url), "length", f"{length} bytes or more", f"at most {limit} bytes")

    if check_url(url) == "file":
        with _open_local(url, None) as file:
            content = file.read(limit + 1)
        reserve(len(content))
        return content
    memory = io.BytesIO()
    part = Partial(memory, reserve, None, None)
    download(url, part, config, _retry_counter(on_retry, counters))
    return memory.getvalue()[: part.have]


def fetch(
    url: str,
    config: RemoteConfig,
    *,
    size: int | None = None,
    sha256: str | None = None,
    on_retry: Callable[[str], None] | None = None,
    counters: Counters | None = None,
) -> Path:
    """Local copy of a remote file, downloaded unless the cache has it; see `fetch_open`.

    The copy may be removed as soon as another file is fetched, by this process or another one: open it at once.
    """
    with fetch_open(url, config, size=size, sha256=sha256, on_retry=on_retry, counters=counters) as file:
        return Path(file.name)


def fetch_open(
    url: str,
    config: RemoteConfig,
    *,
    size: int | None = None,
    sha256: str | None = None,
    on_retry: Callable[[str], None] | None = None,
    counters: Counters | None = None,
) -> BinaryIO:
    """A remote file, open for reading (and for mmap) from the cache; downloaded first if it is not there.

    Copies are named after `sha256` (else after the URL) and the file's name: the same shard behind another URL, or
    with another signature in its query, is not downloaded again. Without `size`, `sha256` and a length announced by
    the server a download that ends early cannot be told from a whole one.

    Args:
        url: http, https, s3, gs; or file, which is opened where it is, only its size being checked.
        config: Cache, tries and times.
        size: Bytes the file has; checked at the download and again whenever the copy is used.
        sha256: Hexadecimal digest; checked at the download.
        on_retry: Called with the reason before every retry.
        counters: Counts retries, downloads and bytes.

    Returns:
        Binary file whose `name` is the path of the copy. It stays valid even when the copy is removed (POSIX).

    Raises:
        Sr3dError: The URL is refused; no try succeeded (with the number of tries and the last reason), or none can;
            the file is larger than the whole cache; the cache cannot be written or its disk is full.
    """
    if sha256 is not None and not re.fullmatch("[0-9a-f]{64}", sha256):
        raise Sr3dError(shown(url), "sha256", repr(printable(sha256)), "64 hexadecimal digits")
    if check_url(url) == "file":
        return _open_local(url, size)
    base = re.sub(r"[^\w.-]", "_", url.split("?")[0].rpartition("/")[2], flags=re.ASCII)[-80:] or "file"
    path = config.cache / "shards" / f"{sha256 or hashlib.sha256(url.encode()).hexdigest()}-{base}"
    try:
        if file := open_copy(path, size):
            return file
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock(path):
            if file := open_copy(path, size):
                return file
            path.unlink(missing_ok=True)
            return _download_copy(url, path, config, size, sha256, _retry_counter(on_retry, counters), counters)
    except OSError as error:
        reason = f"{error.strerror or error} while fetching {shown(url)}"
        raise Sr3dError(path.parent, "cache", reason, "a folder on a disk with room, that can be written") from None


def _retry_counter(on_retry: Callable[[str], None] | None, counters: Counters | None) -> Callable[[str], None]:
    """One function that counts and reports a retry."""

    def call(reason: str) -> None:
        if counters is not None:
            counters.add(retries=1)
        if on_retry is not None:
            on_retry(reason)

    return call


def _open_local(url: str, size: int | None) -> BinaryIO:
    path = local_path(url)
    try:
        found = os.stat(path).st_size
        if size is None or found == size:
            return open(path, "rb")
    except OSError as error:
        raise Sr3dError(path, "file", error.strerror or error, "a file that can be read") from None
    raise Sr3dError(path, "size", f"{found} bytes", f"{size} bytes")


def _download_copy(
    url: str,
    path: Path,
    config: RemoteConfig,
    size: int | None,
    sha256: str | None,
    on_retry: Callable[[str], None],
    counters: Counters | None,
) -> BinaryIO:
    """Download into a temporary file, check it and give it its name. The caller holds the copy's lock."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    limit, held = int(config.cache_gb * 1e9), 0

    def reserve(length: int) -> None:
        nonlocal held
        if length > limit:
            size_gb = f"at least {length / 1e9:g} GB for this file"
            raise Sr3dError(shown(url), "cache_gb", f"{config.cache_gb:g} GB", size_gb)
        if length <= held:
            return
        # Where nobody knows the length beforehand room is made in steps, not for every chunk.
        target = length if held == 0 else max(length, min(held + _STEP, limit))
        while not make_room(path, temporary, target, limit):
            if held:
                raise Sr3dError(
                    path.parent, "cache_gb", f"{config.cache_gb:g} GB", "room for all that is downloaded now"
                )
            time.sleep(0.1)
        held = target

    try:
        with open(temporary, "xb", buffering=0) as file:
            if size is not None:
                reserve(size)
            part = Partial(file, reserve, size, sha256)
            download(url, part, config, on_retry)
            file.truncate(part.have)
            os.fsync(file.fileno())
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if counters is not None:
        counters.add(downloads=1, bytes=part.have)
    return open(path, "rb")
