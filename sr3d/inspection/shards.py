"""`sr3d inspect` of shards: a folder with its index, or one tar file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from sr3d.datasets.index import FILE, Index, ShardEntry
from sr3d.datasets.sample import StoredClip
from sr3d.datasets.shards import Shard, checksum, read_clips, read_index
from sr3d.errors import Sr3dError
from sr3d.inspection.mistakes import Convention
from sr3d.inspection.pictures import contact_sheet
from sr3d.inspection.report import Report, Violation, some, span
from sr3d.inspection.scene import check_views
from sr3d.inspection.shots import Shot, spread, take_shot
from sr3d.page import number

CONVENTION = Convention(field="world_to_cam", cam_to_world=False, opengl=False, unit="depth_unit")
_CLIPS, _VIEWS = 6, 16  # decoded clips, and views of each


@dataclass(kw_only=True)
class Content:
    """What is found in the tar files.

    Attributes:
        clips: Number of readable clips.
        views: In all of them.
        scenes: Names of the places.
        sizes: Clips per image size.
        kinds: Clips with depth, with labels, with semantics, in metres, with sparse points.
        chosen: Clips to look into.
    """

    clips: int = 0
    views: int = 0
    scenes: set[str] = field(default_factory=set)
    sizes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    chosen: list[StoredClip] = field(default_factory=list)


def inspect_shards(path: Path, output: Path) -> Report:
    """Inspect a folder of shards, its `index.json`, or one tar file; pictures go to `output`.

    Raises:
        Sr3dError: The index is broken, no clip can be read, or a picture cannot be written.
    """
    index = None if path.suffix == ".tar" else read_index(path)
    report = Report(path=path, kind="one shard" if index is None else f"shards of {index.source}, split {index.split}")
    if index is None:
        shards = [Shard(url=str(path))]
        report.warn(
            path.name, "a tar file alone: no checksum, no counts to compare with", f"inspect the folder with {FILE}"
        )
    else:
        folder = path.parent if path.suffix == ".json" else path
        _tell_index(report, index)
        _check_splits(report, index, folder)
        shards = _whole_shards(report, index, folder)
    content = _read(report, shards)
    if not content.clips:
        found = report.violations[-1].found if report.violations else "nothing"
        raise Sr3dError(path, "clips", f"none that can be read: {found}", "whole tar files as `sr3d pack` writes them")
    _tell_content(report, content)
    _check_clips(report, content.chosen, output)
    return report


def _tell_index(report: Report, index: Index) -> None:
    """Facts of the index."""
    size = sum(s.bytes for s in index.shards)
    report.facts["source"] = f"{index.source} (converter {index.converter_version}), written by {index.writer}"
    report.facts["licence"] = index.licence
    report.facts["options"] = number(index.options) or "none"
    counts = f"{index.clips:,} clips, {index.views:,} views, {len(index.scenes):,} scenes"
    report.facts["index"] = f"{counts} in {len(index.shards):,} tar files, {size / 1e6:,.1f} MB"
    for name in ("scenes", "frames"):
        reasons = index.dropped.get(name)
        if isinstance(reasons, dict) and reasons:
            report.facts[f"dropped {name}"] = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())


def _check_splits(report: Report, index: Index, folder: Path) -> None:
    """Scenes that are in a neighbouring split of the same data set as well."""
    for other in sorted(folder.resolve().parent.glob(f"*/{FILE}")):
        if other.parent == folder.resolve():
            continue
        try:
            theirs = read_index(other)
        except Sr3dError:
            continue  # another folder's fault
        shared = sorted(index.scenes & theirs.scenes)
        if "all" in (index.split, theirs.split):
            continue
        if shared and theirs.source == index.source and theirs.split != index.split:
            found = f"{len(shared)} scenes are in the split {theirs.split} ({other.parent.name}) too: {some(shared)}"
            report.error("scenes", found, "pack both splits again from one list: clips of a scene belong to one split")


def _whole_shards(report: Report, index: Index, folder: Path) -> list[Shard]:
    """Check size and checksum of every tar file, with a progress bar; returns those that are there."""
    columns = (TextColumn("checksums"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    present = []
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=sum(s.bytes for s in index.shards))
        for entry in index.shards:
            if _is_there(report, entry, folder / entry.file):
                present.append(Shard(url=str(folder / entry.file), entry=entry))
            progress.advance(task, entry.bytes)
    good = len(index.shards) - len({v.where for v in report.violations} & {s.file for s in index.shards})
    report.facts["checksums"] = f"{good} of {len(index.shards)} tar files are as the index says"
    return present


def _is_there(report: Report, entry: ShardEntry, path: Path) -> bool:
    fix = "copy it again, or delete it and run `sr3d pack` again: only what is missing is packed"
    try:
        size, digest = checksum(path)
    except OSError as error:
        report.error(entry.file, error.strerror or type(error).__name__, fix)
        return False
    if size != entry.bytes:
        report.error(entry.file, f"{size:,} bytes where the index says {entry.bytes:,}", fix)
    elif digest != entry.sha256:
        report.error(entry.file, f"SHA-256 {digest[:12]}... where the index says {entry.sha256[:12]}...", fix)
    return True


def _read(report: Report, shards: list[Shard]) -> Content:
    """The heads of all clips, compared with the index; damaged tar files become errors of the report."""
    content = Content()
    total = sum(s.entry.clips if s.entry else 1 for s in shards)
    wanted = set(np.linspace(0, total - 1, min(total, _CLIPS)).round().astype(int).tolist())
    for shard in shards:
        before, views = content.clips, content.views
        try:
            for number, clip in enumerate(read_clips(shard)):
                if content.clips in wanted or (shard.entry is None and number < _CLIPS):
                    content.chosen.append(clip)
                _count(content, clip)
                if shard.entry and (clip.name, clip.scene_name) != (
                    shard.entry.names[number],
                    shard.entry.scenes[number],
                ):
                    names = f"clip {number} is {clip.name!r} of {clip.scene_name!r}, not {shard.entry.names[number]!r}"
                    report.error(shard.entry.file, names, "the index is of other files: pack again")
            if shard.entry and content.views - views != shard.entry.views:
                found = f"{content.views - views} views where the index says {shard.entry.views}"
                report.error(shard.entry.file, found, "the index is of other files: pack again")
        except (Sr3dError, IndexError) as error:
            where = f"{Path(shard.url).name}, clip {content.clips - before}"
            found, fix = (
                (error.found, error.expected) if isinstance(error, Sr3dError) else ("more clips than listed", "pack")
            )
            field_name = f" {error.field}:" if isinstance(error, Sr3dError) else ""
            report.error(
                where, f"{field_name} {found}".strip(), f"expected {fix}; copy the file again, or pack it again"
            )
    return content


def _count(content: Content, clip: StoredClip) -> None:
    content.clips += 1
    content.views += len(clip)
    content.scenes.add(clip.scene_name)
    content.sizes[f"{clip.cameras.width}x{clip.cameras.height}"] += 1
    kinds = {"depth": clip.has_depth, "labels": clip.has_labels, "semantics": clip.has_semantics, "metres": clip.metric}
    content.kinds.update(name for name, there in kinds.items() if there)


def _tell_content(report: Report, content: Content) -> None:
    """Facts of what was read."""
    counts = f"{content.clips:,} clips, {content.views:,} views, {len(content.scenes):,} scenes"
    report.facts["found"] = (
        f"{counts}; {span(content.views / content.clips, content.views / content.clips)} views per clip"
    )
    report.facts["image sizes"] = ", ".join(f"{s} ({n} clips)" for s, n in content.sizes.most_common(6))
    kinds = ", ".join(f"{name} {content.kinds[name]}" for name in ("depth", "labels", "semantics", "metres"))
    report.facts["clips with"] = f"{kinds} of {content.clips}"


def _check_clips(report: Report, clips: list[StoredClip], output: Path) -> None:
    """Decode some clips and check their views as those of a scene folder."""
    shown, bad, labels = list[Shot](), list[int](), Counter[str]()
    results = dict[str, list[str]]()
    for i, clip in enumerate(clips):
        try:
            shots = _shots(clip)
        except Sr3dError as error:
            report.error(f"{clip.name}, {error.field}", error.found, f"expected {error.expected}; pack this file again")
            continue
        part = Report(path=Path(clip.name), kind="clip")
        wrong = check_views(part, shots, CONVENTION, None, clip.points(), output, f"cameras-{i}" if i < 2 else None)
        report.pictures += part.pictures
        for name in ("reprojection", "epipolar check", "depth", "K"):
            if name in part.facts:
                results.setdefault(name, []).append(part.facts[name])
        for v in part.violations:
            report.violations.append(
                Violation(severity=v.severity, where=f"{clip.name}: {v.where}", found=v.found, fix=v.fix)
            )
        bad += [len(shown) + k for k in wrong]
        shown += shots
        for shot in shots:
            labels.update({_class(clip, k): n for k, n in (shot.labels or {}).items()})
    _tell_results(report, results, labels, len(clips))
    if shown:
        contact_sheet(shown, output / "views.png", bad)
        report.pictures.insert(0, output / "views.png")


def _tell_results(report: Report, results: dict[str, list[str]], labels: Counter[str], clips: int) -> None:
    for name, texts in results.items():
        if name in ("reprojection", "epipolar check"):
            passed = sum(t.startswith("passes") for t in texts)
            worst = next((t for t in texts if not t.startswith("passes")), texts[0])
            report.facts[name] = f"passes for {passed} of {len(texts)} clips looked into; e.g. {worst}"
        else:
            report.facts[f"{name} (first clip)"] = texts[0]
    if labels:
        pixels = sum(labels.values())
        report.facts["labels"] = ", ".join(f"{k} {100 * n / pixels:.2g} %" for k, n in labels.most_common(12))


def _shots(clip: StoredClip) -> list[Shot]:
    """Decoded views of a clip, spread over it."""
    chosen = spread(len(clip), _VIEWS)
    scene = clip.scene(chosen)
    poses, K = clip.cameras.world_to_cam.numpy(), clip.cameras.K.numpy()
    return [
        take_shot(
            f"{clip.name}/{clip.frames[i]}",
            scene.images[n].numpy(),
            world_to_cam=poses[i],
            K=K[i],
            depth=None if scene.depths is None else scene.depths[n].numpy(),
            labels=None if scene.labels is None else scene.labels[n].numpy(),
        )
        for n, i in enumerate(chosen)
    ]


def _class(clip: StoredClip, number: int) -> str:
    """Name of a semantic id; the number itself for labels without names."""
    if not clip.has_semantics:
        return str(number)
    return "unknown" if number == 0 else clip.classes[number - 1] if number <= len(clip.classes) else f"id {number}"
