"""Captures of any kind: pairs of input views by a rule, and the views between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from sr3d.capture import CaptureConfig, fit_sizes, read_capture
from sr3d.datasets.batch import make_batch
from sr3d.datasets.evaluation import EvaluationIndex, EvaluationItem, read_evaluation
from sr3d.errors import Sr3dError
from sr3d.evaluation.case import Case
from sr3d.evaluation.cases.base import CaseSet, Sources, plain_case
from sr3d.evaluation.data_config import FolderData
from sr3d.io import load_scene


def open_folders(data: FolderData, factor: int, sources: Sources) -> CaseSet:
    """One case for each pair of input views.

    Raises:
        Sr3dError: No captures, two of one name, one that cannot be used, or an index that names others.
    """
    captures = captures_by_name(sources.paths)
    rule = CaptureConfig(
        factor=factor, baseline=data.baseline, pairs=data.pairs, targets=data.targets, max_pixels=data.max_pixels
    )
    frozen = sources.index or (None if data.index is None else Path(data.index))
    index = choose(captures, rule) if frozen is None else read_evaluation(frozen)
    absent = sorted({item.clip for item in index.items} - set(captures))
    if absent:
        raise Sr3dError(str(frozen), "clips", f"{', '.join(absent)} not among the scenes", ", ".join(captures))

    names = case_names(index.items)

    def load(i: int) -> Case:
        item = index.items[i]
        views = sorted({*item.context, *item.target})
        place = {view: k for k, view in enumerate(views)}
        clip = fit_sizes(load_scene(captures[item.clip], views), factor, rule.max_pixels)
        batch = make_batch(clip, [place[v] for v in item.context], [place[v] for v in item.target], factor)
        frames = [path.name for path in batch.target.paths] or [f"view {v}" for v in item.target]
        folder = str(captures[item.clip])
        return plain_case(names[i], item.clip, batch.context, batch.target, factor, frames, folder=folder)

    return CaseSet(
        names=names,
        scenes=[item.clip for item in index.items],
        views=sum(len(item.target) for item in index.items),
        index={"rule": index.rule, "items": [asdict(item) for item in index.items]},
        load=load,
    )


def captures_by_name(paths: list[Path]) -> dict[str, Path]:
    """Folder name → folder.

    Raises:
        Sr3dError: None, one that is missing, or two of one name.
    """
    if not paths:
        raise Sr3dError("sr3d eval", "--scenes", "none", "folders, separated by commas")
    out: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise Sr3dError("sr3d eval", "--scenes", f"no {path}", "folders that exist")
        name = path.resolve().name
        if name in out:
            raise Sr3dError("sr3d eval", "--scenes", f"{out[name]} and {path}", "folders of different names")
        out[name] = path
    return out


def choose(captures: dict[str, Path], rule: CaptureConfig) -> EvaluationIndex:
    """Inputs and targets of every capture, by the rule of `sr3d.capture.choose_pairs`."""
    items = []
    for name, path in captures.items():
        for pair in read_capture(path, rule).pairs:
            items.append(EvaluationItem(clip=name, context=list(pair.context), target=pair.targets))
    return EvaluationIndex(items=items, source="captures", rule=asdict(replace(rule)))


def case_names(items: Sequence[EvaluationItem]) -> list[str]:
    """E.g. "fox/3+9": the capture and its input views, and a number where an index holds several items of them."""
    again, names = Counter[str](), list[str]()
    for item in items:
        name = f"{item.clip}/{'+'.join(map(str, item.context))}"
        again[name] += 1
        names.append(name if again[name] == 1 else f"{name} ({again[name]})")
    return names
