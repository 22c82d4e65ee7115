"""Depth registration against true depth: what each step of `sr3d.zoom.register` brings, and WonderZoom's fine-tuning.

Two other views with a quarter of the pixels per side become coarse Gaussians; their depth, drawn into a view between
or beside them, is the target, with holes. Errors are against the true depth of that view: procedural test worlds, and
the RedKitchen capture where it is there. No weights can be downloaded for this: the monocular network is a small
convolutional one that is trained here, for about a minute, on procedural training worlds.

    python benchmarks/registration.py                               # some four minutes on a busy core; writes docs/
    python benchmarks/registration.py --views 4 --worlds 8 --steps 20 --docs FOLDER
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import torch
from common import machine, matrix_product, seconds
from jaxtyping import Bool, Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from sr3d import Scene, load_scene, render
from sr3d.coarse import CoarseConfig, coarse_gaussians
from sr3d.coarse.fill import fill_holes
from sr3d.datasets import World, reduce_scene
from sr3d.datasets.procedural import Split, world_seed
from sr3d.errors import Sr3dError
from sr3d.figures import depth_map, depth_range
from sr3d.io.atomic import atomic
from sr3d.training.metrics import COVERED_ALPHA
from sr3d.zoom.fine_tune import FineTuneConfig, fine_tune
from sr3d.zoom.providers import DepthGuess, load_provider
from sr3d.zoom.registration import RegistrationConfig, Step, register

WIDTH, HEIGHT, FACTOR = 160, 120, 4
FULL = "full: scale-shift, segments, residual"
BASELINE = 0.3  # of the mean depth: wide enough that a tenth of the frame is seen by no other view
TAU = 1.03
SEEN = 0.3  # views of the capture of which the others see less have nothing to be registered to
TUNED = FineTuneConfig(steps=50, rate=3e-3)


@dataclass
class View:
    """A view, its true depth (0: unknown), and depth that others draw into it with its mask."""

    image: Float[Tensor, "h w 3"]
    truth: Float[Tensor, "h w"]
    target: Float[Tensor, "h w"]
    valid: Bool[Tensor, "h w"]


class StandIn(nn.Module):
    """A small U-Net at half resolution: image and height in the frame to inverse depth, up to scale."""

    def __init__(self, widths: tuple[int, ...] = (12, 24, 48, 64)) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, widths[0], 5, stride=2, padding=2)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(widths))
        self.middle = nn.Conv2d(2 * widths[-1], widths[-1], 3, padding=1)
        self.up = nn.ModuleList(nn.Conv2d(a + b, b, 3, padding=1) for b, a in pairwise(widths))
        self.last = nn.Conv2d(widths[0] + 4, 1, 3, padding=1)

    def log_inverse(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
        """Log inverse depth of images of half the size."""
        height = torch.linspace(-1, 1, images.shape[2], device=images.device)[:, None].expand(images[:, :1].shape)
        x = torch.cat([2 * images - 1, height], dim=1)
        stages = [F.gelu(self.first(x))]
        for layer in self.down:
            stages.append(F.gelu(layer(stages[-1])))
        y = stages.pop()
        # What the whole image looks like, for every pixel.
        y = F.gelu(self.middle(torch.cat([y, y.mean(dim=(2, 3), keepdim=True).expand_as(y)], dim=1)))
        for layer in reversed(self.up):
            skip = stages.pop()
            y = F.gelu(layer(torch.cat([F.interpolate(y, skip.shape[2:], mode="bilinear"), skip], dim=1)))
        return self.last(torch.cat([F.interpolate(y, x.shape[2:], mode="bilinear"), x], dim=1)).clamp(-5, 5)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
        """Positive."""
        return F.interpolate(self.log_inverse(F.avg_pool2d(images, 2)).exp(), scale_factor=2, mode="bilinear")


def train(worlds: int, steps: int) -> StandIn:
    """Four views of each training world; L1 of log inverse depth without its median, and of its differences."""
    images, depths = [], []
    for number in range(worlds):
        world = World.generate(world_seed(0, number, "train"))
        cameras = world.sample_cameras(4, WIDTH, HEIGHT, baseline=2 * BASELINE)
        clip = world.render(cameras.resized(WIDTH // 2, HEIGHT // 2), samples=2)
        images.append(clip.images.movedim(-1, 1))
        depths.append(_depths(clip))
    colour, wanted = torch.cat(images), -torch.cat(depths)[:, None].log()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = StandIn()
        optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
        for _ in range(steps):
            chosen = torch.randint(len(colour), (8,))
            x, y = colour[chosen], wanted[chosen]
            if torch.rand(()) < 0.5:
                x, y = x.flip(-1), y.flip(-1)
            gain = 1 + 0.4 * (torch.rand(8, 3, 1, 1) - 0.5)
            error = network.log_inverse(x * gain) - y
            error = error - error.flatten(1).median(dim=1).values[:, None, None, None]
            loss = error.abs().mean() + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return network.eval()


def _depths(scene: Scene) -> Tensor:
    """Depth maps of a scene that has them. [V, H, W]"""
    if scene.depths is None:
        raise Sr3dError(scene.name, "depths", "none", "depth maps: they are the truth here")
    return scene.depths


def draw(clip: Scene) -> View:
    """The last view, with depth drawn from coarse Gaussians of the others."""
    given, view = reduce_scene(clip.views(range(len(clip) - 1)), FACTOR), clip.views([-1])
    drawing = render(coarse_gaussians(given, CoarseConfig()), view.posed())
    return View(view.images[0], _depths(view)[0], drawing.depth[0], drawing.alpha[0] >= COVERED_ALPHA)


def procedural_clips(count: int, split: Split) -> list[Scene]:
    """Three views along a path through each world: two that are given, then the one that is registered."""
    clips = []
    for number in range(count):
        world = World.generate(world_seed(0, number, split))
        clips.append(world.render(world.sample_cameras(3, WIDTH, HEIGHT, baseline=BASELINE), samples=2))
    return clips


def kitchen_clips(folder: Path) -> list[Scene]:
    """Every view of the capture between its neighbours in time, which are a second away."""
    scene = reduce_scene(load_scene(folder), 4)
    return [scene.views([i - 1, i + 1, i]) for i in range(1, len(scene) - 1)]


@dataclass
class Outcome:
    """Of one method: errors in percent and shares within tau, of all views one after the other, and seconds."""

    errors: dict[str, list[float]]
    seconds: list[float]


Methods = dict[str, Callable[[], Tensor]]


def methods(network: StandIn, view: View) -> Methods:
    """Ways to a depth map of a view."""
    segmenter = load_provider("segmenter", "regions")
    segments = segmenter.segments(view.image)

    def guess() -> DepthGuess:
        with torch.no_grad():
            return DepthGuess(depth=network(view.image.movedim(-1, 0)[None])[0, 0], kind="inverse")

    def raw() -> Tensor:
        depth = 1 / guess().depth
        return depth * (view.target / depth)[view.valid].median()

    def registered(last: Step) -> Tensor:
        config = RegistrationConfig(last=last)
        return register(guess(), view.target, view.valid, segments=segments, config=config).depth

    return {
        "rendered depth, holes filled (no network)": lambda: fill_holes(
            torch.where(view.valid, view.target, 0)[None], view.image[None]
        )[0],
        "raw network, median matched": raw,
        "scale-shift": lambda: registered("scale-shift"),
        "scale-shift, segments": lambda: registered("segments"),
        FULL: lambda: registered("residual"),
        "fine-tune, 50 steps (WonderZoom Eq. 5)": lambda: (
            fine_tune(network, view.image, view.target, view.valid, config=TUNED)[0].depth
        ),
    }


def compare(network: StandIn, views: Sequence[View]) -> tuple[list[dict[str, str]], str]:
    """One row per method, and what the means hide; seconds are medians, also in matrix products."""
    yardstick = matrix_product()
    outcomes: dict[str, Outcome] = {}
    products = []
    for view in views:
        products.append(seconds(yardstick))
        for name, run in methods(network, view).items():
            outcome = outcomes.setdefault(name, Outcome({}, []))
            start = time.perf_counter()
            depth = run()
            outcome.seconds.append(time.perf_counter() - start)
            for key, value in errors(depth, view).items():
                outcome.errors.setdefault(key, []).append(value)
    product = statistics.median(products)
    rows = []
    for name, outcome in outcomes.items():
        means = {key: f"{statistics.fmean(values):.1f}" for key, values in outcome.errors.items()}
        spent = statistics.median(outcome.seconds)
        rows.append({"method": name, **means, "s": f"{spent:.3f}", "× product": f"{spent / product:.2f}"})
    found = {name: outcome.errors["all %"] for name, outcome in outcomes.items()}
    lost = {name: sum(f > o for f, o in zip(found[FULL], other)) for name, other in found.items() if name != FULL}
    counts = "; ".join(f"{name}: {count}" for name, count in lost.items())
    return rows, f"Views, of {len(views)}, on which full is worse (all pixels) than {counts}."


def errors(depth: Tensor, view: View) -> dict[str, float]:
    """Mean relative error and share within tau, in percent: all pixels, those with a target, and holes."""
    known = view.truth > 0
    ratio = torch.maximum(depth / view.truth, view.truth / depth)
    out = {}
    for name, where in {"all": known, "target": known & view.valid, "holes": known & ~view.valid}.items():
        if bool(where.any()):
            out[f"{name} %"] = 100 * float(((depth - view.truth).abs() / view.truth)[where].mean())
            out[f"{name} τ"] = 100 * float((ratio[where] < TAU).float().mean())
    return out


def picture(network: StandIn, views: Sequence[View]) -> Figure:
    """Image, rendered depth, depth before and after, truth, errors."""
    columns = 8
    figure = Figure(figsize=(2.6 * columns, 2.3 * len(views)), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    for i, view in enumerate(views):
        found = {name: run() for name, run in islice(methods(network, view).items(), 1, 5)}
        raw, line, _, full = found.values()
        limits = depth_range(view.truth)
        known = view.truth > 0
        tiles = {"image": view.image, "rendered depth and its holes": depth_map(view.target * view.valid, limits)}
        tiles |= {"raw network": depth_map(raw, limits), "registered": depth_map(full, limits)}
        tiles["true depth"] = depth_map(view.truth, limits)
        for name, depth in {"raw": raw, "scale-shift": line, "registered": full}.items():
            error = torch.where(known, (depth - view.truth).abs() / view.truth.clamp_min(1e-6), 0)
            tiles[f"error, {name}: {100 * float(error[known].mean()):.1f} %"] = error
        for j, (title, tile) in enumerate(tiles.items()):
            axis = figure.add_subplot(len(views), columns, i * columns + j + 1)
            shown = axis.imshow(tile.clamp(0, 1).numpy(), cmap="magma", vmin=0, vmax=0.2, interpolation="nearest")
            axis.set_title(title, loc="left", fontsize=10)
            axis.axis("off")
            if j == len(tiles) - 1:
                figure.colorbar(shown, ax=axis, format="{x:.0%}", shrink=0.8)
    return figure


INTRO = """# Depth registration

