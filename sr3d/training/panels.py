"""Labelled pictures of validation clips: what goes in, what every method makes of it, and where it is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from sr3d.figures import ERROR_RANGE, depth_map, depth_range, error_map
from sr3d.io.atomic import atomic
from sr3d.rendering import render
from sr3d.training.evaluate import Drawn
from sr3d.training.metrics import psnr

_GAP, _TEXT, _BAR = 6, 18, 60
_PAPER, _INK = (250, 250, 250), (40, 40, 40)
_METHODS = {"coarse": "coarse", "upsampled": "upsampled", "sr3d": "ours"}


@dataclass
class Scale:
    """What the colours of a map mean: a matplotlib colour map, and the values at its dark and its light end."""

    colors: str
    dark: float
    light: float


@dataclass
class Tile:
    """One labelled picture, colours in [0, 1]."""

    label: str
    image: Float[Tensor, "h w 3"]
    scale: Scale | None = None


@dataclass
class Row:
    """The pictures of one clip, side by side."""

    title: str
    tiles: list[Tile] = field(default_factory=list)


def clip_tiles(drawn: Drawn, scene: int = 0, view: int = 0, features: bool = True) -> list[Tile]:
    """Pictures of one target view: input, coarse, upsampled, ours, truth, error, depth, true depth, features.

    Methods that were not drawn, depth without truth and features that the network has not are left out. The input is
    the first one, enlarged without smoothing. The error is |ours − truth|, mean of the channels. The colours of both
    depths span the same range: 2 % to 98 % of the true inverse depths, or of ours where truth is unknown.

    Args:
        drawn: Clips drawn by every method.
        scene: Which of the batch.
        view: Which of its target views.
        features: Draw the features of the fine Gaussians, if they have some.
    """
    truth = drawn.batch.target.images[scene, view].float().cpu()
    low = drawn.batch.context.images[scene, 0].float().cpu()
    tiles = [Tile("input", interpolate(low.movedim(-1, 0)[None], truth.shape[:2], mode="nearest")[0].movedim(0, -1))]
    for method, label in _METHODS.items():
        if method in drawn.renderings:
            image = drawn.renderings[method].rgb[scene, view].float().cpu().clamp(0, 1)
            tiles.append(Tile(f"{label} {psnr(image, truth).item():.2f} dB", image))
    tiles.append(Tile("truth", truth))
    ours = drawn.renderings.get("sr3d")
    if ours is None:
        return tiles
    rgb, depth = ours.rgb[scene, view].float().cpu(), ours.depth[scene, view].float().cpu()
    tiles.append(Tile("error", error_map(rgb, truth), Scale("magma", 0.0, ERROR_RANGE)))
    known = drawn.batch.target.depths
    true_depth = None if known is None or not (known[scene, view] > 0).any() else known[scene, view].float().cpu()
    limits = depth_range(depth if true_depth is None else true_depth)
    scale = Scale("viridis", 1 / max(limits[0], 1e-9), 1 / max(limits[1], 1e-9))
    tiles.append(Tile("depth", depth_map(depth, limits), scale))
    if true_depth is not None:
        tiles.append(Tile("true depth", depth_map(true_depth, limits), scale))
    drawn_features = _features(drawn, scene, view) if features else None
    return tiles if drawn_features is None else [*tiles, Tile("features", drawn_features)]


def _features(drawn: Drawn, scene: int, view: int) -> Tensor | None:
    """Principal components of the fine Gaussians' features, drawn; None where they have none."""
    gaussians = drawn.gaussians["sr3d"]
    if gaussians.features is None:
        return None
    with torch.no_grad():
        camera = drawn.batch.target.posed()[scene].index([view])
        rendering = render(gaussians[scene], camera, features=True, lod=False)
    assert rendering.features is not None
    return feature_colors(rendering.features[0], rendering.alpha[0])


