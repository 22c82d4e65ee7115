"""Clips of shards, by a frozen evaluation index or by their ends."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

from sr3d.datasets.degrade import DegradeConfig
from sr3d.datasets.evaluation import EvaluationIndex, freeze, item_batch, read_evaluation, stored_names
from sr3d.datasets.index import FILE
from sr3d.datasets.reader import ShardDataset
from sr3d.datasets.views import ViewConfig
from sr3d.errors import Sr3dError
from sr3d.evaluation.case import Case
from sr3d.evaluation.cases.base import CaseSet, Sources, plain_case
from sr3d.evaluation.cases.folder import case_names
from sr3d.evaluation.data_config import ShardsData

_TARGETS = 3  # of a clip, where there is no index


def open_shards(data: ShardsData, factor: int, sources: Sources) -> CaseSet:
    """One case for each item of the index.

    Raises:
        Sr3dError: Not one folder (or tar file) of shards, the protocol's index is missing, has another number of
            items, or names clips that are not there.
    """
    if len(sources.paths) != 1:
        found = f"{len(sources.paths)} paths"
        raise Sr3dError("sr3d eval", "--scenes", found, f"one folder of shards, e.g. of `{data.pack}`")
    path = sources.paths[0]
    clips, digest = ShardDataset(path), shards_digest(path)
    frozen = sources.index or (None if data.index is None else Path(data.index))
    index = _index(data, clips, frozen)
    places = clips.reader.places()
    stored = stored_names(index, places, digest)
    size = None if data.image_size is None else (data.image_size[0], data.image_size[1])
    degrade = None if data.degrade == "area" else DegradeConfig(method=data.degrade)
    names = case_names(index.items)

    def load(i: int) -> Case:
        item = index.items[i]
        clip = clips.reader.read(*places[stored[item.clip]])
        batch = item_batch(item, clip, factor, degrade, image_size=size)
        frames = [clip.frames[v] for v in item.target]
        return plain_case(
            names[i],
            item.clip,
            batch.context,
            batch.target,
            factor,
            frames,
            text=clip.text() or "",
            classes=clip.classes,
        )

    return CaseSet(
        names=names,
        scenes=[item.clip for item in index.items],
        views=sum(len(item.target) for item in index.items),
        index={"shards": digest, "rule": index.rule, "items": [asdict(item) for item in index.items]},
        load=load,
    )


def shards_digest(path: Path) -> str | None:
    """SHA-256 of the `index.json` of a folder of shards; None for a tar file."""
    index = path / FILE
    return hashlib.sha256(index.read_bytes()).hexdigest() if index.is_file() else None


def _index(data: ShardsData, clips: ShardDataset, frozen: Path | None) -> EvaluationIndex:
    if frozen is not None:
        index = read_evaluation(frozen)
        if data.items is not None and len(index.items) != data.items:
            raise Sr3dError(frozen, "items", len(index.items), f"{data.items}, as the protocol says")
        return index
    if data.where:
        raise Sr3dError("sr3d eval", "--index", "none", data.where)
    index = freeze(clips.clips(), ViewConfig(target=_TARGETS), source="ends of every clip")
    if index.left_out:
        found = f"{len(index.left_out)} of fewer than {_TARGETS + 2} views, such as {index.left_out[0]}"
        expected = "clips that are long enough, or an index (--index, see sr3d freeze) that leaves others out"
        raise Sr3dError("sr3d eval", "clips", found, expected)
    return index
