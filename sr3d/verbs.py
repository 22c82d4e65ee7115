"""What the command line can do. Heavy modules are imported inside the verbs, so that `--help` answers at once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal, TypeVar

from sr3d.errors import Sr3dError
from sr3d.options import folders, numbers, words

Source = Literal["sweep", "depth"]
T = TypeVar("T", int, float)
DEMO_CHECKPOINT = Path("outputs/demo/training/predictor.ckpt")


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

    subcommands = (("fit",), ("validate",))
    main(list(arguments) if arguments[:1] in subcommands else ["fit", *arguments])


def evaluate(
    *,
    protocol: str = "procedural",
    methods: str = "bicubic,coarse,upsampled,scaffold,sr3d",
    checkpoint: str | None = None,
    scenes: str | None = None,
    index: Path | None = None,
    source: Source | None = None,
    data: dict[str, Any] | None = None,
    metrics: str | None = None,
    limit: int | None = None,
    allow_missing: bool = False,
    condition: Literal["image", "text"] | None = None,
    text_model: str | None = None,
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
    devices: int = 1,
    nodes: int = 1,
    threads: int = 1,
    seed: int = 0,
    wandb: bool = False,
    output: Path | None = None,
) -> None:
    """Compare methods by a protocol: tables with intervals, plots, a report, JSON.

    A run that was stopped goes on where it was, case by case.

    Args:
        protocol: Name of a shipped protocol (docs/protocols.md), or a YAML file.
        methods: NAME, NAME:ARGUMENT or LABEL=NAME:ARGUMENT, separated by commas. bicubic, coarse, upsampled, scaffold;
            optimise:STEPS or :SECONDSs; sr3d:CHECKPOINT; ply:PATH with {scene}, for somebody else's Gaussians.
        checkpoint: Trained network (.ckpt, .safetensors, a folder, a name on the Hugging Face hub); that of the demo
            if left out.
        scenes: Folders of captures, separated by commas, * allowed; for shards the folder of shards.
        index: Frozen evaluation index (`sr3d freeze`, or one of pixelSplat's family).
        source: Where coarse depth comes from: plane-sweep stereo or the data; the protocol's choice if left out.
        data: Values that take the place of the protocol's own, e.g. --data.pairs 3 for captures.
        metrics: Names, separated by commas; the protocol's if left out.
        limit: Evaluate this many cases from the first on, for a quick look.
        allow_missing: List cases that cannot be evaluated instead of failing.
        condition: What a network with conditioning is told about each scene: its middle input view, or its text, seen
            by the CLIP model of its training; nothing if left out.
        text_model: CLIP model that reads the names of classes, to score a network with semantics on labels.
        accelerator: Where to run.
        devices: Processes on this machine, one for each GPU.
        nodes: Machines.
        threads: PyTorch's threads of each process.
        seed: Of everything random.
        wandb: Log the results to wandb; offline where no account is configured.
        output: Folder to write (or -o); outputs/evaluation/PROTOCOL if left out.
    """
    from rich.console import Console

    from sr3d.evaluation.cases import Sources
    from sr3d.evaluation.methods import MethodOptions
    from sr3d.evaluation.output import write_output
    from sr3d.evaluation.protocol import read_protocol
    from sr3d.evaluation.run import RunConfig, run_protocol

    chosen = read_protocol(protocol)
    trained = checkpoint or (str(DEMO_CHECKPOINT) if DEMO_CHECKPOINT.is_file() else None)
    folder = output or Path("outputs/evaluation") / chosen.name
    config = RunConfig(
        output=folder,
        methods=words(methods),
        options=MethodOptions(checkpoint=trained, condition=condition, text_model=text_model),
        sources=Sources(paths=folders(scenes), index=index),
        source=source,
        data=data or {},
        metrics=words(metrics),
        limit=limit,
        allow_missing=allow_missing,
        accelerator=accelerator,
        devices=devices,
        nodes=nodes,
        threads=threads,
        seed=seed,
    )
    results = run_protocol(chosen, config)
    if results is not None:
        write_output(results, folder, Console(), wandb)


def compare(a: Path, b: Path) -> int:
    """Say what became worse from one evaluation to another, on the same views; 1 if anything did beyond chance.

    Args:
        a: results.json of the run before.
        b: results.json of the run after.
    """
    from rich.console import Console

    from sr3d.evaluation.compare import compare as compare_runs
    from sr3d.evaluation.compare import terminal

    found = compare_runs(a, b)
    Console().print(terminal(found))
    return 1 if found.regressed else 0


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
    from sr3d.datasets.evaluation import freeze as choose
    from sr3d.datasets.evaluation import write_evaluation
    from sr3d.datasets.reader import ShardDataset
    from sr3d.datasets.shards import read_index
    from sr3d.datasets.views import ViewConfig
    from sr3d.evaluation.cases.shards import shards_digest

    config = ViewConfig(by=by, low=low, high=high, max_angle=max_angle, context=inputs, target=targets)
    clips = ShardDataset(data).clips()
    frozen = choose(clips, config, source=read_index(data).source, sha256=shards_digest(data))
    write_evaluation(output, frozen)
    print(f"{len(frozen.items)} items, {len(frozen.left_out)} clips left out: {output}")


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
    photographs = load_scene(scene, numbers(views, "--views", int))
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


def demo(*, output: Path = Path("outputs/demo"), scene: Path | None = None) -> None:
    """Make shards, train the small predictor, test it on unseen places, zoom in, and write a report.

    Args:
        output: Folder to write (or -o); what an earlier run left there is replaced.
        scene: A capture with poses to test on as well.
    """
    from sr3d.demo import DemoConfig, run_demo

    run_demo(DemoConfig(output=output, scene=scene))
