"""Packing: a data set, by its converter, into shards and an index; in parallel, in parts, and again after a crash.

The work is planned first: which entries (scenes) go into which task. A task depends on nothing but the plan, writes its
tar files, and last its part of the index; so the result is the same, byte for byte, however often packing was
interrupted and however many processes took part.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import psutil
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sr3d.datasets import engines
from sr3d.datasets.clip import Clip
from sr3d.datasets.converter import ClipOptions, Converter, Drops, Entry, Split
from sr3d.datasets.index import FILE, Index, ShardEntry, parse_entry
from sr3d.datasets.shards import checksum, write_tars, writer
from sr3d.errors import Sr3dError
from sr3d.io.atomic import atomic

PLAN, PARTS = "plan.json", "parts"
_STEM = "shard"


@dataclass(kw_only=True, frozen=True)
class PackConfig:
    """How the work is done; the shards are the same whatever is chosen here, but for `shard_mb`.

    Args:
        shard_mb: About how many megabytes (10⁶) a tar file gets.
        workers: Processes on this machine; 0 takes one per core.
        part: "i/n": do only the i-th of n parts (i from 1), for job arrays. The part that finishes last writes the
            index.
        engine: "local", or "ray" to use a running Ray cluster (its machines must share `dst`).
    """

    shard_mb: int = 200
    workers: int = 0
    part: str | None = None
    engine: Literal["local", "ray"] = "local"


@dataclass(kw_only=True, frozen=True)
class Job:
    """All that a task needs to know; sent to other processes.

    Attributes:
        converter: Reads the data set.
        options: Of the clips.
        folder: Of the shards.
        shard_bytes: Size of a tar file.
        tasks: Entries per task.
    """

    converter: Converter
    options: ClipOptions
    folder: Path
    shard_bytes: int
    tasks: list[list[Entry]]


@dataclass(kw_only=True)
class Part:
    """What one task has done.

    Attributes:
        shards: Its tar files; none if every scene was dropped.
        drops: What was left out.
    """

    shards: list[ShardEntry]
    drops: Drops


@dataclass(kw_only=True)
class Packed:
    """Result of `pack`.

    Attributes:
        index: The index, or None while tasks of other parts are missing.
        path: Where it is (or will be).
        done: Tasks that are done, of all parts.
        tasks: All tasks.
        reused: Tasks that an earlier run had done.
    """

    index: Index | None
    path: Path
    done: int
    tasks: int
    reused: int


def pack(
    converter: Converter,
    src: str | Path,
    dst: str | Path,
    *,
    split: Split = "all",
    options: ClipOptions | None = None,
    config: PackConfig | None = None,
    progress: bool = True,
) -> Packed:
    """Convert a data set, or one part of it, into shards.

    A folder that holds some of them already is completed: tasks whose tar files have the right checksums are kept.

    Args:
        converter: Of the data set.
        src: Where it lies.
        dst: Folder of the shards of this split, made if missing.
        split: What to pack.
        options: How scenes are cut into clips.
        config: How the work is done.
        progress: Show a bar with the time left and the memory in use.

    Raises:
        Sr3dError: `src` is not such a data set, `dst` was begun with other options or from other files, nothing usable
            was found, or a file cannot be written.
    """
    options, config, dst = options or ClipOptions(), config or PackConfig(), Path(dst)
    if config.shard_mb < 1 or config.workers < 0 or options.views < 0 or options.stride < 1 or options.min_views < 1:
        found = f"shard_mb {config.shard_mb}, workers {config.workers}, {options}"
        raise Sr3dError("sr3d pack", "options", found, "workers and views 0 or more, the others 1 or more")
    first, step = _part(config.part)
    tasks = _tasks(converter.entries(Path(src), split), config.shard_mb * 1_000_000)
    job = Job(converter=converter, options=options, folder=dst, shard_bytes=config.shard_mb * 1_000_000, tasks=tasks)
    _begin(job, split)
    mine = list(range(len(tasks)))[first::step]
    finished, reused = _run(job, mine, config, progress)
    others = {n: read_part(dst, n, deep=False) for n in range(len(tasks)) if n not in finished}
    finished |= {n: part for n, part in others.items() if part is not None}
    result = Packed(index=None, path=dst / FILE, done=len(finished), tasks=len(tasks), reused=reused)
    if len(finished) == len(tasks):
        index = _index(job, split, [finished[n] for n in range(len(tasks))])
        if not index.shards:
            found = f"none; dropped: {json.dumps(index.dropped, ensure_ascii=False)}"
            raise Sr3dError(str(src), "usable clips", found, "at least one")
        index.write(result.path)
        result.index = index
    return result


def _run(job: Job, numbers: Sequence[int], config: PackConfig, progress: bool) -> tuple[dict[int, Part], int]:
    """Do the tasks, and say which of them an earlier run had done."""
    engine = engines.ray if config.engine == "ray" else engines.local
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    finished: dict[int, Part] = {}
    reused = 0
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), disable=not progress) as bar:
        shown = bar.add_task(job.converter.source, total=sum(len(job.tasks[n]) for n in numbers))

        def note(name: str) -> None:
            bar.update(shown, advance=1, description=f"{job.converter.source}, {_memory_gib():.1f} GiB in use")

        for done in engine(partial(run_task, job), numbers, config.workers, note):
            finished[done.number], again = done.result
            reused += again
    return finished, reused


def _memory_gib() -> float:
    """Of this process and those that it has started."""
    own = psutil.Process()
    size = own.memory_info().rss
    for process in own.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            size += process.memory_info().rss
    return size / 2**30


def run_task(job: Job, number: int, note: Callable[[str], None]) -> tuple[Part, bool]:
    """Do one task, unless it has been done.

    Args:
        job: The whole work.
        number: Of the task.
        note: Called with the name of every entry that is through.

    Returns:
        What was done, and whether an earlier run did it.

    Raises:
        Sr3dError: A file cannot be written.
    """
    for stale in job.folder.glob(f".{_STEM}-{number:06d}-*.part"):
        stale.unlink(missing_ok=True)
    done = read_part(job.folder, number, deep=True)
    if done is not None:
        for entry in job.tasks[number]:
            note(entry.name)
        return done, True
    drops = Drops()
    clips = _clips(job, job.tasks[number], drops, note)
    shards = write_tars(clips, job.folder, _STEM, number, job.shard_bytes)
    part = Part(shards=shards, drops=drops)
    content = {"shards": [vars(s) for s in shards], "dropped": drops.as_dict()}
    with atomic(_part_file(job.folder, number)) as temporary:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
    return part, False


def read_part(folder: Path, number: int, *, deep: bool) -> Part | None:
    """What a task has left in the folder, or None if it has to be done (again).

    Args:
        folder: Of the shards.
        number: Of the task.
        deep: Compare checksums, not only sizes.
    """
    path = _part_file(folder, number)
    try:
        content = json.loads(path.read_bytes())
        shards = [parse_entry(s, path, f"shards[{i}]") for i, s in enumerate(content["shards"])]
        for shard in shards:
            size = (folder / shard.file).stat().st_size
            if size != shard.bytes or (deep and checksum(folder / shard.file)[1] != shard.sha256):
                return None
        return Part(shards=shards, drops=Drops.from_dict(content["dropped"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _clips(job: Job, entries: Sequence[Entry], drops: Drops, note: Callable[[str], None]) -> Iterator[Clip]:
    """The clips of some entries; an entry that cannot be read is counted and passed over."""
    for entry in entries:
        made = 0
        try:
            for clip in job.converter.clips(entry, job.options, drops):
                made += 1
                yield clip
        except (Sr3dError, OSError) as error:
            if made:
                drops.frame("rest of a damaged scene", f"{entry.name}: {error}")
            else:
                drops.scene("damaged", f"{entry.name}: {error}")
        # What no converter has foreseen must not end a run over thousands of scenes; its kind is in the summary.
        except Exception as error:
            drops.scene(f"failed: {type(error).__name__}", f"{entry.name}: {error}")
        note(entry.name)


def _part(text: str | None) -> tuple[int, int]:
    """First task and step of a part "i/n"."""
    if text is None:
        return 0, 1
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    number, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= parts:
        raise Sr3dError("sr3d pack", "--part", repr(text), "i/n with i from 1 to n, e.g. 1/8")
    return number - 1, parts


def _tasks(entries: Sequence[Entry], shard_bytes: int) -> list[list[Entry]]:
    """Consecutive entries that together fill about one tar file."""
    names = [e.name for e in entries]
    if len(set(names)) < len(names):
        raise Sr3dError("sr3d pack", "scenes", "names that occur twice", "a name for every scene")
    tasks: list[list[Entry]] = []
    size = shard_bytes
    for entry in entries:
        if size >= shard_bytes:
            tasks.append([])
            size = 0
        tasks[-1].append(entry)
        size += entry.bytes
    return tasks


def _begin(job: Job, split: Split) -> None:
    """Write the plan, or compare it with the one that is there."""
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / PARTS).mkdir(exist_ok=True)
    plan = {**_options(job, split), "tasks": [[[e.name, e.bytes] for e in task] for task in job.tasks]}
    text = json.dumps(plan, indent=1) + "\n"
    path = job.folder / PLAN
    if not path.exists():
        index = job.folder / FILE
        if index.exists():
            raise Sr3dError(index, "folder", "shards that are there already", "a new folder")
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return
    if path.read_text(encoding="utf-8", errors="replace") != text:
        raise Sr3dError(path, "plan", _difference(path, json.loads(text)), "the options and files it was begun with")


def _difference(path: Path, new: dict[str, Any]) -> str:
    """Which parts of the plan are not what they were."""
    try:
        old = json.loads(path.read_bytes())
        changed = [f"{k}: {json.dumps(old.get(k))[:80]}" for k in new if old.get(k) != new[k]]
    except (ValueError, AttributeError):
        return "no plan"
    return "; ".join(changed) or "another layout"


def _options(job: Job, split: Split) -> dict[str, Any]:
    """What decides the content of the shards."""
    return {
        "source": job.converter.source,
        "converter_version": job.converter.version,
        "split": split,
        "converter": {f.name: _plain(getattr(job.converter, f.name)) for f in fields(job.converter)},
        "clips": asdict(job.options),
        "shard_bytes": job.shard_bytes,
    }


def _plain(value: Any) -> Any:
    """An option for JSON: a file is named by what is in it, not by where it lies."""
    if not isinstance(value, Path):
        return value
    return {"file": value.name, "sha256": checksum(value)[1]} if value.is_file() else value.name


def _index(job: Job, split: Split, parts: Iterable[Part]) -> Index:
    drops, shards = Drops(), list[ShardEntry]()
    for part in parts:
        drops.add(part.drops)
        shards += part.shards
    options = _options(job, split)
    return Index(
        source=job.converter.source,
        converter_version=job.converter.version,
        writer=writer(),
        split=split,
        licence=job.converter.licence,
        options={k: options[k] for k in ("converter", "clips", "shard_bytes")},
        dropped=drops.as_dict(),
        shards=shards,
    )


def _part_file(folder: Path, number: int) -> Path:
    return folder / PARTS / f"{number:06d}.json"
