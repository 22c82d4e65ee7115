"""The demo's experiments: protocols of `sr3d eval` on its own test places and on a capture, and what its page shows."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from sr3d.capture import Capture, capture_batches
from sr3d.coarse import CoarseConfig, DepthSource
from sr3d.datasets.batch import Batch
from sr3d.datasets.evaluation import EvaluationIndex, EvaluationItem, freeze, write_evaluation
from sr3d.datasets.reader import BatchConfig, ClipBatches, ShardDataset
from sr3d.datasets.views import ViewConfig
from sr3d.demo_config import DemoConfig, Trained
from sr3d.evaluation.cases import Sources
from sr3d.evaluation.methods import MethodOptions
from sr3d.evaluation.output import write_output
from sr3d.evaluation.protocol import read_protocol
from sr3d.evaluation.run import RunConfig, run_protocol
from sr3d.evaluation.statistics import summarise
from sr3d.models import SuperResolver
from sr3d.report import METHODS, Comparison, Experiment
from sr3d.training.evaluate import Drawn, draw_methods

_COLUMNS = ("psnr", "psnr_covered", "ssim", "gaussians")


def procedural_experiment(
    config: DemoConfig, trained: Trained, key: str, title: str, source: DepthSource
) -> Experiment:
    """Every test clip: its ends as inputs, views spread between them as targets."""
    shards = config.output / "shards" / "test"
    views = ViewConfig(target=min(config.targets, config.views - 2))
    index = _write_index(config, key, freeze(ShardDataset(shards).clips(), views, source="demo").items)
    result = _evaluate(config, trained, key, "shards", Sources(paths=[shards], index=index), source)
    clips = ClipBatches(
        shards, BatchConfig(factor=trained.network.config.factor, views=views), shuffle=False, strict=True
    )
    shown = _compare_first(trained.network, clips, source, config.shown)
    return Experiment(key=key, title=title, result=result, comparisons=shown)


def capture_experiment(
    config: DemoConfig, trained: Trained, capture: Capture, key: str, title: str, source: DepthSource
) -> Experiment:
    """Every pair of inputs of the capture, and the photographs between them."""
    assert config.scene is not None
    name = config.scene.resolve().name
    items = [EvaluationItem(clip=name, context=list(p.context), target=p.targets) for p in capture.pairs]
    sources = Sources(paths=[config.scene], index=_write_index(config, key, items))
    result = _evaluate(config, trained, key, "folder", sources, source)
    shown = _compare_first(trained.network, capture_batches(capture, config.capture), source, config.shown)
    return Experiment(key=key, title=title, result=result, comparisons=shown)


def _write_index(config: DemoConfig, key: str, items: list[EvaluationItem]) -> Path:
    """A frozen evaluation index in the folder of an experiment."""
    path = config.output / "evaluation" / key / "index.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_evaluation(path, EvaluationIndex(items=items, source="demo"))
    return path


def _evaluate(
    config: DemoConfig, trained: Trained, key: str, protocol: str, sources: Sources, source: DepthSource
) -> dict[str, Any]:
    """Run a protocol into `output/evaluation/key`.

    Returns:
        `coverage`, `views`, and `psnr`, `psnr_covered`, `ssim`, `gaussians` per method: means over scenes.
    """
    folder = config.output / "evaluation" / key
    options = MethodOptions(checkpoint=str(trained.checkpoint))
    run = RunConfig(
        output=folder, methods=list(METHODS), options=options, sources=sources, source=source, metrics=["psnr", "ssim"]
    )
    if protocol == "folder":
        run.data = {"max_pixels": config.capture.max_pixels}
    results = run_protocol(read_protocol(protocol), run)
    assert results is not None, "the demo runs in one process"
    write_output(results, folder, Console(quiet=True))
    summary = summarise(results, "upsampled")
    means = {m: {c: summary.means[1][m][c].mean for c in _COLUMNS} for m in METHODS}
    return {"coverage": summary.coverage[1], "views": summary.views[1], **means}


def _compare_first(
    network: SuperResolver, batches: Iterable[Batch], source: DepthSource, count: int
) -> list[Comparison]:
    """The middle target view of the first few batches."""
    coarse = CoarseConfig(source=source)
    return [compare(draw_methods(network, batch, coarse)) for batch in islice(batches, count)]


def compare(drawn: Drawn) -> Comparison:
    """The middle target view of the first scene of a drawn batch."""
    context, target = drawn.batch.context, drawn.batch.target
    t = target.images.shape[1] // 2
    centers, at = context.posed().positions[0], target.posed().positions[0, t]
    nearest = int((centers - at).norm(dim=-1).argmin())
    depths = {m: r.depth[0, t] for m, r in drawn.renderings.items()}
    if target.depths is not None:
        depths["truth"] = target.depths[0, t]
    return Comparison(
        title=context.name,
        given=context.images[0, nearest],
        renderings={m: r.rgb[0, t] for m, r in drawn.renderings.items()},
        depths=depths,
        truth=target.images[0, t],
        covered=drawn.covered[0, t],
        scores={m: {k: float(v[0, t]) for k, v in drawn.metrics(m).items()} for m in drawn.renderings},
    )