Made by `python benchmarks/registration.py`. A guess of monocular depth is brought to the depth that the scene renders,
where it renders any, by `sr3d.zoom.register`: robust scale and shift, the same per segment, a smooth residual. Beside
it WonderZoom's way, 50 steps of fine-tuning on the masked L1 (Eq. 5).

**The network is a stand-in.** No weights of a depth network could be downloaded here. A convolutional network with
{parameters} weights was trained in {training:.0f} s on {worlds} procedural training worlds ({steps} steps of Adam,
80 × 60 pixels). It knows little, and of a real kitchen nothing at all; what is compared is what can be made of such a
guess. Fine-tuning a network of this size is cheap, too: 50 steps of one with 300 million weights are another matter.

Views have 160 × 120 pixels. The rendered depth comes from coarse Gaussians of two other views of 40 × 30 pixels with
their true depth (of the capture: the sensor's), and counts where alpha is at least {alpha}. Errors are against the true
depth: mean relative error in percent, and `τ`, the share of pixels within 3 % of the truth, on all pixels, on those
with a rendered depth, and in the holes, for which registration is there. Raw: inverted, and multiplied to have the
median of the rendered depth. Seconds are medians per view including the network, and in 2000³ matrix products of the
same process. Settings were chosen on 12 views of other training worlds with an earlier stand-in: registration had some
40 combinations tried, fine-tuning four rates (50 steps being WonderZoom's), of which the best is shown.

![Registration](images/registration.jpg)

Top: a procedural view. Below, where there is one: a view of the capture, whose unknown depth is grey. Errors: black 0,
white 20 % and more.
"""


def markdown(title: str, note: str, rows: Sequence[dict[str, str]]) -> str:
    """A section with a table."""
    head = list(rows[0])
    lines = [" | ".join(head), " | ".join(["---", *["---:"] * (len(head) - 1)])]
    lines += [" | ".join(row.values()) for row in rows]
    return f"## {title}\n{note}\n\n" + "\n".join(f"| {line} |" for line in lines) + "\n"


def main() -> None:
    """Train, register, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=50, help="procedural test views")
    parser.add_argument("--worlds", type=int, default=60, help="training worlds of the stand-in network")
    parser.add_argument("--steps", type=int, default=300, help="training steps of the stand-in network")
    parser.add_argument("--scenes", type=Path, default=os.environ.get("SR3D_SCENES"), help="folder with redkitchen")
    parser.add_argument("--docs", type=Path, default=Path(__file__).resolve().parents[1] / "docs")
    arguments = parser.parse_args()
    console = Console(width=140)
    hardware = ", ".join(f"{k} {v}" for k, v in machine().items())
    console.print(hardware)
    start = time.perf_counter()
    network = train(arguments.worlds, arguments.steps)
    training = time.perf_counter() - start
    console.print(
        f"stand-in for a monocular network, trained on {arguments.worlds} procedural worlds: {training:.0f} s"
    )
    clips = procedural_clips(arguments.views, "test")
    views = [draw(c) for c in clips]
    sets = {f"{len(views)} procedural test views": views}
    shown = views[:1]
    if arguments.scenes is not None and (arguments.scenes / "redkitchen").is_dir():
        kitchen = kitchen_clips(arguments.scenes / "redkitchen")
        drawn = [draw(clip) for clip in kitchen]
        seen = [v for v in drawn if float(v.valid.float().mean()) >= SEEN]
        sets[f"{len(seen)} of {len(drawn)} views of redkitchen"] = seen
        shown.append(min(seen, key=lambda v: float(v.valid.float().mean())))
    sections = []
    for title, views in sets.items():
        rows, counts = compare(network, views)
        table = Table(*rows[0], title=title, title_justify="left")
        for row in rows:
            table.add_row(*row.values())
        console.print(table)
        console.print(counts)
        hidden = 100 * statistics.fmean(float((~v.valid).float().mean()) for v in views)
        sections.append(markdown(title, f"Holes: {hidden:.0f} % of the pixels. {counts}", rows))
    intro = INTRO.format(
        parameters=f"{sum(p.numel() for p in network.parameters()):,}", training=training, worlds=arguments.worlds,
        steps=arguments.steps, alpha=COVERED_ALPHA,
    )  # fmt: skip
    total = f"{hardware}; {(time.perf_counter() - start) / 60:.1f} minutes in all.\n"
    (arguments.docs / "images").mkdir(parents=True, exist_ok=True)
    with atomic(arguments.docs / "images" / "registration.jpg") as temporary:
        picture(network, shown).savefig(temporary, format="jpg", pil_kwargs={"quality": 88})
    with atomic(arguments.docs / "registration.md") as temporary:
        temporary.write_text("\n".join([intro, *sections, total]), encoding="utf-8")


if __name__ == "__main__":
    main()
