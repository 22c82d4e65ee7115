"""`sr3d zoom`: from a folder of photographs to a zoomable scene, a video, a contact sheet and numbers."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sr3d.datasets.batch import crop_scene, reduce_scene
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.io import load_scene
from sr3d.lod import Forest
from sr3d.models import SuperResolver
from sr3d.scene import Scene
from sr3d.training.conditions import prompt_embedding
from sr3d.zoom.cameras import CAMERAS, ZoomCameras, write_cameras
from sr3d.zoom.loop import ZoomLevel, zoom_into
from sr3d.zoom.measure import Magnified, Truth, consistency, frame_changes, magnify, photograph
from sr3d.zoom.path import zoom_path
from sr3d.zoom.sheet import contact_sheet
from sr3d.zoom.video import draw_path, video_size, write_video


def run_zoom(
    scene_path: str | Path,
    views: Sequence[int] | None,
    target: tuple[float, float],
    factor: int,
    checkpoint: str | Path,
    output: str | Path,
    *,
    width: int = 160,
    frames: int = 120,
    video_width: int = 512,
    prompt: str | None = None,
) -> dict[str, object]:
    """Zoom into a folder of posed photographs and write what came out.

    The photographs are reduced by a whole factor until they are at most `width` wide; what they showed before is the
    truth for magnifications up to that factor. Depth is the folder's own where it has it, else plane-sweep stereo.

    Args:
        scene_path: Anything `sr3d.load_scene` reads, with poses.
        views: Views to use, the first is the one shown; all if None.
        target: Pixel (u, v) of the first view, in the pixels of the photograph.
        factor: Final magnification, a power of the network's factor.
        checkpoint: Trained network.
        output: Folder for the results, made if needed; see `write_results`.
        width: Largest width of the network's input, pixels.
        frames: Of the video.
        video_width: Longer side of the video, pixels.
        prompt: Words about the scene, for a network with conditioning.

    Returns:
        What `metrics.json` says.

    Raises:
        Sr3dError: The scene, checkpoint or target cannot be used, or `output` is a file. `output` is then as it was.
    """
    _check_output(output)
    network = SuperResolver.from_pretrained(checkpoint).to("cuda" if torch.cuda.is_available() else "cpu")
    embedding = None if prompt is None else prompt_embedding(network, prompt)
    photographs = load_scene(scene_path, views)
    if width < 8:
        raise Sr3dError("sr3d zoom", "width", width, "8 pixels or more")
    size = photographs.images.shape[-2], photographs.images.shape[-3]
    if not (0 <= target[0] <= size[0] and 0 <= target[1] <= size[1]):
        raise Sr3dError("sr3d zoom", "target", target, f"a pixel of the first photograph, {size[0]} x {size[1]}")
    reduction = -(-photographs.images.shape[-2] // width)
    width, height = (side - side % reduction for side in size)
    photographs = crop_scene(photographs, 0, 0, width, height)
    low = reduce_scene(photographs, reduction)
    center = (target[0] / reduction, target[1] / reduction)
    truth = photograph(photographs.images[0], photographs.posed().index([0]))
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()) as progress:
        task = progress.add_task("levels", total=None)
        levels: list[ZoomLevel] = []

        def on_level(level: ZoomLevel) -> None:
            levels.append(level)
            progress.update(task, description=f"level {level.level}: {level.gaussians:,} Gaussians", advance=1)

        forest = zoom_into(low, center, factor, network=network, embedding=embedding, on_level=on_level)
        progress.update(task, total=len(levels))
        video = progress.add_task("video frames", total=frames)
        return write_results(
            forest,
            low,
            center,
            levels,
            output,
            step=network.config.factor,
            truth=truth,
            prompt=prompt,
            frames=frames,
            video_width=video_width,
            on_frame=lambda: progress.advance(video),
        )


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
    factor = step ** max(level.level for level in levels)
    seconds = {f"level {level.level}": round(level.seconds, 3) for level in levels}
    first = low.posed().index([0])
    with _staged(output) as folder:
        start = time.perf_counter()
        blocks = Forest.from_gaussians(forest.to("cpu"), torch.cat([level.links for level in levels]))
        blocks.save(folder / "scene.sr3d")
        forest.save(folder / "scene.ply")
        shown = {level.level: first.zoomed(float(step**level.level), center) for level in levels}
        write_cameras(folder / CAMERAS, ZoomCameras(levels=shown, center=center, prompt=prompt or ""))
        seconds["scene.sr3d, scene.ply"] = _lap(start)

        start = time.perf_counter()
        magnifications = [2.0**i for i in range(factor.bit_length()) if 2**i <= factor]
        columns = magnify(forest, low, center, magnifications, truth)
        title = f"{low.name}, {len(low)} views of {first.width} x {first.height}"
        contact_sheet(columns, folder / "contact.png", title)
        seconds["contact.png"] = _lap(start)

        start = time.perf_counter()
        size = video_size(first.width, first.height, video_width)
        path = zoom_path(first, center, float(factor), frames).resized(*size)
        pictures = draw_path(blocks.to(forest.means.device), path, on_frame)
        write_video(pictures, folder / "zoom.mp4")
        fixed = (center[0] * size[0] / first.width, center[1] * size[1] / first.height)
        changes = frame_changes(pictures, path, fixed)
        seconds["zoom.mp4"] = _lap(start)

        metrics: dict[str, object] = {
            "gaussians": len(forest),
            "levels": [
                {
                    "level": level.level,
                    "magnification": step**level.level,
                    "parents": level.parents,
                    "gaussians": level.gaussians,
                    "footprint": level.footprint,
                    "views": len(level.cameras),
                }
                for level in levels
            ],
            "seconds": seconds,
            "magnifications": [_column_metrics(column) for column in columns],
            "consistency": consistency(forest, low, step),
            "popping": {"max": float(changes.max()), "mean": float(changes.mean()), "frame": int(changes.argmax()) + 1},
        }
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


def _column_metrics(column: Magnified) -> dict[str, object]:
    return {"magnification": column.magnification, **column.scores()}


def _lap(start: float) -> float:
    return round(time.perf_counter() - start, 3)


def _check_output(output: str | Path) -> None:
    if Path(output).is_file():
        raise Sr3dError(output, "output", "a file", "a folder, or a name that is free")


@contextmanager
def _staged(output: str | Path) -> Iterator[Path]:
    """A folder beside `output` whose files move there when the block succeeds; else it vanishes."""
    _check_output(output)
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
