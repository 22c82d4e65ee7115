"""Level-of-detail forests ↔ folders `name.sr3d/`: a small `forest.json` and one safetensors file per level.

The format is described in docs/format.md. Level files are never changed once they are there; `forest.json` says which
of them count and is replaced in one step, so that a reader sees the old forest or the new one, whatever happens.
"""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import re
import stat
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians, Lod
from sr3d.lod import BLOCK, Blocks, Forest, Level, Split

FORMAT, VERSION, JSON = "sr3d.forest", 1, "forest.json"
_MAX_JSON, _MAX_HEADER = 1 << 24, 1 << 20  # bytes
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.safetensors")
_DTYPES = {"F32": torch.float32, "I64": torch.int64}
_LARGEST = 1.7976931348623157e308


@dataclass(kw_only=True, frozen=True)
class Entry:
    """What `forest.json` says about a level; the keys are these names."""

    file: str
    file_bytes: int
    number: int
    origin: list[float]
    count: int
    blocks: int
    split_rows: int
    split_blocks: int
    sh: int
    features: int

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of everything in the level's file."""
        n, b = self.count, self.blocks
        reals: dict[str, tuple[int, ...]] = {
            "means": (n, 3), "quats": (n, 4), "scales": (n, 3), "opacities": (n,), "sh": (n, self.sh, 3),
            "native": (n,), "coarser": (n,), "finer": (n,), "block_lower": (b, 3), "block_upper": (b, 3),
            "block_reach": (b,), "block_finest": (b,), "block_coarsest": (b,),
            "split_finer": (self.split_rows,), "split_finest": (self.split_blocks,),
        }  # fmt: skip
        if self.features:
            reals["features"] = (n, self.features)
        whole: dict[str, tuple[int, ...]] = {
            "parents": (n,), "split_parents": (self.split_rows,), "split_blocks": (self.split_blocks,),
        }  # fmt: skip
        return {k: ("F32", s) for k, s in reals.items()} | {k: ("I64", s) for k, s in whole.items()}


class _File:
    """A file that is kept open, to notice changes; closed together with the last forest that uses it."""

    def __init__(self, path: Path) -> None:
        try:
            # Without waiting for the other end, should it be a pipe.
            self.handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            found = "a symbolic link" if error.errno == errno.ELOOP else error.strerror
            raise Sr3dError(path, "file", found, "a regular file that can be read") from error
        weakref.finalize(self, os.close, self.handle)
        info = os.fstat(self.handle)
        if not stat.S_ISREG(info.st_mode):
            raise Sr3dError(path, "file", "a folder or device", "a regular file")
        self.path, self.size, self.state = path, info.st_size, file_state(info)

    def check(self) -> None:
        """Raise unless size and time are what they were."""
        try:
            same = file_state(os.fstat(self.handle)) == self.state
        except OSError:
            same = False
        if not same:
            raise Sr3dError(self.path, "file", "changed while it was open", "a file that nobody writes to: load again")

    def read(self, begin: int, end: int) -> bytearray:
        """Bytes of a small part."""
        out = bytearray()
        while len(out) < end - begin:
            part = os.pread(self.handle, end - begin - len(out), begin + len(out))
            if not part:
                raise Sr3dError(self.path, "size", f"{begin + len(out)} bytes", f"at least {end}: the file is cut off")
            out += part
        return out


@dataclass(kw_only=True, frozen=True, eq=False)
class Folder:
    """Where the first levels of a forest are mapped from (a `sr3d.lod.forest.Source`).

    Attributes:
        path: The folder.
        files: Of the levels, open.
        levels: As mapped.
        document: `forest.json` as it was read.
    """

    path: Path
    files: tuple[_File, ...]
    levels: tuple[Level, ...]
    document: bytes

    def check(self) -> None:
        """Raise `Sr3dError` if a level's file is not what it was when it was opened: reading it could be fatal."""
        for file in self.files:
            file.check()

    def __str__(self) -> str:
        return str(self.path)


def read_forest(path: str | Path) -> Forest:
    """Open a forest. Its Gaussians stay in the files, mapped, until a frame needs them; the block tables are read.

    The mapping is private: writing to the tensors does not reach the files.

    Args:
        path: The folder.

    Returns:
        Forest whose `source` is a `Folder`.

    Raises:
        Sr3dError: A file is missing, damaged, not a regular file in this folder, or not as long as `forest.json` says;
            or a number in `forest.json`, a header or a block table is impossible. Values of single Gaussians are not
            looked at (`check_forest`).
    """
    path = Path(path)
    document = read_document(path)
    entries = read_entries(path / JSON, document)
    files, levels, earlier = [], [], 0
    for entry in entries:
        files.append(_File(path / entry.file))
        levels.append(_read_level(files[-1], entry, earlier))
        earlier += entry.blocks
    source = Folder(path=path, files=tuple(files), levels=tuple(levels), document=document)
    return Forest(levels=source.levels, source=source)


# --- forest.json


