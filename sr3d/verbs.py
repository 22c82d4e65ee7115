"""What the command line can do. Heavy modules are imported inside the verbs, so that `--help` answers at once."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from sr3d.errors import Sr3dError

Source = Literal["sweep", "depth"]
T = TypeVar("T", int, float)


def doctor() -> None:
    """Show versions, devices, the renderer that is used here, and optional parts."""
    from sr3d.doctor import doctor as show

    show()


def models(
    *,
    width: int = 64,
    height: int = 64,
    views: int = 2,
    batch: int = 1,
    factor: int = 4,
    precision: Literal["fp32", "bf16"] = "fp32",
    checkpointing: bool = False,
) -> None:
    """List the sizes of the network: parameters, memory, Gaussians, operations, before anything is allocated.

    Args:
        width: Of the low-resolution views, pixels.
        height: Of the low-resolution views, pixels.
        views: Input views of a scene.
        batch: Scenes.
        factor: Ratio of the resolutions.
        precision: Of the dense parts; bf16 is mixed precision.
        checkpointing: In training, compute activations again in the backward pass instead of keeping them.
    """
    from rich.console import Console

    from sr3d.models.estimate import Load, size_table

    load = Load(width=width, height=height, views=views, batch=batch, factor=factor)
    console = Console()
    with console.status("estimating"):
        table = size_table(load, precision, checkpointing)
    console.print(table)


def pack(*arguments: str) -> None:
    """Convert a data set into training shards: `sr3d pack SOURCE SRC DST`.

    Args:
        arguments: Source, folders and options; `sr3d pack --help` lists the sources.
    """
    from sr3d.packing import main

    main(arguments)


def inspect(path: Path, *, output: Path | None = None) -> int:
    """Say what shards, a scene folder or a Gaussian file hold, and every violation with its fix; 1 if it is unusable.

    Args:
        path: Folder of shards, index.json, tar file, scene folder, .ply or .sr3d.
        output: Folder for the pictures (or -o); outputs/inspect/NAME if left out.
    """
    from rich.console import Console

    from sr3d.inspection import inspect as look

    report = look(path, output)
    report.show(Console())
    return 0 if report.usable else 1


def train(*arguments: str) -> None:
    """Train by a YAML file: `sr3d train --config configs/demo.yaml`, any key can be overridden.

    Args:
        arguments: Those of Lightning's command line; `sr3d train fit --help` lists them.
    """
    from sr3d.training.cli import main

    subcommands = ("fit", "validate")
    words = list(arguments)
    main(words if words and words[0] in subcommands else ["fit", *words])


def evaluate(
    data: Path,
    *,
    checkpoint: Path,
    source: Source | None = None,
    index: Path | None = None,
    targets: int = 3,
    pairs: int = 5,
    max_pixels: int = 36_000,
    condition: Literal["image", "text"] | None = None,
    output: Path = Path("evaluation.json"),
) -> None:
    """Compare coarse, upsampled, scaffold and sr3d on views that were not given.

    Args:
        data: Folder of shards, a tar file, or a capture with poses.
        checkpoint: Trained network (.ckpt or .safetensors).
        source: Where coarse depth comes from: plane-sweep stereo or the data; both, where possible, if left out.
        index: Frozen evaluation index (`sr3d freeze`, or one of pixelSplat's family): the views of every clip.
        targets: Target views per clip or pair of inputs; an index has its own.
        pairs: Pairs of input views of a capture; shards come with theirs.
        max_pixels: Views are reduced first until an input has no more pixels than this.
        condition: What a network with conditioning is told about each clip: its middle input view, or its text, seen
            by the CLIP model of its training; nothing if left out.
        output: JSON file to write (or -o).
    """
    from rich.console import Console

    from sr3d.capture import CaptureConfig
    from sr3d.coarse import CoarseConfig
    from sr3d.io.atomic import atomic
    from sr3d.models import SuperResolver
    from sr3d.report import method_table
    from sr3d.testset import open_test_set
    from sr3d.training.evaluate import embedder_of
    from sr3d.training.evaluate import evaluate as score

    for name, value in (("targets", targets), ("pairs", pairs), ("max_pixels", max_pixels)):
        if value < 1:
            raise Sr3dError("sr3d eval", f"--{name}", value, "1 or more")
    network = SuperResolver.from_pretrained(checkpoint)
    embedder = None if condition is None else embedder_of(network, condition)
    config = CaptureConfig(factor=network.config.factor, pairs=pairs, targets=targets, max_pixels=max_pixels)
    tests = open_test_set(data, config, index)
    sources: list[Source] = [source] if source else ["sweep", "depth"] if tests.has_depth else ["sweep"]
    results: dict[str, Any] = {}
    for chosen in sources:
        scored = score(network, tests.batches(), CoarseConfig(source=chosen), embedder)
        tests.check_complete(scored.views)
        results[chosen] = scored.as_dict()
        Console().print(method_table(results[chosen], f"{data}, depth source: {chosen}"))
    content = {
        "data": str(data),
        "checkpoint": str(checkpoint),
        "condition": condition,
        **results,
        "protocol": tests.protocol,
    }
    with atomic(output) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {output}")


def freeze(
    data: Path,
    *,
    output: Path,
    by: Literal["span", "frames", "distance", "overlap"] = "span",
    low: float = 0.0,
    high: float | None = None,
    max_angle: float = 180.0,
    inputs: int = 2,
    targets: int = 3,
) -> None:
    """Choose inputs and targets of every clip once and for all: an index for `sr3d eval --index`.

    Args:
        data: Folder of shards.
        output: JSON file to write (or -o).
        by: "span": the ends of the clip. Else the outermost inputs are chosen by their gap in frames, the distance of
            their cameras in world units, or the share of one that the other sees.
        low: Least gap, distance or overlap.
        high: Greatest gap, distance or overlap; any if left out.
        max_angle: Greatest angle between the viewing directions, degrees.
        inputs: Number of input views.
        targets: Number of views to predict, between the inputs.
    """
    from sr3d.datasets.views import ViewConfig
    from sr3d.testset import freeze_shards

    config = ViewConfig(by=by, low=low, high=high, max_angle=max_angle, context=inputs, target=targets)
    items, left_out = freeze_shards(data, output, config)
    print(f"{items} items, {left_out} clips left out: {output}")


def upscale(
    scene: Path,
    *,
    checkpoint: Path,
    output: Path,
    views: str | None = None,
    source: Source | None = None,
    max_pixels: int = 20_000,
    prompt: str | None = None,
) -> None:
    """Turn posed photographs into fine Gaussians: one forward pass, one .ply.

    Args:
        scene: Folder of photographs with poses: transforms.json, a COLMAP model or ScanNet's layout.
        checkpoint: Trained network (.ckpt or .safetensors).
        output: Gaussians to write, .ply (or -o).
        views: Views to use, e.g. 0,4; all if left out.
        source: Where coarse depth comes from: plane-sweep stereo or the depth maps; the latter where there are some.
        max_pixels: Photographs with more pixels than this are reduced by a whole number first.
        prompt: Words about the scene, for a network with conditioning.
    """
    from dataclasses import replace

    from sr3d.capture import fit_sizes
    from sr3d.coarse import CoarseConfig, coarse_gaussians
    from sr3d.io import load_scene
    from sr3d.lod import Lod
    from sr3d.models import SuperResolver
    from sr3d.models.estimate import out_of_memory_explained
    from sr3d.training.conditions import prompt_embedding
    from sr3d.zoom.loop import MAX_GAUSSIANS

    network = SuperResolver.from_pretrained(checkpoint)
    embedding = None if prompt is None else prompt_embedding(network, prompt)
    photographs = load_scene(scene, _numbers(views, "--views", int))
    inputs = fit_sizes(photographs, 1, max_pixels)
    cameras = inputs.posed()
    expected = len(inputs) * cameras.width * cameras.height * network.config.scaffold.children(network.config.factor)
    if expected > MAX_GAUSSIANS:
        found = f"{len(inputs)} views of {cameras.width}x{cameras.height} make {expected:,} Gaussians"
        raise Sr3dError("sr3d upscale", "--views", found, f"at most {MAX_GAUSSIANS:,}: fewer views, or --max_pixels")
    start = time.perf_counter()
    chosen = source or ("sweep" if inputs.depths is None else "depth")
    coarse = coarse_gaussians(inputs, CoarseConfig(source=chosen))
    with out_of_memory_explained("sr3d upscale", network.config, inputs.images):
        fine, _ = network.refine(coarse, inputs, network.config.factor, embedding)
    assert fine.lod is not None
    # The file holds one complete level: its parents are not in it, so there is nothing to fade to.
    replace(fine, lod=Lod.roots(fine.lod.native)).to("cpu").save(output)
    seconds = time.perf_counter() - start
    size = f"{len(inputs)} views of {cameras.width}x{cameras.height}, depth source {chosen}"
    print(f"{size}: {len(coarse):,} coarse, {len(fine):,} fine Gaussians in {seconds:.1f} s: {output}")


def convert(source: Path, destination: Path) -> None:
    """Turn a .ply with levels of detail into a .sr3d forest, or a forest, checked in full, into a .ply.

    A .ply has neither parent links nor positions in float64.

    Args:
        source: Gaussians to read, .ply or .sr3d.
        destination: Gaussians to write, .sr3d or .ply.
    """
    from dataclasses import replace

    from sr3d.gaussians import Gaussians
    from sr3d.io import check_forest, read_forest
    from sr3d.lod import Lod

    for path in (source, destination):
        if path.suffix not in (".ply", ".sr3d"):
            raise Sr3dError("sr3d convert", str(path), repr(path.suffix), "a name that ends in .ply or .sr3d")
    if source.suffix == destination.suffix:
        raise Sr3dError("sr3d convert", str(destination), source.suffix, "the other format: .ply to .sr3d, or back")
    if source.suffix == ".sr3d":
        forest = read_forest(source)
        check_forest(forest)
        gaussians = forest.gaussians()
    else:
        gaussians = Gaussians.load(source)
        if gaussians.lod is None:
            # Without levels nothing ever fades; the size of a Gaussian stands in for the pixel that it was made for.
            size = gaussians.scales.amax(dim=-1).clamp_min(1e-12)
            gaussians = replace(gaussians, lod=Lod.roots(size))
    gaussians.save(destination)
    assert gaussians.lod is not None
    levels = len(gaussians.lod.level.unique())
    print(f"{source} -> {destination}: {len(gaussians):,} Gaussians, {levels} level{'s' if levels != 1 else ''}")


def zoom(
    scene: Path,
    *,
    target: str,
    checkpoint: Path,
    output: Path,
    views: str | None = None,
    factor: int = 16,
    width: int = 160,
    frames: int = 120,
    prompt: str | None = None,
) -> None:
    """Zoom into a place of posed photographs: Gaussians with levels of detail, a video, a contact sheet, numbers.

    Args:
        scene: Folder of photographs with poses.
        target: Pixel of the first view to zoom into, e.g. 120,80.
        checkpoint: Trained network (.ckpt or .safetensors).
        output: Folder to write (or -o).
        views: Views to use, e.g. 0,4; the first is the one shown; all if left out.
        factor: Final magnification, a power of the network's factor.
        width: Largest width of the network's input in pixels.
        frames: Of the video.
        prompt: Words about the scene, for a network with conditioning.
    """
    from sr3d.zoom.run import run_zoom

    pixel = _numbers(target, "--target", float)
    if pixel is None or len(pixel) != 2:
        raise Sr3dError("sr3d zoom", "--target", target, "two numbers, e.g. 120,80")
    chosen = _numbers(views, "--views", int)
    run_zoom(scene, chosen, (pixel[0], pixel[1]), factor, checkpoint, output, width=width, frames=frames, prompt=prompt)
    print(f"written: {output}")


def demo(*, output: Path = Path("outputs/demo"), scene: Path | None = None) -> None:
    """Make shards, train the small predictor, test it on unseen places, zoom in, and write a report.

    Args:
        output: Folder to write (or -o); what an earlier run left there is replaced.
        scene: A capture with poses to test on as well.
    """
    from sr3d.demo import DemoConfig, run_demo

    run_demo(DemoConfig(output=output, scene=scene))


def _numbers(text: str | None, option: str, kind: Callable[[str], T]) -> list[T] | None:
    """A comma-separated list.

    Raises:
        Sr3dError: Something in it is no finite number.
    """
    if text is None:
        return None
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        raise Sr3dError("sr3d", option, repr(text), "numbers separated by commas, e.g. 0,4") from None
    if not all(math.isfinite(v) for v in values):
        raise Sr3dError("sr3d", option, repr(text), "finite numbers")
    return values
