"""Uncompressed tar files as shards use them: plain files with plain names, read in place."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

from sr3d.errors import Sr3dError

BLOCK = 512
_MAPS = r"[0-9]{3,}\.(?:png|jpg|depth\.png|labels\.png|semantics\.png)"
_MEMBER = re.compile(
    rf"([0-9A-Za-z_-]+)\.(clip\.json|overlap\.png|points\.npy|gaussians\.safetensors|text\.txt|{_MAPS})", re.ASCII
)


def samples(data: memoryview, source: str, whole: bool = True) -> Iterator[tuple[int, str, dict[str, memoryview]]]:
    """Offset in bytes, key and members (ending → content, not copied) of every sample.

    Args:
        data: A tar file; or, if it is not `whole`, some members of one.
        source: File named in errors.
        whole: Ask for the block of zeros that ends a tar file.

    Members of one sample follow each other; a sample that starts anew is an error.

    Raises:
        Sr3dError: A header is broken, a member is no plain file or has a name of another form (absolute, with `..`,
            a link, a device), a name occurs twice, or the file ends early.
    """
    first, key, members, seen = 0, "", dict[str, memoryview](), set[str]()
    for offset, name, content in _files(data, source, whole):
        match = _MEMBER.fullmatch(name)
        if match is None:
            expected = "names such as 000000-0000.clip.json, 000000-0000.000.jpg, 000000-0000.000.depth.png"
            raise Sr3dError(source, "member", repr(name), expected)
        if match[1] != key:
            if members:
                yield first, key, members
            first, key, members = offset, match[1], {}
            if key in seen:
                raise Sr3dError(source, "member", repr(name), "the files of one sample together")
            seen.add(key)
        if match[2] in members:
            raise Sr3dError(source, "member", f"{name!r} twice", "every name once")
        members[match[2]] = content
    if members:
        yield first, key, members


def _files(data: memoryview, source: str, whole: bool) -> Iterator[tuple[int, str, memoryview]]:
    """Offset, name and content of every member up to the block of zeros that ends a tar file."""
    at = 0
    while whole or at < len(data):
        header = data[at : at + BLOCK].tobytes()
        if len(header) < BLOCK:
            raise Sr3dError(
                source, "tar file", f"no end mark after {len(data)} bytes", "a whole, uncompressed tar file"
            )
        if header == bytes(BLOCK):
            return
        size = _checked_size(header, source, at)
        name = header[:100].split(b"\0", 1)[0].decode("ascii", errors="replace")
        if header[345:346] != b"\0":
            name = header[345:500].split(b"\0", 1)[0].decode("ascii", errors="replace") + "/" + name
        if header[156:157] not in (b"0", b"\0"):
            kind = {b"1": "a link", b"2": "a symbolic link", b"5": "a folder"}.get(header[156:157], "a special file")
            raise Sr3dError(source, "member", f"{name!r}, {kind}", "plain files only")
        end = at + BLOCK + size
        if end > len(data):
            raise Sr3dError(source, f"member {name!r}", f"cut off after {len(data)} bytes", f"at least {end} bytes")
        yield at, name, data[at + BLOCK : end]
        at = end + -size % BLOCK


def _checked_size(header: bytes, source: str, at: int) -> int:
    """The size in a header whose checksum is right."""
    try:
        size, checksum = int(header[124:136].strip(b" \0") or b"0", 8), int(header[148:156].strip(b" \0"), 8)
    except ValueError:
        raise Sr3dError(source, "tar file", f"no header at byte {at}", "an uncompressed ustar file") from None
    # The checksum counts its own eight bytes as blanks. Adler's low half is a sum of bytes, plus 1, modulo 65521.
    found = zlib.adler32(header[:148] + b" " * 8 + header[156:]) & 0xFFFF
    if found != (checksum + 1) % 65521 or size < 0:
        raise Sr3dError(source, "tar file", f"a damaged header at byte {at}", "the header's checksum")
    return size
