"""What a zoom leaves behind: its scene, a video, contact sheets, a page and numbers."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.io.atomic import atomic
from sr3d.lod import Forest
from sr3d.rendering import render
from sr3d.scene import Scene
from sr3d.zoom.cameras import CAMERAS, ZoomCameras, write_cameras
from sr3d.zoom.level import ZoomLevel
from sr3d.zoom.level_sheet import LevelPictures, level_sheet
from sr3d.zoom.measure import Magnified, Truth, consistency, frame_changes, magnify
from sr3d.zoom.page import write_zoom_page
from sr3d.zoom.path import zoom_path
from sr3d.zoom.sheet import contact_sheet
from sr3d.zoom.target import depth_at
from sr3d.zoom.video import draw_path, scale_bar, video_size, write_video


def write_results(
    forest: Gaussians,
    low: Scene,
    center: tuple[float, float],
    levels: Sequence[ZoomLevel],
    output: str | Path,
    *,
    step: int,
    truth: Truth | None = None,
    prompt: str | None = None,
    frames: int = 120,
    video_width: int = 512,
    on_frame: Callable[[], None] | None = None,
) -> dict[str, object]:
    """Write `scene.sr3d`, `scene.ply`, `cameras.json`, `zoom.mp4`, `contact.png` and `metrics.json`: all or none.

    The contact sheet shows magnification m with the pixels of the low-resolution input, so that level log_step(m) is
    drawn at its native footprint. The video shows the same fields of view, from the whole frame on, with more pixels:
    finer levels come in earlier, and the last frames enlarge the last level.

    Args:
        forest: Result of `zoom_into`.
        low: Its input views.
        center: Its target.
        levels: What `on_level` reported.
        output: Folder, made if needed.
        step: Factor of the network.
        truth: What the first view shows at higher magnifications, where known.
        prompt: Words that the scene was made with.
        frames: Of the video, ≥ 2.
        video_width: Longer side of the video, pixels.
        on_frame: Called after each frame of the video.

    Returns:
        What `metrics.json` says: `gaussians`, `levels`, `seconds`, `magnifications`, `consistency`, `popping`.

    Raises:
        Sr3dError: `output` is a file, or files cannot be written.
    """
    with _staged(output) as folder:
        blocks = Forest.from_gaussians(forest.to("cpu"), torch.cat([level.links for level in levels]))
        rows = [level_row(level) for level in levels]
        pictures = [level.pictures for level in levels if level.pictures is not None]
        blocks.save(folder / "scene.sr3d")
        return write_report(
            folder,
            forest,
            blocks,
            low,
            center,
            rows,
            factor=step ** max(level.level for level in levels),
            step=step,
            truth=truth,
            prompt=prompt,
            frames=frames,
            video_width=video_width,
            pictures=pictures,
            on_frame=on_frame,
        )


def level_row(level: ZoomLevel) -> dict[str, Any]:
    """What `metrics.json` says about a level."""
    names = ("level", "magnification", "parents", "gaussians", "rejected", "footprint", "scores", "words")
    row = {name: getattr(level, name) for name in names}
    return {**row, "views": len(level.cameras), "seconds": round(level.seconds, 3)}


def write_report(
    folder: Path,
    forest: Gaussians,
    blocks: Forest,
    low: Scene,
    center: tuple[float, float],
    rows: Sequence[dict[str, Any]],
    *,
    factor: int,
    step: int,
    truth: Truth | None = None,
    prompt: str | None = None,
    frames: int = 120,
    video_width: int = 512,
    pictures: Sequence[LevelPictures] = (),
    tree: str = "",
    unit: str | None = None,
    on_frame: Callable[[], None] | None = None,
) -> dict[str, object]:
    """Write everything but `scene.sr3d` into a folder; arguments and result as for `write_results`.

    Args:
        folder: That exists.
        forest: All levels.
        blocks: The same.
        low: Input views.
        center: Pixel of the first one that stays in place.
        rows: Of `metrics.json`, one for each level; see `level_row`.
        factor: Magnification that the branch towards the center reaches.
        step: Factor of a level.
        truth: What the first view shows at higher magnifications, where known.
        prompt: Words that the scene was made with.
        frames: Of the video, ≥ 2.
        video_width: Longer side of the video, pixels.
        pictures: Of the levels, for `levels.png`.
        tree: Drawing of the branches.
        unit: Of the world, for the scale bar: "m", or None where it is not known.
        on_frame: Called after each frame of the video.
    """
    first = low.posed().index([0])
    laps: dict[str, float] = {}
    start = time.perf_counter()
    forest.save(folder / "scene.ply")
    levels = range(round(math.log(factor, step)) + 1)
    shown = {level: first.zoomed(float(step**level), center) for level in levels}
    write_cameras(folder / CAMERAS, ZoomCameras(levels=shown, center=center, prompt=prompt or ""))
    laps["scene.ply"] = _lap(start)

    start = time.perf_counter()
    magnifications = [2.0**i for i in range(factor.bit_length()) if 2**i <= factor]
    columns = magnify(forest, low, center, magnifications, truth)
    title = f"{low.name}, {len(low)} views of {first.width} x {first.height}"
    contact_sheet(columns, folder / "contact.png", title)
    if pictures:
        level_sheet(pictures, folder / "levels.png", title)
    laps["contact sheets"] = _lap(start)

    start = time.perf_counter()
    size = video_size(first.width, first.height, video_width)
    path = zoom_path(first, center, float(factor), frames).resized(*size)
    film = draw_path(blocks.to(forest.means.device), path, on_frame)
    fixed = (center[0] * size[0] / first.width, center[1] * size[1] / first.height)
    changes = frame_changes(film, path, fixed)
    depth = depth_at(first, render(forest, first), *center)
    write_video(film if depth is None else scale_bar(film, path, depth, unit), folder / "zoom.mp4")
    laps["zoom.mp4"] = _lap(start)

    metrics: dict[str, Any] = {
        "gaussians": len(forest),
        "levels": list(rows),
        "seconds": {f"level {i}": row["seconds"] for i, row in enumerate(rows)} | laps,
        "magnifications": [_column_metrics(column) for column in columns],
        "consistency": consistency(forest, low, step),
        "popping": {"max": float(changes.max()), "mean": float(changes.mean()), "frame": int(changes.argmax()) + 1},
    }
    with atomic(folder / "metrics.json") as temporary:
        temporary.write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if pictures:
        words = list(dict.fromkeys(str(row["words"]) for row in rows if row["words"]))
        write_zoom_page(
            folder, title=title, metrics=metrics, sheet=folder / "levels.png", video=folder / "zoom.mp4",
            tree=tree, words=words,
        )  # fmt: skip
    return metrics


def _column_metrics(column: Magnified) -> dict[str, object]:
    return {"magnification": column.magnification, **column.scores()}


def _lap(start: float) -> float:
    return round(time.perf_counter() - start, 3)


def check_output(output: str | Path) -> None:
    """Raise if a file is where a folder is to be written."""
    if Path(output).is_file():
        raise Sr3dError(output, "output", "a file", "a folder, or a name that is free")


@contextmanager
def _staged(output: str | Path) -> Iterator[Path]:
    """A folder beside `output` whose files move there when the block succeeds; else it vanishes."""
    check_output(output)
    output = Path(output)
    folder = output.with_name(f".{output.name}.{uuid.uuid4().hex}")
    try:
        folder.mkdir(parents=True)
        yield folder
        output.mkdir(exist_ok=True)
        for file in sorted(folder.iterdir()):
            # A folder (scene.sr3d) cannot take the place of another one that holds files.
            old = folder.with_suffix(".old")
            if (output / file.name).is_dir():
                os.replace(output / file.name, old)
            os.replace(file, output / file.name)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise Sr3dError(output, "output", error.strerror or error, "a folder that can be written") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
