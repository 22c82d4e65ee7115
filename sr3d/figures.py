"""Pictures of a report: images, error and depth maps as data URIs, training curves as SVG."""

from __future__ import annotations

import base64
import csv
import io
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from sr3d.errors import Sr3dError

ERROR_RANGE = 0.25


def image_uri(image: Float[Tensor, "h w 3"], quality: int = 88) -> str:
    """A JPEG data URI of an image in [0, 1] (clamped)."""
    values = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def thumbnail(image: Float[Tensor, "h w 3"], longest: int = 400) -> Float[Tensor, "th tw 3"]:
    """An image averaged down by a whole number until its longer side is at most `longest` pixels."""
    shrink = -(-max(image.shape[:2]) // longest)
    return torch.nn.functional.avg_pool2d(image.movedim(-1, 0), shrink).movedim(0, -1)


def file_uri(path: str | Path, kind: str) -> str:
    """The content of a file as a data URI of media type `kind`.

    Raises:
        Sr3dError: The file is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise Sr3dError(path, "file", "missing", f"a file of type {kind}")
    return f"data:{kind};base64," + base64.b64encode(path.read_bytes()).decode()


def error_map(rgb: Float[Tensor, "h w 3"], truth: Float[Tensor, "h w 3"]) -> Float[Tensor, "h w 3"]:
    """Mean absolute error of the channels, 0 black to 0.25 white (magma)."""
    return _colored((rgb.clamp(0, 1) - truth).abs().mean(dim=-1) / ERROR_RANGE, "magma")


def depth_range(depth: Float[Tensor, "h w"]) -> tuple[float, float]:
    """2 % and 98 % quantiles of inverse depth where depth is known; (0, 1) if nowhere."""
    known = depth[depth > 0]
    if len(known) == 0:
        return 0.0, 1.0
    low, high = np.quantile((1 / known).detach().cpu().numpy(), [0.02, 0.98])
    return float(low), float(high)


def depth_map(depth: Float[Tensor, "h w"], limits: tuple[float, float]) -> Float[Tensor, "h w 3"]:
    """Inverse depth between two limits, near yellow and far violet (viridis); grey where depth is 0.

    Args:
        depth: z-depth, world units.
        limits: Inverse depths of the darkest and the lightest colour, from `depth_range`.
    """
    low, high = limits
    inverse = 1 / depth.clamp_min(1e-9)
    colors = _colored((inverse - low) / max(high - low, 1e-9), "viridis")
    return torch.where((depth > 0)[..., None], colors, torch.full_like(colors, 0.5))


def _colored(values: Tensor, name: str) -> Tensor:
    colors = matplotlib.colormaps[name](values.detach().cpu().clamp(0, 1).numpy())
    return torch.from_numpy(colors[..., :3].astype(np.float32))


def busiest_window(
    image: Float[Tensor, "h w 3"], size: int, counted: Bool[Tensor, "h w"] | None = None
) -> tuple[int, int]:
    """Top and left of the `size` × `size` window with the most contrast (mean of absolute differences).

    The window is cut to the image where that is smaller; contrast outside of `counted` is none.
    """
    h, w = image.shape[:2]
    size_y, size_x = min(size, h), min(size, w)
    contrast = torch.zeros(h, w)
    contrast[:, 1:] += image.diff(dim=1).abs().mean(dim=-1).cpu()
    contrast[1:] += image.diff(dim=0).abs().mean(dim=-1).cpu()
    if counted is not None:
        contrast = contrast * counted.cpu()
    # Along one axis after the other: a large window in a large photograph takes minutes otherwise.
    means = torch.nn.functional.avg_pool2d(contrast[None], (size_y, 1), stride=1)
    means = torch.nn.functional.avg_pool2d(means, (1, size_x), stride=1)[0]
    best = int(means.argmax())
    return best // means.shape[1], best % means.shape[1]


def read_curves(path: str | Path) -> dict[str, list[tuple[float, float]]]:
    """(step, value) of every column of a training's `metrics.csv`.

    Raises:
        Sr3dError: The file is missing or has no column `step`.
    """
    path = Path(path)
    if not path.is_file():
        raise Sr3dError(path, "training log", "missing", "the metrics.csv of sr3d.training.loggers.CSVLogger")
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if "step" not in row:
                raise Sr3dError(path, "columns", ", ".join(row), "a column 'step'")
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    curves[name].append((float(row["step"]), float(value)))
    return dict(curves)


def curves_svg(curves: dict[str, list[tuple[float, float]]]) -> str:
    """Training loss, and validation PSNR on covered pixels against `upsampled`, as an inline SVG."""
    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    style = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "svg.hashsalt": "sr3d"}
    grey = {k: "#888888" for k in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")}
    with plt.rc_context({**style, **grey}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
        _plot_loss(left, curves.get("train/loss", []))
        # val/<data set>/x<factor>/<source>/<method>/<metric>
        scored = [name.split("/") for name in curves if name.endswith("/sr3d/psnr_covered")]
        for color, parts in zip(("#3b82f6", "#f59e0b", "#10b981", "#ef4444"), sorted(scored)):
            for method, line in (("sr3d", "-"), ("upsampled", "--")):
                points = curves.get("/".join([*parts[:-2], method, "psnr_covered"]), [])
                if points:
                    label = f"{method}, {', '.join(parts[1:-2])}"
                    right.plot(*zip(*points), line, color=color, label=label, marker=".")
        right.set(xlabel="step", ylabel="PSNR on covered pixels, dB", title="validation")
        if right.has_data():
            right.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        for axis in (left, right):
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_facecolor("none")
            axis.grid(alpha=0.25)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _plot_loss(axis: Any, points: list[tuple[float, float]]) -> None:
    """The loss of single batches, and their running mean."""
    axis.set(xlabel="step", ylabel="loss", title="training")
    if not points:
        return
    steps, values = np.array(points).T
    axis.plot(steps, values, color="#9ca3af", linewidth=0.8)
    width = max(1, len(values) // 20)
    smooth = np.convolve(values, np.ones(width) / width, mode="valid")
    axis.plot(steps[width - 1 :], smooth, color="#3b82f6")
    axis.set_yscale("log")
