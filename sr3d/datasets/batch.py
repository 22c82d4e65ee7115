"""What the network trains on: low-resolution input views, and full-resolution views to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.scene import Scene

# Two depths of neighbouring pixels that differ by more than this factor belong to two surfaces.
_SAME_SURFACE = 1.05


@dataclass(kw_only=True)
class Batch:
    """Views of one clip [V, ...], or of B clips [B, V, ...] after `stack`.

    Attributes:
        context: The input views, reduced: images by area, cameras to the smaller size.
        high: The same views at full resolution.
        target: Other full-resolution views, to be predicted.
    """

    context: Scene
    high: Scene
    target: Scene

    def to(self, device: torch.device | str) -> Batch:
        """Copy to `device`."""
        return Batch(context=self.context.to(device), high=self.high.to(device), target=self.target.to(device))

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
        )


def make_batch(clip: Scene, context: Sequence[int], target: Sequence[int], factor: int) -> Batch:
    """Choose input and target views of a clip and reduce the inputs.

    Args:
        clip: Posed views in path order.
        context: Input views, at least one.
        target: Views to predict, none of them an input; where there are two inputs or more, between the outermost.
        factor: Whole number ≥ 1 by which the inputs are reduced.

    Raises:
        Sr3dError: No inputs, a target that is an input or lies outside, an index out of range, no poses, or an image
            size that `factor` does not divide.
    """
    clip.posed()
    if not context:
        raise Sr3dError(clip.name, "context views", "none", "at least one")
    count = len(clip)
    inputs = {i % count for i in context}
    for i in (i % count for i in target):
        outside = len(inputs) > 1 and not min(inputs) < i < max(inputs)
        if i in inputs or outside:
            raise Sr3dError(clip.name, "target view", i, f"a view between the inputs {sorted(inputs)}, not one of them")
    high = clip.views(context)
    return Batch(context=reduce_scene(high, factor), high=high, target=clip.views(target))


def reduce_scene(scene: Scene, factor: int) -> Scene:
    """The scene as a camera with `factor` times fewer pixels per side would see it.

    Images are averaged over factor × factor pixels. Depth is the depth at the centre of the larger pixel: surfaces are
    never averaged with what is behind them. Labels are those of the pixel at the centre. K is scaled.

    Raises:
        Sr3dError: `factor` is below 1 or does not divide the image size.
    """
    height, width = scene.images.shape[-3:-1]
    if factor < 1 or height % factor or width % factor:
        fit = f"{width - width % max(factor, 1)}x{height - height % max(factor, 1)}"
        found = f"{width}x{height} with factor {factor}"
        raise Sr3dError(
            scene.name, "image size", found, f"a multiple of a factor of 1 or more (crop or resize to {fit})"
        )
    blocks = scene.images.unflatten(-2, (-1, factor)).unflatten(-4, (-1, factor))
    centre = factor // 2
    return replace(
        scene,
        images=blocks.mean(dim=(-4, -2)),
        cameras=None if scene.cameras is None else scene.cameras.resized(width // factor, height // factor),
        depths=None if scene.depths is None else _reduce_depth(scene.depths, factor),
        labels=None if scene.labels is None else scene.labels[..., centre::factor, centre::factor],
    )


def _reduce_depth(depths: Float[Tensor, "*batch h w"], factor: int) -> Float[Tensor, "*batch small_h small_w"]:
    """Depth at the centres of the larger pixels; on an edge that of the nearest surface; 0 where nothing is known."""
    near = [factor // 2] if factor % 2 else [factor // 2 - 1, factor // 2]
    around = torch.stack([depths[..., i::factor, j::factor] for i in near for j in near], dim=-1)
    known = around > 0
    inverse = torch.where(known, 1 / around.clamp_min(1e-12), torch.zeros_like(around))
    nearest = inverse.amax(dim=-1)
    farthest = torch.where(known, inverse, torch.full_like(inverse, torch.inf)).amin(dim=-1)
    # Inverse depth is linear across the image of a plane: its mean is exact at the centre.
    mean = inverse.sum(dim=-1) / known.sum(dim=-1).clamp_min(1)
    smooth = known.all(dim=-1) & (nearest < _SAME_SURFACE * farthest)
    chosen = torch.where(smooth, mean, nearest)
    return torch.where(chosen > 0, 1 / chosen.clamp_min(1e-12), torch.zeros_like(chosen))