def feature_colors(features: Float[Tensor, "h w d"], alpha: Float[Tensor, "h w"]) -> Float[Tensor, "h w 3"]:
    """The three principal components of a feature image as red, green and blue, 2 % to 98 % of each in [0, 1].

    Args:
        features: Alpha-weighted sums, D ≥ 3.
        alpha: Pixels up to ½ are black and do not count.
    """
    solid = (alpha > 0.5).cpu()
    colors = torch.zeros(*features.shape[:2], 3)
    values = normalize(features.detach().float().cpu()[solid], dim=-1)
    if len(values) < 2:
        return colors
    values = values - values.mean(dim=0)
    axes = torch.linalg.eigh(values.T @ values).eigenvectors[:, -3:].flip(-1)
    # An eigenvector's sign is free: fixed, so that colours do not flip from one validation to the next.
    signs = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    parts = values @ (axes * signs)
    low, high = torch.from_numpy(np.quantile(parts.numpy(), [0.02, 0.98], axis=0).astype(np.float32))
    colors[solid] = ((parts - low) / (high - low).clamp_min(1e-9)).clamp(0, 1)
    return colors


def sheet(rows: Sequence[Row], width: int = 256) -> UInt8[np.ndarray, "h w 3"]:
    """Rows of labelled pictures under each other.

    Args:
        rows: At least one.
        width: Of every picture in pixels; 0 keeps their sizes.
    """
    pictures = [[_sized(t.image, width) for t in row.tiles] for row in rows]
    columns = max(len(row) for row in pictures)
    cell = max(p.width for row in pictures for p in row) + _GAP
    titles = [_TEXT if row.title else 0 for row in rows]
    heights = [t + _TEXT + max(p.height for p in row) + _GAP for t, row in zip(titles, pictures)]
    page = Image.new("RGB", (columns * cell + _GAP, sum(heights) + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    top = _GAP
    for row, title, height, images in zip(rows, titles, heights, pictures):
        draw.text((_GAP, top), row.title, fill=_INK, font=font)
        labels = top + title
        for i, (tile, picture) in enumerate(zip(row.tiles, images)):
            left = _GAP + i * cell
            draw.text((left, labels), tile.label, fill=_INK, font=font)
            if tile.scale is not None:
                _draw_scale(page, tile.scale, left + cell - _GAP, labels)
            page.paste(picture, (left, labels + _TEXT))
        top += height
    return np.asarray(page)


def stacked(pictures: Sequence[tuple[str, UInt8[np.ndarray, "_ _ 3"]]]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Pictures of any sizes under each other, each below its title."""
    width = max(p.shape[1] for _, p in pictures)
    page = Image.new("RGB", (width, sum(_TEXT + p.shape[0] for _, p in pictures)), _PAPER)
    draw, font, top = ImageDraw.Draw(page), ImageFont.load_default(12), 0
    for title, picture in pictures:
        draw.text((_GAP, top + 2), title, fill=_INK, font=font)
        page.paste(Image.fromarray(picture), (0, top + _TEXT))
        top += _TEXT + picture.shape[0]
    return np.asarray(page)


def _sized(image: Tensor, width: int) -> Image.Image:
    picture = Image.fromarray((image.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    if width in (0, picture.width):
        return picture
    larger = width > picture.width
    size = (width, max(1, round(picture.height * width / picture.width)))
    return picture.resize(size, Image.Resampling.NEAREST if larger else Image.Resampling.BOX)


def _draw_scale(page: Image.Image, scale: Scale, right: int, top: int) -> None:
    """A colour bar between its two values, that ends at `right`."""
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    dark, light = f"{scale.dark:.3g}", f"{scale.light:.3g}"
    right -= round(draw.textlength(light, font=font))
    draw.text((right, top + 1), light, fill=_INK, font=font)
    ramp = matplotlib.colormaps[scale.colors](np.linspace(0, 1, _BAR))[None, :, :3].repeat(10, axis=0)
    left = right - _BAR - 4
    page.paste(Image.fromarray((ramp * 255).round().astype(np.uint8)), (left, top + 3))
    draw.text((left - 4 - round(draw.textlength(dark, font=font)), top + 1), dark, fill=_INK, font=font)


def write_sheet(path: Path, page: UInt8[np.ndarray, "h w 3"]) -> None:
    """Write a page as PNG; its folder is made.

    Raises:
        Sr3dError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        Image.fromarray(page).save(temporary, optimize=True)
