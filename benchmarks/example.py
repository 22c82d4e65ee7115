"""The picture of the README: a test place as it is given, by the baseline, by a network, and the truth.

python benchmarks/example.py CHECKPOINT TEST_SHARDS docs/images/example.jpg [--clip 0]
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sr3d.coarse import CoarseConfig
from sr3d.datasets.reader import BatchConfig, ClipBatches
from sr3d.datasets.views import ViewConfig
from sr3d.demo import compare
from sr3d.io.atomic import atomic
from sr3d.models import SuperResolver
from sr3d.training.evaluate import draw_methods


def draw(network: SuperResolver, shards: Path, clip: int) -> Figure:
    """Middle target view of a clip whose ends are the inputs, depth by stereo."""
    config = BatchConfig(factor=network.config.factor, views=ViewConfig(target=1))
    batch = next(islice(ClipBatches(shards, config, shuffle=False), clip, None))
    shown = compare(draw_methods(network, batch, CoarseConfig(source="sweep")))
    given, truth = shown.given, shown.truth
    pictures = {
        f"nearest input, {given.shape[1]} × {given.shape[0]} pixels": given,
        f"bicubic baseline, {shown.scores['upsampled']['psnr']:.1f} dB": shown.renderings["upsampled"],
        f"sr3d, {shown.scores['sr3d']['psnr']:.1f} dB": shown.renderings["sr3d"],
        f"truth, {truth.shape[1]} × {truth.shape[0]} pixels": truth,
    }
    figure = Figure(figsize=(4 * len(pictures), 4.3), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (title, picture) in zip(figure.subplots(1, len(pictures)), pictures.items()):
        axis.imshow(picture.clamp(0, 1).numpy(), interpolation="nearest")
        axis.set_title(title, loc="left", fontsize=15)
        axis.axis("off")
    return figure


def main() -> None:
    """Parse arguments, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("shards", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--clip", type=int, default=0, help="which clip of the shards")
    arguments = parser.parse_args()
    figure = draw(SuperResolver.from_pretrained(arguments.checkpoint), arguments.shards, arguments.clip)
    with atomic(arguments.output) as temporary:
        figure.savefig(temporary, format=arguments.output.suffix.lstrip("."), pil_kwargs={"quality": 88})


if __name__ == "__main__":
    main()
