"""`index.json`: what is in the shards of one split, where it came from, and what was left out."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from sr3d.errors import Sr3dError
from sr3d.io.atomic import atomic

FORMAT, VERSION = "sr3d-shards", 2
FILE = "index.json"
_TEXTS = ("source", "writer", "split", "licence")


@dataclass(kw_only=True)
class ShardEntry:
    """What the index says of one tar file.

    Attributes:
        file: Name of the tar file beside the index.
        bytes: Its size.
        sha256: Its checksum, in hexadecimal digits.
        offsets: Where each sample starts, in bytes.
        names: Of the clips.
        scenes: The place of each clip.
        views: Number of views in all clips.
    """

    file: str
    bytes: int
    sha256: str
    offsets: list[int]
    names: list[str]
    scenes: list[str]
    views: int

    @property
    def clips(self) -> int:
        """How many clips it holds."""
        return len(self.names)


@dataclass(kw_only=True)
class Index:
    """The content of `index.json`.

    Attributes:
        source: Converter that made the shards.
        converter_version: Of that converter.
        writer: Program and version.
        split: "train", "validation", "test" or "all".
        licence: Of the data.
        options: Of the converter and of the packing.
        dropped: What was left out: `frames` and `scenes`, reason → count, and some `examples`.
        shards: The tar files.
    """

    source: str
    converter_version: int
    writer: str
    split: str
    licence: str
    options: dict[str, Any]
    dropped: dict[str, Any]
    shards: list[ShardEntry] = field(default_factory=list)

    @property
    def clips(self) -> int:
        """How many clips there are in all."""
        return sum(s.clips for s in self.shards)

    @property
    def views(self) -> int:
        """How many views there are in all."""
        return sum(s.views for s in self.shards)

    @property
    def scenes(self) -> set[str]:
        """Names of the places."""
        return {name for s in self.shards for name in s.scenes}

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all; the same content gives the same bytes.

        Raises:
            Sr3dError: Two clips have one name, or the file cannot be written.
        """
        counts = Counter(name for s in self.shards for name in s.names)
        twice = sorted(name for name, count in counts.items() if count > 1)
        if twice:
            raise Sr3dError(path, "clips", f"{len(twice)} names twice: {', '.join(twice[:5])}", "a name for every clip")
        head = {k: v for k, v in vars(self).items() if k != "shards"}
        totals = {"clips": self.clips, "views": self.views, "scenes": len(self.scenes)}
        size = {"bytes": sum(s.bytes for s in self.shards)}
        content = {"format": FORMAT, "version": VERSION, **head, **totals, **size}
        # One line per tar file: a person can read the head, and a large set stays small.
        lines = ",\n  ".join(json.dumps({"clips": s.clips, **vars(s)}) for s in self.shards)
        text = json.dumps(content, indent=1).removesuffix("\n}")
        with atomic(path) as temporary:
            temporary.write_text(f'{text},\n "shards": [\n  {lines}\n ]\n}}\n', encoding="utf-8")


def parse_index(data: bytes, path: str | Path) -> Index:
    """An index from the bytes of its file.

    Args:
        data: JSON, UTF-8.
        path: File or address named in errors.

    Raises:
        Sr3dError: It is no index, of another version, or a field is wrong.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Sr3dError(path, "content", f"{type(error).__name__}: {error}", "JSON") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise Sr3dError(path, "format", str(content)[:80], FORMAT)
    if content.get("version") != VERSION:
        raise Sr3dError(path, "version", content.get("version"), f"{VERSION}: pack the data again")
    for name in _TEXTS:
        if not isinstance(content.get(name), str):
            raise Sr3dError(path, name, repr(content.get(name))[:60], "a string")
    for name in ("options", "dropped"):
        if not isinstance(content.get(name), dict):
            raise Sr3dError(path, name, repr(content.get(name))[:60], "an object")
    _whole(path, "converter_version", content.get("converter_version"), 0)
    shards = content.get("shards")
    if not isinstance(shards, list) or not shards or not all(isinstance(s, dict) for s in shards):
        raise Sr3dError(path, "shards", repr(shards)[:60], "a list of at least one tar file")
    entries = [parse_entry(s, path, f"shards[{i}]") for i, s in enumerate(shards)]
    for kind in ("file", "names"):
        values = [s.file for s in entries] if kind == "file" else [name for s in entries for name in s.names]
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise Sr3dError(path, f"shards: {kind}", f"{twice[0]!r} twice", "every one once")
    fields = {name: content[name] for name in (*_TEXTS, "options", "dropped", "converter_version")}
    return Index(**fields, shards=entries)


def parse_entry(shard: dict[str, Any], path: str | Path, where: str) -> ShardEntry:
    """One checked entry of the list of shards.

    Raises:
        Sr3dError: A field is wrong.
    """
    name = shard.get("file")
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*\.tar", name, re.ASCII):
        raise Sr3dError(path, f"{where}.file", repr(name), "the name of a tar file in this folder")
    for key, least in (("bytes", 1), ("views", 1)):
        _whole(path, f"{where}.{key}", shard.get(key), least)
    digest = shard.get("sha256")
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise Sr3dError(path, f"{where}.sha256", repr(digest)[:80], "64 hexadecimal digits")
    lists = {key: shard.get(key) for key in ("offsets", "names", "scenes")}
    for key, values in lists.items():
        kind = int if key == "offsets" else str
        if not isinstance(values, list) or not values or not all(type(v) is kind for v in values):
            raise Sr3dError(path, f"{where}.{key}", repr(values)[:60], f"a {kind.__name__} for every clip")
    counts = {key: len(values or ()) for key, values in lists.items()}
    if len(set(counts.values())) != 1:
        raise Sr3dError(path, where, counts, "one entry for every clip in each")
    offsets: Sequence[int] = lists["offsets"] or ()
    if offsets[0] != 0 or offsets[-1] >= shard["bytes"] or any(a >= b for a, b in pairwise(offsets)):
        raise Sr3dError(path, f"{where}.offsets", f"{offsets[:3]} ...", f"0, and rising numbers below {shard['bytes']}")
    return ShardEntry(**{key: shard[key] for key in ShardEntry.__dataclass_fields__})


def _whole(path: str | Path, where: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise Sr3dError(path, where, repr(value)[:60], f"a whole number of {least} or more")