def read_document(folder: Path) -> bytes:
    """The bytes of `forest.json`."""
    if not folder.is_dir():
        raise Sr3dError(folder, "forest", "a file" if folder.exists() else "no such folder", "a folder name.sr3d")
    file = _File(folder / JSON)
    if file.size > _MAX_JSON:
        raise Sr3dError(file.path, "size", f"{file.size} bytes", f"at most {_MAX_JSON}")
    return bytes(file.read(0, file.size))


def _json(where: Path, field: str, data: bytes) -> dict[str, Any]:
    """An object in standard JSON, every key once."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key twice")
        return dict(pairs)

    def constant(name: str) -> None:
        raise ValueError(f"{name}, which is no JSON")

    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise Sr3dError(where, field, f"{type(error).__name__}: {error}"[:120], "a JSON object") from error
    if not isinstance(document, dict):
        raise Sr3dError(where, field, type(document).__name__, "a JSON object")
    return document


def read_entries(where: Path, data: bytes) -> list[Entry]:
    """The levels, checked as far as that goes without their files."""
    document = _json(where, "file", data)
    if document.get("format") != FORMAT:
        raise Sr3dError(where, "format", _short(document.get("format")), repr(FORMAT))
    version = document.get("version")
    if type(version) is not int or version != VERSION:
        raise Sr3dError(where, "version", _short(version), f"{VERSION}; newer files need a newer sr3d")
    levels = document.get("levels")
    if not isinstance(levels, list) or not levels:
        raise Sr3dError(where, "levels", _short(levels), "a list with at least one level")
    entries = [_entry(where, index, level) for index, level in enumerate(levels)]
    check_entries(where, entries)
    return entries


def _entry(where: Path, index: int, level: object) -> Entry:
    """One level, types and signs checked."""
    if not isinstance(level, dict):
        raise Sr3dError(where, f"levels[{index}]", _short(level), "an object")
    for field in fields(Entry):
        name, value = field.name, level.get(field.name)
        at = f"levels[{index}].{name}"
        if name == "file":
            if not isinstance(value, str) or not _NAME.fullmatch(value):
                raise Sr3dError(where, at, _short(value), "the name of a .safetensors file in this folder")
        elif name == "origin":
            if not isinstance(value, list) or len(value) != 3 or not all(_finite(v) for v in value):
                raise Sr3dError(where, at, _short(value), "three finite numbers")
        elif type(value) is not int or not 0 <= value < 1 << 62:
            raise Sr3dError(where, at, _short(value), "a whole number >= 0")
    known = {field.name: level[field.name] for field in fields(Entry)}
    return Entry(**known | {"origin": [float(v) for v in level["origin"]]})


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST


def check_entries(where: Path, entries: Sequence[Entry]) -> None:
    """Raise unless the levels fit together."""
    first, names, rows, blocks, deepest = entries[0], set[str](), 0, 0, entries[0].number - 1
    for index, e in enumerate(entries):
        needed = sum(_bytes(*kind) for kind in e.tensors().values())
        rules = {
            "file": (e.file.casefold() not in names, "names that differ"),
            "number": (first.number <= e.number <= min(deepest + 1, 2**31 - 1), f"{first.number} to {deepest + 1}"),
            "count": (e.count >= 1, "at least one Gaussian"),
            "blocks": (e.blocks == -(-e.count // BLOCK), f"{-(-e.count // BLOCK)} ({BLOCK} Gaussians each)"),
            "split_rows": (e.split_rows <= rows, f"at most {rows}, the rows of earlier levels"),
            "split_blocks": (
                e.split_blocks <= min(blocks, e.split_rows) and (e.split_blocks > 0) == (e.split_rows > 0),
                f"at most {min(blocks, e.split_rows)}, blocks of earlier levels that hold the split rows",
            ),
            "sh": (e.sh in (1, 4, 9, 16) and e.sh == first.sh, "1, 4, 9 or 16, the same in all levels"),
            "features": (e.features == first.features, f"{first.features} as in the first level"),
            "file_bytes": (
                needed + 10 <= e.file_bytes <= needed + 8 + _MAX_HEADER,
                f"{needed} for these counts, and a header of at most {_MAX_HEADER}",
            ),
        }
        for name, (good, expected) in rules.items():
            if not good:
                raise Sr3dError(where, f"levels[{index}].{name}", getattr(e, name), expected)
        names.add(e.file.casefold())
        rows, blocks, deepest = rows + e.count, blocks + e.blocks, max(deepest, e.number)


# --- level files


def _read_level(file: _File, entry: Entry, earlier: int) -> Level:
    """Map a level; `earlier` blocks lie in front of it."""
    if file.size != entry.file_bytes:
        raise Sr3dError(file.path, "size", f"{file.size} bytes", f"{entry.file_bytes} as {JSON} says")
    spans, kinds = _spans(file, entry), entry.tensors()
    try:
        mapped = mmap.mmap(file.handle, file.size, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        raise Sr3dError(file.path, "file", error, "a file that can be mapped") from error

    def tensor(name: str, *, read: bool = False) -> Tensor:
        dtype, shape = kinds[name]
        begin, end = spans[name]
        if begin == end:
            return torch.empty(shape, dtype=_DTYPES[dtype])
        if read:
            return torch.frombuffer(file.read(begin, end), dtype=_DTYPES[dtype]).reshape(shape)
        return torch.frombuffer(mapped, dtype=_DTYPES[dtype], count=math.prod(shape), offset=begin).reshape(shape)

    number = torch.full((1,), entry.number, dtype=torch.int32).expand(entry.count)
    lod = Lod(native=tensor("native"), coarser=tensor("coarser"), finer=tensor("finer"), level=number)
    names = ("means", "quats", "scales", "opacities", "sh")
    features = tensor("features") if entry.features else None
    bounds = ("lower", "upper", "reach", "finest", "coarsest")
    level = Level(
        number=entry.number,
        origin=torch.tensor(entry.origin, dtype=torch.float64),
        gaussians=Gaussians(**{name: tensor(name) for name in names}, features=features, lod=lod),
        parents=tensor("parents"),
        blocks=Blocks(**{name: tensor(f"block_{name}", read=True) for name in bounds}),
        split=Split(
            parents=tensor("split_parents"),
            finer=tensor("split_finer"),
            blocks=tensor("split_blocks", read=True),
            finest=tensor("split_finest", read=True),
        ),
    )
    check_tables(file.path, level, earlier)
    return level


def _spans(file: _File, entry: Entry) -> dict[str, tuple[int, int]]:
    """Where each tensor begins and ends in the file, read from its header."""
    where, start = file.path, int.from_bytes(file.read(0, 8), "little") + 8
    if start > min(file.size, _MAX_HEADER + 8):
        raise Sr3dError(where, "header", f"{start - 8} bytes in {file.size}", f"at most {_MAX_HEADER}, and the data")
    header = _json(where, "header", bytes(file.read(8, start)))
    header.pop("__metadata__", None)
    kinds = entry.tensors()
    if header.keys() != kinds.keys():
        missing, extra = sorted(kinds.keys() - header.keys()), sorted(header.keys() - kinds.keys())
        raise Sr3dError(where, "tensors", f"{missing} missing, {extra} extra"[:120], f"{len(kinds)} tensors of a level")
    spans = {}
    for name, (dtype, shape) in kinds.items():
        said = header[name]
        if not isinstance(said, dict) or said.get("dtype") != dtype or said.get("shape") != list(shape):
            raise Sr3dError(where, f"tensor {name}", _short(said), f"{dtype} of shape {list(shape)}")
        offsets = said.get("data_offsets")
        if not isinstance(offsets, list) or len(offsets) != 2 or any(type(o) is not int for o in offsets):
            raise Sr3dError(where, f"tensor {name}", _short(offsets), "two offsets")
        begin, end = offsets
        if end - begin != _bytes(dtype, shape) or not 0 <= begin <= end <= file.size - start:
            found = f"bytes {_short(begin)} to {_short(end)} of {file.size - start}"
            raise Sr3dError(where, f"tensor {name}", found, f"{_bytes(dtype, shape)} bytes inside the file")
        if (start + begin) % _DTYPES[dtype].itemsize:
            raise Sr3dError(where, f"tensor {name}", f"offset {start + begin}", f"a multiple of the size of {dtype}")
        spans[name] = (start + begin, start + end)
    ends = [(start, start), *sorted(spans.values()), (file.size, file.size)]
    for (_, end), (begin, _) in pairwise(ends):
        if begin != end:
            found = f"{'a gap' if begin > end else 'an overlap'} at byte {min(begin, end)}"
            raise Sr3dError(where, "tensors", found, "tensors end to end, up to the end of the file")
    return spans


def check_tables(where: Path, level: Level, earlier: int) -> None:
    """Raise unless the tables that frames rely on are possible; `earlier` blocks lie in front of the level."""
    b, s = level.blocks, level.split
    rules = {
        "block_lower": (torch.isfinite(b.lower), "finite bounds"),
        "block_upper": (torch.isfinite(b.upper) & (b.upper >= b.lower), "finite bounds, not below block_lower"),
        "block_reach": (torch.isfinite(b.reach) & (b.reach >= 0), "finite lengths >= 0"),
        "block_finest": (torch.isfinite(b.finest) & (b.finest >= 0), "finite footprints >= 0"),
        "block_coarsest": (b.coarsest > 0, "footprints > 0"),
        "split_blocks": ((s.blocks >= 0) & (s.blocks < earlier), f"0 to {earlier - 1}, blocks of earlier levels"),
        "split_finest": (torch.isfinite(s.finest) & (s.finest >= 0), "finite footprints >= 0"),
    }
    for name, (good, expected) in rules.items():
        if not good.all():
            row = int((~good).nonzero()[0, 0])
            values = getattr(s if name.startswith("split") else b, name.split("_")[1])
            raise Sr3dError(where, name, f"{values[row].tolist()} in row {row}", expected)
    if (s.blocks[1:] <= s.blocks[:-1]).any():
        raise Sr3dError(where, "split_blocks", "out of order", "ascending numbers")


# --- single values


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return _DTYPES[dtype].itemsize * math.prod(shape)


def file_state(info: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written to or replaced."""
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def _short(value: object) -> str:
    return repr(value)[:80]
