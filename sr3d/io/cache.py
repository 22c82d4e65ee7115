"""A folder of copies of bounded size that the processes of a machine share: locks, and room made by removing copies.

A copy is named DIGEST-NAME (64 hexadecimal digits), its lock file DIGEST-NAME.lock, a temporary file on its way to it
.DIGEST-NAME.UNIQUE.part; every other file in the folder is left alone. Only the process that holds the lock of a copy
makes, replaces or removes it or its temporary files, so a temporary file whose lock is free was left by a process that
was killed. Locks end with their process.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

_COPY = re.compile(r"[0-9a-f]{64}-[\w.-]+(?<!\.lock)", re.ASCII)
_TEMPORARY = re.compile(r"\.([0-9a-f]{64}-[\w.-]+)\.[0-9a-f]{32}\.part", re.ASCII)


def open_copy(path: Path, size: int | None) -> BinaryIO | None:
    """Open a copy and mark it as used now; None if there is none, or one that is not `size` bytes long."""
    try:
        if size is None or os.stat(path).st_size == size:
            # A cache that cannot be written can still be read from.
            with suppress(OSError):
                os.utime(path)
            return open(path, "rb")
    except FileNotFoundError:
        pass
    return None


def make_room(path: Path, temporary: Path, length: int, limit: int) -> bool:
    """Let a temporary file have a length, removing the copies used longest ago so that all stays within a limit.

    The temporary file gets this length at once (without taking disk space): that is how other processes see that the
    room is taken.

    Args:
        path: Copy that `temporary` becomes; the caller holds its lock.
        temporary: Exists.
        length: Bytes, at most `limit`.
        limit: Bytes that all copies and temporary files may have together.

    Returns:
        False, with nothing reserved, if the room is needed by downloads that are still running.
    """
    with lock(path.parent / "cache"):
        copies: list[tuple[int, int, Path]] = []
        total = length
        for entry in list(os.scandir(path.parent)):
            found = _TEMPORARY.fullmatch(entry.name)
            if entry.name == temporary.name or not (found or _COPY.fullmatch(entry.name)):
                continue
            with suppress(FileNotFoundError):
                state = entry.stat(follow_symlinks=False)
                if found is None:
                    copies.append((state.st_mtime_ns, state.st_size, Path(entry)))
                elif _remove(Path(entry), path.with_name(found[1]), held=path):
                    continue
                total += state.st_size
        for _, size, copy in sorted(copies):
            if total <= limit:
                break
            if _remove(copy, copy, held=path):
                total -= size
        if total <= limit:
            os.truncate(temporary, length)
    return total <= limit


def publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name; the caller holds the lock of `path`."""
    # Not while another process lists the folder: it could see neither name and take the room twice.
    with lock(path.parent / "cache"):
        os.replace(temporary, path)


def _remove(file: Path, path: Path, held: Path) -> bool:
    """Remove a copy or its temporary file unless somebody else holds its lock; whether it is gone."""
    if path == held:
        return _unlink(file)
    with lock(path, wait=False) as free:
        return free and _unlink(file)


def _unlink(file: Path) -> bool:
    try:
        file.unlink(missing_ok=True)
    except PermissionError:  # Windows keeps files that are open.
        return False
    return True


@contextmanager
def lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of `path`; without `wait` yield False at once if another process holds it.

    Where there are no POSIX file locks (Windows) this warns and excludes nobody: give every process a cache folder of
    its own there.

    Raises:
        OSError: The lock file cannot be made, or its file system has no locks.
    """
    if sys.platform == "win32":
        warnings.warn("no file locks on this system: give every process a cache folder of its own", stacklevel=3)
        yield True
        return
    name = path.with_name(f"{path.name}.lock")
    while True:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _take(descriptor, wait):
                yield False
                return
            # Whoever held the lock before may have removed its file: then it is no longer the one others ask for.
            if _same(descriptor, name):
                try:
                    yield True
                    return
                finally:
                    if not path.exists():
                        name.unlink(missing_ok=True)
        finally:
            # Not left to `close`: a process forked meanwhile has the descriptor too.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _take(descriptor: int, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same(descriptor: int, name: Path) -> bool:
    """Whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(name))
    except FileNotFoundError:
        return False
