"""Frozen evaluation indices: which views of which clips are inputs and targets, in a file that scores can name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sr3d.datasets.batch import Batch, make_batch, resize_scene
from sr3d.datasets.degrade import DegradeConfig
from sr3d.datasets.sample import StoredClip
from sr3d.datasets.views import ViewConfig, choose_views, view_problem
from sr3d.errors import Sr3dError
from sr3d.io.atomic import atomic

FORMAT, VERSION = "sr3d-evaluation", 1
_NAMED = 5  # clips that an error lists by name


@dataclass(kw_only=True)
class EvaluationItem:
    """One prediction to be scored.

    Attributes:
        clip: Name of the clip.
        context: Input views.
        target: Views to predict. In published indices inputs may be among them, and views outside the inputs.
        overlap: What a published index says of the overlap of the inputs: a share or a word.
    """

    clip: str
    context: list[int]
    target: list[int]
    overlap: float | str | None = None


@dataclass(kw_only=True)
class EvaluationIndex:
    """What is evaluated.

    Attributes:
        items: One per prediction; a clip may come several times.
        source: Data set; None if the file does not say.
        sha256: Of the `index.json` of the shards it was made from, in hexadecimal digits; None if it does not say.
        rule: How the views were chosen.
        left_out: Clips that have no such views: listed, not evaluated.
    """

    items: list[EvaluationItem]
    source: str | None = None
    sha256: str | None = None
    rule: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def check_complete(self, evaluated: int) -> None:
        """Raise unless exactly as many items were evaluated as there are.

        Raises:
            Sr3dError: Fewer or more.
        """
        if evaluated != len(self.items):
            expected = f"{len(self.items)}: every item of the index once"
            raise Sr3dError("sr3d.datasets.EvaluationIndex", "items evaluated", evaluated, expected)


def freeze(
    clips: Iterable[StoredClip], config: ViewConfig, *, source: str, sha256: str | None = None
) -> EvaluationIndex:
    """Choose the views of every clip once and for all, as validation does (nothing is drawn).

    Args:
        clips: The clips; no pixels are decoded.
        config: The rule; of a range of numbers of inputs the lowest.
        source: Data set.
        sha256: Of the `index.json` of the shards.

    Raises:
        Sr3dError: No clip has views that fit.
    """
    inputs = config.draw_inputs(None)
    out = EvaluationIndex(items=[], source=source, sha256=sha256, rule=asdict(config))
    problem = None
    for clip in clips:
        overlap = clip.overlap if config.by == "overlap" else None
        reason = view_problem(config, clip.cameras, overlap, inputs, clip.name)
        if reason is not None:
            problem = problem or reason
            out.left_out.append(clip.name)
            continue
        context, target = choose_views(config, clip.cameras, overlap, inputs, None, clip.name)
        out.items.append(EvaluationItem(clip=clip.name, context=context, target=target))
    if not out.items:
        found = f"{len(out.left_out)} without such views, the first: {problem}" if problem else "none"
        raise Sr3dError(source, "clips", found, "at least one with views that fit")
    return out


def write_evaluation(path: str | Path, index: EvaluationIndex) -> None:
    """Write an index as JSON, whole or not at all; the same index gives the same bytes.

    Raises:
        Sr3dError: The file cannot be written.
    """
    head = {
        "format": FORMAT,
        "version": VERSION,
        "data": {"source": index.source, "sha256": index.sha256},
        "rule": index.rule,
        "left_out": index.left_out,
    }
    items = [json.dumps({k: v for k, v in asdict(i).items() if v is not None}) for i in index.items]
    # An item per line: two versions of an index can be compared.
    text = json.dumps(head)[:-1] + ', "items": [\n' + ",\n".join(items) + "\n]}\n"
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_evaluation(path: str | Path) -> EvaluationIndex:
    """Read an index of this project, or one of pixelSplat, MVSplat, NoPoSplat or DepthSplat.

    The latter are {scene: {"context": [...], "target": [...]} or null}; scenes with null are `left_out`. They count
    all frames of a scene: pack the data as one clip per scene, without a stride.

    Raises:
        Sr3dError: The file cannot be read, is neither, or an item has no usable views.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise Sr3dError(path, "content", f"{type(error).__name__}: {error}", "an evaluation index (JSON)") from None
    if not isinstance(content, dict):
        raise Sr3dError(path, "content", type(content).__name__, "a JSON object")
    index = _own(path, content) if "format" in content else _published(path, content)
    if not index.items:
        raise Sr3dError(path, "items", f"none ({len(index.left_out)} left out)", "at least one")
    return index


def indexed_batches(
    index: EvaluationIndex,
    names: Collection[str],
    lookup: Callable[[str], StoredClip],
    factor: int | float,
    config: DegradeConfig | None = None,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
    sha256: str | None = None,
) -> Iterator[Batch]:
    """A batch [1, ...] for every item of an index, in its order. Only the views of the item are decoded.

    The caller counts what it has scored and hands the count to `EvaluationIndex.check_complete`.

    Args:
        index: What to evaluate.
        names: Clips that are there. MVSplat numbers several items of one scene, "scan1_train_00": they mean the clip
            "scan1_train" where no clip has the whole name.
        lookup: Reads a clip by name.
        factor: Reduction of the inputs.
        config: How they are reduced; see `make_batch`.
        seed: Of random degradations. An item's own one follows from it and the clip's name: it is the same in any
            part of the index.
        image_size: Width and height that all views are cropped and resized to first; None: as stored.
        sha256: Of the `index.json` of the shards; compared where the index knows its own.

    Raises:
        Sr3dError: Before anything is read: clips are missing, or the shards are others than those of the index. At an
            item: its clip has fewer views, or cannot be read.
    """
    stored = stored_names(index, names, sha256)
    return (
        Batch.stack([item_batch(item, lookup(stored[item.clip]), factor, config, seed, image_size)])
        for item in index.items
    )


