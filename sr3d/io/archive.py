"""Zip archives of strangers: members are read into memory one at a time, nothing is unpacked to disk."""

from __future__ import annotations

import lzma
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import TracebackType

from sr3d.errors import Sr3dError

# All that `zipfile` is known to raise for damaged archives.
_DAMAGED = (
    OSError, ValueError, RuntimeError, EOFError, MemoryError, OverflowError, struct.error, zipfile.BadZipFile,
    zlib.error, lzma.LZMAError,
)  # fmt: skip


class ZipMembers:
    """The files of a zip archive, by name; a context manager.

    Names that would leave the folder they are unpacked to (absolute, with a drive, with ".."), links and encrypted
    members make the whole archive unusable, whether they are asked for or not: no honest archive has them.

    Args:
        path: The archive.

    Raises:
        Sr3dError: It is missing, damaged, no zip archive, or has such members.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._archive = zipfile.ZipFile(self.path)
        except _DAMAGED as error:
            raise Sr3dError(path, "archive", f"{type(error).__name__}: {error}", "a complete zip file") from error
        try:
            self._members = {info.filename: info for info in self._archive.infolist() if not info.is_dir()}
            for info in self._archive.infolist():
                _check(self.path, info)
        except Sr3dError:
            self._archive.close()
            raise

    def __enter__(self) -> ZipMembers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._archive.close()

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def names(self) -> list[str]:
        """Names of all files, in the order of the archive."""
        return list(self._members)

    def read(self, name: str, limit: int) -> bytes:
        """A file's content.

        Args:
            name: One of `names()`.
            limit: Most bytes that the file may have unpacked; a larger one is refused before it is unpacked.

        Raises:
            Sr3dError: There is no such file, it is damaged, or it is larger than `limit`.
        """
        info = self._members.get(name)
        if info is None:
            raise Sr3dError(self.path, "member", "none", name)
        if info.file_size > limit:
            raise Sr3dError(self.path, f"size of {name}", f"{info.file_size} bytes", f"at most {limit}")
        try:
            with self._archive.open(info) as stream:
                data = stream.read(info.file_size + 1)
        except _DAMAGED as error:
            raise Sr3dError(self.path, name, f"{type(error).__name__}: {error}", "an undamaged file") from error
        if len(data) != info.file_size:
            raise Sr3dError(self.path, f"size of {name}", f"{len(data)} bytes", f"{info.file_size} as listed")
        return data


def _check(path: Path, info: zipfile.ZipInfo) -> None:
    name, parts = info.filename, PurePosixPath(info.filename.replace("\\", "/"))
    # `orig_filename` still has what comes after a zero byte, which `filename` has not.
    drive = PureWindowsPath(name).drive
    if parts.is_absolute() or ".." in parts.parts or drive or "\0" in info.orig_filename:
        raise Sr3dError(path, "name of a member", repr(info.orig_filename), "a relative path without '..'")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise Sr3dError(path, f"type of {name}", "a link or device", "files and folders only")
    if info.flag_bits & 1:
        raise Sr3dError(path, name, "encrypted", "files without a password")
