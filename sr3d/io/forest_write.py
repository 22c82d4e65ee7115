"""Writing level-of-detail forests (see `sr3d.io.forest`): whole, or what is new only; all of it or nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from dataclasses import asdict
from itertools import count
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.io.atomic import atomic
from sr3d.io.forest import (
    FORMAT,
    JSON,
    VERSION,
    Entry,
    Folder,
    check_entries,
    check_tables,
    file_state,
    read_document,
    read_entries,
    read_forest,
)
from sr3d.lod import Forest, Level

_OWN = re.compile(r"\.?level-\d+(-\d+)?(\.[0-9a-f]{32})?\.safetensors|\.forest\.[0-9a-f]{32}\.json")


def write_forest(forest: Forest, path: str | Path) -> Forest:
    """Write a forest. Levels that were read from this folder stay as they are: only what was appended is written.

    An existing forest is replaced in one step; whoever has it open keeps what is open. One writer at a time.

    Args:
        forest: To write.
        path: Folder to make, or that holds a forest.

    Returns:
        The same forest, mapped from the folder: append to this one, and the next call writes one level only.

    Raises:
        Sr3dError: The folder is there and is no forest, somebody else has written to it since this forest was opened,
            a block table holds impossible values, or a file cannot be written. What was there is then as it was.
    """
    path = Path(path)
    if forest.source is not None:
        forest.source.check()
    try:
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            _write_into(path, forest)
        else:
            _write_new(path, forest)
    except OSError as error:
        raise Sr3dError(path, "folder", error.strerror or error, "a place that can be written") from error
    return read_forest(path)


def _write_into(path: Path, forest: Forest) -> None:
    """Write what is new beside what is there, let `forest.json` name it, and remove what it no longer names."""
    if not path.is_dir() or not (path / JSON).is_file():
        raise Sr3dError(path, "folder", "something that is no forest", f"a new name, or a folder with {JSON}")
    document = read_document(path)
    old = read_entries(path / JSON, document)
    source, kept = forest.source, 0
    if isinstance(source, Folder) and document == source.document:
        for entry, file, mapped, level in zip(old, source.files, source.levels, forest.levels):
            if level is not mapped or file_state(os.lstat(path / entry.file)) != file.state:
                break
            kept += 1
    elif isinstance(source, Folder) and source.path.resolve() == path.resolve():
        expected = "the forest as it was opened; load it again, or save under another name"
        raise Sr3dError(path, JSON, "changed by somebody else since", expected)
    if kept == len(old) == len(forest.levels):
        return
    taken, entries = {entry.file for entry in old}, old[:kept]
    try:
        _write_levels(path, forest, entries, taken)
    finally:
        named = {entry.file for entry in read_entries(path / JSON, read_document(path))}
        for found in path.iterdir():
            if _OWN.fullmatch(found.name) and found.name not in named:
                found.unlink()


def _write_new(path: Path, forest: Forest) -> None:
    """Make the folder under a temporary name."""
    if not path.parent.is_dir():
        raise Sr3dError(path, "folder", f"no folder {path.parent}", "an existing folder to write into")
    temporary = path.resolve().with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        _write_levels(temporary, forest, [], set())
        temporary.rename(path.resolve())
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_levels(folder: Path, forest: Forest, entries: list[Entry], taken: set[str]) -> None:
    """Write the levels behind those of `entries`, under names that are not taken, then `forest.json`."""
    entries = list(entries)
    for index in range(len(entries), len(forest.levels)):
        level = forest.levels[index]
        check_tables(folder, level, forest.block_starts[index])
        tries = (f"level-{index:03d}{f'-{again}' if again else ''}.safetensors" for again in count())
        name = next(name for name in tries if name not in taken)
        with atomic(folder / name) as temporary:
            try:
                save_file(_arrays(level), temporary)
            except SafetensorError as error:
                raise Sr3dError(folder, name, error, "a place that can be written") from error
            entries.append(_described(level, name, temporary.stat().st_size))
            check_entries(folder / JSON, entries)
    document = {"format": FORMAT, "version": VERSION, "levels": [asdict(entry) for entry in entries]}
    with atomic(folder / JSON) as temporary:
        temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _described(level: Level, name: str, size: int) -> Entry:
    """The entry of a level."""
    features = level.gaussians.features
    return Entry(
        file=name,
        file_bytes=size,
        number=level.number,
        origin=level.origin.double().tolist(),
        count=len(level),
        blocks=len(level.blocks.reach),
        split_rows=len(level.split.parents),
        split_blocks=len(level.split.blocks),
        sh=level.gaussians.sh.shape[-2],
        features=0 if features is None else features.shape[-1],
    )


def _arrays(level: Level) -> dict[str, Tensor]:
    """The tensors of a level under the names that they have in its file."""
    g, lod = level.gaussians, level.lod
    out = {name: getattr(g, name) for name in ("means", "quats", "scales", "opacities", "sh")}
    out |= {"native": lod.native, "coarser": lod.coarser, "finer": lod.finer}
    if g.features is not None and g.features.shape[-1]:
        out["features"] = g.features
    out |= {f"block_{name}": value for name, value in vars(level.blocks).items()}
    out |= {"parents": level.parents} | {f"split_{name}": value for name, value in vars(level.split).items()}
    return {name: value.detach().cpu().contiguous() for name, value in out.items()}