def stored_names(index: EvaluationIndex, names: Collection[str], sha256: str | None = None) -> dict[str, str]:
    """The clip that each name of the index means.

    Args:
        index: What to evaluate.
        names: Clips that are there; see `indexed_batches`.
        sha256: Of the `index.json` of the shards; compared where the index knows its own.

    Raises:
        Sr3dError: Clips are missing, or the shards are others than those of the index.
    """
    if index.sha256 and sha256 and index.sha256 != sha256:
        found, expected = f"index.json with SHA-256 {sha256[:16]}...", f"{index.sha256[:16]}... as the index was made"
        raise Sr3dError("sr3d.datasets.indexed_batches", "shards", found, expected)
    names = set(names)
    stored = {}
    missing = []
    for item in index.items:
        options = [name for name in (item.clip, re.sub(r"_\d\d$", "", item.clip)) if name in names]
        if options:
            stored[item.clip] = options[0]
        else:
            missing.append(item.clip)
    if missing:
        listed = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
        found = f"{len(missing)} of {len(index.items)} items without their clip: {listed}"
        raise Sr3dError("sr3d.datasets.indexed_batches", "clips", found, "every clip of the evaluation index")
    return stored


def item_batch(
    item: EvaluationItem,
    clip: StoredClip,
    factor: int | float,
    config: DegradeConfig | None = None,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
) -> Batch:
    """The views of one item [V, ...]; arguments as for `indexed_batches`.

    Raises:
        Sr3dError: The clip has fewer views, or cannot be read.
    """
    views = sorted({*item.context, *item.target})
    if views[-1] >= len(clip):
        expected = f"view {views[-1]} of the evaluation index: was the data packed with all frames in one clip?"
        raise Sr3dError(item.clip, "views", len(clip), expected)
    place = {view: i for i, view in enumerate(views)}
    context, target = ([place[v] for v in chosen] for chosen in (item.context, item.target))
    own = int.from_bytes(hashlib.sha256(f"{seed} {item.clip}".encode()).digest()[:8], "big")
    scene = clip.scene(views) if image_size is None else resize_scene(clip.scene(views), image_size)
    return make_batch(scene, context, target, factor, config, own, anywhere=True)


def _own(path: Path, content: dict[str, Any]) -> EvaluationIndex:
    if content["format"] != FORMAT:
        raise Sr3dError(path, "format", repr(content["format"])[:60], FORMAT)
    if content.get("version") != VERSION:
        raise Sr3dError(path, "version", repr(content.get("version"))[:60], VERSION)
    data, rule, items, left_out = (content.get(k) for k in ("data", "rule", "items", "left_out"))
    if not isinstance(data, dict) or not isinstance(rule, dict):
        raise Sr3dError(path, "data, rule", f"{data!r:.40}, {rule!r:.40}", "an object each")
    for name in ("source", "sha256"):
        if not isinstance(data.get(name), str | None):
            raise Sr3dError(path, f"data.{name}", repr(data[name])[:60], "a string or null")
    if not isinstance(left_out, list) or not all(isinstance(n, str) for n in left_out):
        raise Sr3dError(path, "left_out", repr(left_out)[:60], "a list of names")
    if not isinstance(items, list):
        raise Sr3dError(path, "items", repr(items)[:60], "a list")
    read = []
    for i, item in enumerate(items):
        if not isinstance(item, dict) or not isinstance(item.get("clip"), str):
            raise Sr3dError(path, f"items[{i}]", repr(item)[:60], "an object with clip, context and target")
        read.append(_item(path, f"items[{i}]", item["clip"], item))
    return EvaluationIndex(
        items=read, source=data.get("source"), sha256=data.get("sha256"), rule=rule, left_out=left_out
    )


def _published(path: Path, content: dict[str, Any]) -> EvaluationIndex:
    items, left_out = [], []
    for name, views in content.items():
        if views is None:
            left_out.append(name)
        elif isinstance(views, dict):
            items.append(_item(path, repr(name), name, views))
        else:
            expected = 'null, or {"context": [...], "target": [...]}'
            raise Sr3dError(path, repr(name)[:60], repr(views)[:60], expected)
    return EvaluationIndex(items=items, left_out=left_out)


def _item(path: Path, where: str, clip: str, content: dict[str, Any]) -> EvaluationItem:
    views = {name: _views(path, f"{where[:60]}.{name}", content.get(name)) for name in ("context", "target")}
    overlap = content.get("overlap")
    if isinstance(overlap, bool) or not isinstance(overlap, float | int | str | None):
        raise Sr3dError(path, f"{where[:60]}.overlap", repr(overlap)[:60], "a number or a word")
    return EvaluationItem(clip=clip, overlap=float(overlap) if isinstance(overlap, int) else overlap, **views)


def _views(path: Path, where: str, value: object) -> list[int]:
    right = isinstance(value, list) and value and all(type(v) is int and 0 <= v < 1 << 31 for v in value)
    if not isinstance(value, list) or not right or len(set(value)) < len(value):
        raise Sr3dError(path, where, repr(value)[:60], "one or more different whole numbers from 0 on")
    return value
