"""What the network trains on: low-resolution input views, and full-resolution views to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sr3d.datasets.degrade import DegradeConfig, block_mean, degrade, low_size, resample
from sr3d.errors import Sr3dError
from sr3d.scene import Scene

# Two depths of neighbouring pixels that differ by more than this factor belong to two surfaces.
_SAME_SURFACE = 1.05


@dataclass(kw_only=True)
class Batch:
    """Views of one clip [V, ...], or of B clips [B, V, ...] after `stack`.

    Attributes:
        context: The input views at low resolution: images, cameras and maps of the smaller size.
        high: The same views at full resolution.
        target: Other full-resolution views, to be predicted.
        sources: Data set of each of the B clips; empty where that is not known.
        texts: Description of each of the B clips, "" for one without; empty where that is not known.
    """

    context: Scene
    high: Scene
    target: Scene
    sources: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def to(self, device: torch.device | str) -> Batch:
        """Copy to `device`."""
        return self._map(lambda scene: scene.to(device))

    def unpacked(self) -> Batch:
        """The batch with floating-point images."""
        return self._map(lambda scene: scene.unpacked())

    @staticmethod
    def stack(batches: Sequence[Batch]) -> Batch:
        """Clips of equal sizes and view counts as one batch [B, ...].

        Raises:
            Sr3dError: No clips, or their sizes or view counts differ.
        """
        return Batch(
            context=Scene.stack([b.context for b in batches]),
            high=Scene.stack([b.high for b in batches]),
            target=Scene.stack([b.target for b in batches]),
            sources=[source for b in batches for source in b.sources],
            texts=[text for b in batches for text in b.texts],
        )

    def _map(self, f: Callable[[Scene], Scene]) -> Batch:
        """The batch with `f` applied to its three scenes."""
        return replace(self, context=f(self.context), high=f(self.high), target=f(self.target))


def make_batch(
    clip: Scene,
    context: Sequence[int],
    target: Sequence[int],
    factor: int | float,
    config: DegradeConfig | None = None,
    seed: int = 0,
    anywhere: bool = False,
) -> Batch:
    """Choose input and target views of a clip and reduce the inputs.

    Args:
        clip: Posed views in path order.
        context: Input views, at least one.
        target: Views to predict, none of them an input; where there are two inputs or more, between the outermost.
        factor: By how much the inputs are reduced, ≥ 1.
        config: How; `degrade_scene` says what it does. None: `reduce_scene`, by area and a whole number.
        seed: Of random degradations.
        anywhere: Take targets wherever they are, inputs too: published evaluation indices hold such ones.

    Raises:
        Sr3dError: No inputs, a target that is an input or lies outside, an index out of range, no poses, or an image
            size that `factor` does not divide.
    """
    clip.posed()
    if not context:
        raise Sr3dError(clip.name, "context views", "none", "at least one")
    count = len(clip)
    inputs = {i % count for i in context}
    for i in [] if anywhere else [i % count for i in target]:
        outside = len(inputs) > 1 and not min(inputs) < i < max(inputs)
        if i in inputs or outside:
            raise Sr3dError(clip.name, "target view", i, f"a view between the inputs {sorted(inputs)}, not one of them")
    return reduced_batch(clip.views(context), clip.views(target), factor, config, seed)


def reduced_batch(
    high: Scene, target: Scene, factor: int | float, config: DegradeConfig | None = None, seed: int = 0
) -> Batch:
    """Inputs at full resolution and targets, with the inputs reduced; arguments and errors as for `make_batch`.

    Images of 8 bits stay so, but for the reduced ones.
    """
    low = reduce_scene(high, factor) if config is None else degrade_scene(high.unpacked(), factor, config, seed)
    return Batch(context=low, high=high, target=target)


def reduce_scene(scene: Scene, factor: int | float) -> Scene:
    """The scene as a camera with `factor` times fewer pixels per side would see it.

    Images are averaged over factor × factor pixels. Depth is the depth at the centre of the larger pixel: surfaces are
    never averaged with what is behind them. Labels are those of the pixel at the centre. K is scaled.

    Raises:
        Sr3dError: `factor` is no whole number, is below 1, or does not divide the image size.
    """
    height, width = scene.images.shape[-3:-1]
    whole = int(factor)
    if whole != factor or whole < 1 or height % whole or width % whole:
        fit = f"{width - width % max(whole, 1)}x{height - height % max(whole, 1)}"
        found = f"{width}x{height} with factor {factor}"
        raise Sr3dError(
            scene.name, "image size", found, f"a multiple of a whole factor of 1 or more (crop or resize to {fit})"
        )
    return _resized(scene, block_mean(scene.images, whole))


def degrade_scene(scene: Scene, factor: int | float, config: DegradeConfig, seed: int) -> Scene:
    """The scene as a camera with about `factor` times fewer pixels per side would have taken it.

    Width and height are divided by `factor` and rounded, and K is scaled by what each of them became. Depth and labels
    as in `reduce_scene`: they are what is there, not what a camera makes of it.

    Args:
        scene: One clip [V, ...].
        factor: Any number ≥ 1.
        config: How images are reduced.
        seed: Of its random draws.

    Raises:
        Sr3dError: `factor` is below 1 or not finite, or `seed` is negative.
    """
    height, width = scene.images.shape[1:3]
    return _resized(scene, degrade(scene.images, low_size(width, height, factor), config, seed))


def resize_scene(scene: Scene, size: tuple[int, int]) -> Scene:
    """The largest central part of the scene that has the proportions of `size`, at that size.

    Images are averaged over areas where they shrink, and enlarged bicubically; depth and labels as in `reduce_scene`.

    Args:
        scene: One clip [V, ...].
        size: Width and height in pixels.

    Raises:
        Sr3dError: `size` is below 1.
    """
    if min(size) < 1:
        raise Sr3dError("sr3d.datasets.resize_scene", "size", f"{size[0]}x{size[1]}", "1x1 or more")
    height, width = scene.images.shape[1:3]
    # The sides that are cut are rounded; K is scaled by what each side really is.
    w = max(1, min(width, round(height * size[0] / size[1])))
    h = max(1, min(height, round(width * size[1] / size[0])))
    part = crop_scene(scene, (width - w) // 2, (height - h) // 2, w, h)
    shrinks = size[0] <= w and size[1] <= h
    return _resized(part, resample(part.images, size, "area" if shrinks else "bicubic"))


def crop_scene(scene: Scene, left: int, top: int, width: int, height: int) -> Scene:
    """The window of `width` × `height` pixels whose first pixel is (left, top), of a clip [V, ...]."""
    window = (slice(None), slice(top, top + height), slice(left, left + width))
    return replace(
        scene,
        images=scene.images[window],
        cameras=None if scene.cameras is None else scene.cameras.cropped(left, top, width, height),
        depths=None if scene.depths is None else scene.depths[window],
        labels=None if scene.labels is None else scene.labels[window],
    )


def _resized(scene: Scene, images: Float[Tensor, "*batch h w 3"]) -> Scene:
    """The scene with images of another size, and cameras, depths and labels to match."""
    height, width = images.shape[-3:-1]
    return replace(
        scene,
        images=images,
        cameras=None if scene.cameras is None else scene.cameras.resized(width, height),
        depths=None if scene.depths is None else _resized_depth(scene.depths, width, height),
        labels=None if scene.labels is None else _resized_labels(scene.labels, width, height),
    )


def _resized_labels(labels: Int[Tensor, "*batch h w"], width: int, height: int) -> Int[Tensor, "*batch h2 w2"]:
    """Those of the pixels that hold the centres of the new pixels."""
    rows, columns = (
        (2 * torch.arange(new) + 1) * old // (2 * new) for new, old in zip((height, width), labels.shape[-2:])
    )
    return labels[..., rows[:, None], columns]


def _resized_depth(depths: Float[Tensor, "*batch h w"], width: int, height: int) -> Float[Tensor, "*batch h2 w2"]:
    """Depth at the centres of the new pixels.

    Interpolated on a surface; on an edge that of the pixel that holds the centre, where several do that of the nearest
    surface among them; 0 where nothing is known.
    """
    (top, bottom, down), (left, right, across) = (
        _neighbours(old, new) for old, new in zip(depths.shape[-2:], (height, width))
    )
    corners = [(top, left), (top, right), (bottom, left), (bottom, right)]
    around = torch.stack([depths[..., i[:, None], j] for i, j in corners], dim=-1)
    shares = [(v[:, None], u) for v in (1 - down, down) for u in (1 - across, across)]
    weights = torch.stack([v * u for v, u in shares], dim=-1).to(depths)
    holds = torch.stack([(v >= 0.5) & (u >= 0.5) for v, u in shares], dim=-1).to(depths.device)
    known = around > 0
    inverse = torch.where(known, 1 / around.clamp_min(1e-12), torch.zeros_like(around))
    farthest = torch.where(known, inverse, torch.full_like(inverse, torch.inf)).amin(dim=-1)
    # Inverse depth is linear across the image of a plane: its interpolation is exact at the centre.
    smooth = known.all(dim=-1) & (inverse.amax(dim=-1) < _SAME_SURFACE * farthest)
    chosen = torch.where(smooth, (inverse * weights).sum(dim=-1), (inverse * holds).amax(dim=-1))
    return torch.where(chosen > 0, 1 / chosen.clamp_min(1e-12), torch.zeros_like(chosen))


def _neighbours(old: int, new: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Float[Tensor, " n"]]:
    """The pixels on both sides of each new pixel's centre, and how far it lies towards the second, 0 to 1."""
    # In whole numbers: a centre that falls on a pixel's centre has that pixel on both sides.
    position = (2 * torch.arange(new) + 1) * old - new
    first, rest = position // (2 * new), position % (2 * new)
    second = first + (rest > 0)
    return first.clamp(0, old - 1), second.clamp(0, old - 1), rest / (2 * new)
