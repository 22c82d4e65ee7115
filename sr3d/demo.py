"""`sr3d demo`: from nothing to a trained predictor, its test on unseen places, a zoom, and a report, in minutes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from sr3d import figures
from sr3d.capture import Capture, capture_batches, read_capture
from sr3d.coarse import DepthSource
from sr3d.datasets.batch import make_batch
from sr3d.datasets.procedural import pack_procedural, world_seed
from sr3d.datasets.shards import list_shards, read_index, writer
from sr3d.datasets.world import World
from sr3d.demo_config import DemoConfig, Trained
from sr3d.demo_evaluation import capture_experiment, procedural_experiment
from sr3d.doctor import devices, versions
from sr3d.errors import Sr3dError
from sr3d.io.atomic import atomic
from sr3d.models import SuperResolver
from sr3d.report import METHODS, Report, ZoomShown, gain, write_report
from sr3d.scene import Scene
from sr3d.zoom import ZoomLevel, zoom_into
from sr3d.zoom.measure import Truth, photograph
from sr3d.zoom.results import write_results

_SOURCES: tuple[DepthSource, ...] = ("sweep", "depth")
_SOURCE_WORDS = {"sweep": "stereo depth", "depth": "given depth"}
_VIDEO_WIDTH = 320  # small enough for the page to carry the videos
_SPLITS: dict[str, Literal["train", "validation", "test"]] = {"train": "train", "val": "validation", "test": "test"}


def run_demo(config: DemoConfig, console: Console | None = None) -> Report:
    """Run all stages and write `report.json` and `report.html`.

    Raises:
        Sr3dError: The capture, the configuration or the output folder cannot be used.
    """
    console = console or Console()
    report = Report(protocol={"demo": _plain(asdict(config))})
    clear_output(config.output)
    capture = None
    if config.scene is not None:
        with _stage("capture", f"reading {config.scene}", report, console):
            capture = read_capture(config.scene, config.capture)
            console.print(_capture_words(capture), highlight=False)
    with _stage("shards", f"photographing {sum(config.scenes.values())} procedural worlds", report, console):
        reused = make_shards(config)
        if reused:
            console.print(f"reused, written with the same options: {', '.join(reused)}", highlight=False)
    with _stage("training", f"training by {config.config.name}", report, console):
        trained = train(config)
        report.curves = trained.curves
    for source in _SOURCES:
        key = "procedural" if source == "sweep" else "procedural_depth"
        title = f"Held-out procedural places, {_SOURCE_WORDS[source]}"
        with _stage(f"evaluation {key}", title.lower(), report, console):
            report.experiments.append(procedural_experiment(config, trained, key, title, source))
    if capture is None:
        report.missing = {k: "no capture was given (make demo SCENE=path)" for k in ("real", "real_depth")}
    else:
        _evaluate_capture(trained, capture, config, report, console)
    with _stage("zoom procedural", f"zooming {config.zoom}x into a held-out table-top", report, console):
        report.zooms.append(zoom_world(trained.network, config))
    if capture is not None:
        with _stage("zoom real", f"zooming {config.zoom}x into {capture.scene.name}", report, console):
            report.zooms.append(zoom_capture(trained.network, capture, config))
    report.versions, report.hardware = dict(versions()), dict(devices())
    report.protocol["checkpoint"] = str(trained.checkpoint)
    if capture is not None:
        report.protocol["capture"] = {"typical_depth": capture.depth, "pairs": [asdict(p) for p in capture.pairs]}
    report.words = protocol_words(config, capture, trained.network.config.factor)
    page = write_report(report, config.output)
    print_summary(report, page, console)
    return report


@contextmanager
def _stage(name: str, words: str, report: Report, console: Console) -> Iterator[None]:
    """Say what is done, and store how long it took."""
    console.print(f"[bold]== {name}[/bold]: {words}", highlight=False)
    start = time.perf_counter()
    yield
    report.seconds[name] = round(time.perf_counter() - start, 2)
    console.print(f"   {report.seconds[name]:.1f} s", highlight=False)


def clear_output(output: Path) -> None:
    """Remove what an earlier run wrote, except shards.

    Raises:
        Sr3dError: `output` is a file.
    """
    if output.exists() and not output.is_dir():
        raise Sr3dError(output, "output", "a file", "a folder, or a name that is free")
    output.mkdir(parents=True, exist_ok=True)
    for name in ("training", "evaluation", "zoom-procedural", "zoom-real"):
        shutil.rmtree(output / name, ignore_errors=True)
    for name in ("report.json", "report.html", "config.yaml"):
        (output / name).unlink(missing_ok=True)


def _capture_words(capture: Capture) -> str:
    pairs = "; ".join(f"{p.context[0]}+{p.context[1]} → {', '.join(map(str, p.targets))}" for p in capture.pairs)
    return f"{len(capture.scene)} views, typical depth {capture.depth:.3g}; inputs → targets: {pairs}"


def make_shards(config: DemoConfig) -> list[str]:
    """Write the splits under `output/shards`; those whose index names the same options are kept.

    Returns:
        Names of the splits that were kept.
    """
    kept = []
    for name, split in _SPLITS.items():
        folder = config.output / "shards" / name
        options: dict[str, Any] = {"scenes": config.scenes[name], "views": config.views, "size": config.size}
        options["seed"] = config.seed
        if _same_options(folder, options):
            kept.append(name)
            continue
        shutil.rmtree(folder, ignore_errors=True)
        pack_procedural(folder, split=split, **options)
    return kept


def _same_options(folder: Path, options: dict[str, Any]) -> bool:
    """Whether shards were written with these options by this version, and are all there."""
    try:
        index = read_index(folder)
        list_shards(folder)
    except Sr3dError:
        return False
    found = index.options.get("converter", {})
    return index.writer == writer() and all(found.get(k) == v for k, v in options.items())


def train(config: DemoConfig) -> Trained:
    """Train by the configuration, moved to `output`.

    Raises:
        Sr3dError: The configuration is missing.
    """
    from sr3d.training.cli import main

    if not config.config.is_file():
        raise Sr3dError(config.config, "config", "missing", "a YAML file for the training")
    moved = config.output / "config.yaml"
    with atomic(moved) as temporary:
        temporary.write_text(config.config.read_text(encoding="utf-8").replace("outputs/demo", str(config.output)))
    trainer = main(["fit", "--config", str(moved), *config.overrides])
    checkpoint = Path(trainer.checkpoint_callback.last_model_path or trainer.checkpoint_callback.best_model_path)
    log = next((Path(lg.log_dir) / "metrics.csv" for lg in trainer.loggers if type(lg).__name__ == "CSVLogger"), None)
    curves = {} if log is None else figures.read_curves(log)
    return Trained(network=SuperResolver.from_pretrained(checkpoint), checkpoint=checkpoint, curves=curves)


def _evaluate_capture(trained: Trained, capture: Capture, config: DemoConfig, report: Report, console: Console) -> None:
    """Add `real`, and `real_depth` or the reason why it is missing, to the report."""
    for source in _SOURCES:
        key = "real" if source == "sweep" else "real_depth"
        if source == "depth" and capture.scene.depths is None:
            report.missing[key] = f"{capture.scene.name} has no depth maps"
            continue
        title = f"Real capture {capture.scene.name}, {_SOURCE_WORDS[source]}"
        with _stage(f"evaluation {key}", title, report, console):
            report.experiments.append(capture_experiment(config, trained, capture, key, title, source))


def zoom_world(network: SuperResolver, config: DemoConfig) -> ZoomShown:
    """Zoom into a table-top of the first test seed, where the world itself is the truth at every magnification."""
    world = World.generate(world_seed(config.seed, 0, "test"), "table")
    views = world.render(world.sample_cameras(config.views, config.size, config.size))
    ends = [0, len(views) - 1]
    low = make_batch(views, ends, [], network.config.factor).context
    return _zoom(network, low, lambda cameras: world.render(cameras).images, "procedural", config)


def zoom_capture(network: SuperResolver, capture: Capture, config: DemoConfig) -> ZoomShown:
    """Zoom into the first pair of a capture; the photograph is the truth up to its own resolution."""
    batch = next(capture_batches(capture, config.capture))
    low, high = _unbatched(batch.context), _unbatched(batch.high)
    truth = photograph(high.images[0], high.posed().index([0]))
    return _zoom(network, low, truth, "real", config)


def _unbatched(scene: Scene) -> Scene:
    """The only scene of a batch of one."""
    depths = None if scene.depths is None else scene.depths[0]
    return Scene(images=scene.images[0], cameras=scene.posed()[0], depths=depths, name=scene.name)


def _zoom(network: SuperResolver, low: Scene, truth: Truth, key: str, config: DemoConfig) -> ZoomShown:
    """Zoom about the busiest spot in the middle of the first view."""
    center = busiest_pixel(low.images[0])
    levels: list[ZoomLevel] = []
    forest = zoom_into(low, center, config.zoom, network=network, on_level=levels.append)
    folder = config.output / f"zoom-{key}"
    step = network.config.factor
    metrics = write_results(
        forest, low, center, levels, folder, step=step, truth=truth, frames=config.frames, video_width=_VIDEO_WIDTH
    )
    return ZoomShown(
        key=key,
        title=f"Zoom {config.zoom}× into {low.name}",
        metrics={"target": list(center), **metrics},
        sheet=folder / "contact.png",
        video=folder / "zoom.mp4",
    )


def busiest_pixel(image: torch.Tensor) -> tuple[float, float]:
    """Centre (u, v) of the window, an eighth of the image wide, with the most contrast in the image's middle half."""
    h, w = image.shape[:2]
    size = max(1, max(h, w) // 8)
    top, left = figures.busiest_window(image[h // 4 : h - h // 4, w // 4 : w - w // 4], size)
    return w // 4 + left + size / 2, h // 4 + top + size / 2


def protocol_words(config: DemoConfig, capture: Capture | None, factor: int) -> list[str]:
    """How the numbers were made, in sentences."""
    small = config.size // factor
    words = [
        f"Training and test worlds are procedural and never share a seed: {config.scenes['train']} to train on, "
        f"{config.scenes['test']} to test on.",
        f"A test clip has {config.views} views of {config.size}×{config.size} pixels along a short path. Its first and "
        f"last view, reduced to {small}×{small} by averaging, are all that any method is given; the views between "
        "them are the targets.",
        "Every method draws Gaussians into the target cameras at full resolution. Poses are given. Depth is measured "
        "by plane-sweep stereo between the two inputs, or given: the same for all methods.",
        "“Covered” counts the target pixels where the coarse scene is solid (alpha over 0.8): one mask for all "
        "methods. What no input sees would otherwise hide the differences. “Whole” counts every pixel.",
        "PSNR and SSIM are means over places (of a capture, over pairs of inputs) of means over target views. A gain "
        "is sr3d minus upsampled: negative where sr3d is worse.",
        f"The zoom adds levels by the same network, {factor}× at a time. In the procedural world the truth is drawn "
        "anew at every magnification; of a photograph it is known up to the photograph's own resolution. The zoom "
        "stays at the first input's place: “bicubic” enlarges that input, so at 1× it is nearly the truth itself.",
    ]
    if capture is not None:
        words.append(
            f"Of {capture.scene.name}, {len(capture.pairs)} pairs of input views were chosen by a rule: in every "
            "stretch of the capture the pair that sees what is between, and whose distance is closest to "
            f"{config.capture.baseline:g} of the typical depth ({capture.depth:.3g}), as in training. Targets lie "
            "strictly between the inputs in the order of the capture. The network was trained on procedural places "
            "only."
        )
    return words


def print_summary(report: Report, page: Path, console: Console) -> None:
    """The headline table, and where the page is."""
    table = Table(title="PSNR on covered pixels, dB; gain there and on the whole image", title_justify="left")
    table.add_column("target views", no_wrap=True)
    for head in (*METHODS, "gain", "whole"):
        table.add_column(head, justify="right", no_wrap=True)
    for e in report.experiments:
        scores = [f"{e.result[m]['psnr_covered']:.2f}" for m in METHODS]
        table.add_row(e.key, *scores, *(_signed(gain(e.result, k)) for k in ("psnr_covered", "psnr")))
    console.print(table, highlight=False)
    for key, reason in report.missing.items():
        console.print(f"{key}: not measured, {reason}", highlight=False)
    console.print(f"{sum(report.seconds.values()) / 60:.1f} minutes; report: {page}", highlight=False, soft_wrap=True)


def _signed(value: float) -> str:
    return f"[{'green' if value > 0 else 'red'}]{value:+.2f}[/]"


def _plain(value: Any) -> Any:
    """JSON values: paths as text."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
