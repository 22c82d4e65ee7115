"""Augmentation: what procedural worlds lack and real captures have.

Every batch is to be changed: a network that also sees clean ones learns to tell them apart, sharpens those without
restraint, and takes photographs and drawings for clean ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.datasets.batch import Batch
from sr3d.scene import Scene


@dataclass(kw_only=True)
class AugmentConfig:
    """Strengths; 0 turns a part off.

    Attributes:
        depth_noise: Standard deviation of a smooth relative error of the given depth, a fraction.
        depth_edges: Probability, for each input view, that its given depth does not line up with its colours: moved by
            one pixel, with the foreground grown by one, as depth cameras do.
        gain: Largest change of brightness as a power of 2, the same in all views of a clip; bright parts saturate, as
            in photographs.
        tint: Largest change of a single channel's brightness as a power of 2.
        exposure: Largest difference between the brightness of two input views as a power of 2.
        noise: Standard deviation of sensor noise in the input views, colours in 0..1.
    """

    depth_noise: float = 0.0
    depth_edges: float = 0.0
    gain: float = 0.0
    tint: float = 0.0
    exposure: float = 0.0
    noise: float = 0.0


def augment(batch: Batch, config: AugmentConfig, generator: torch.Generator) -> Batch:
    """A batch [B, ...] as a worse sensor would have recorded it; input and truth stay consistent with each other.

    Args:
        batch: Context, high and target views; not changed.
        config: Strengths.
        generator: Of all random draws, on the CPU.
    """
    scenes = len(batch.context.images)
    brightness = config.gain * _uniform((scenes, 1, 1, 1, 1), generator)
    color = torch.exp2(brightness + config.tint * _uniform((scenes, 1, 1, 1, 3), generator))
    views = torch.exp2(config.exposure / 2 * _uniform((scenes, batch.context.images.shape[1], 1, 1, 1), generator))
    context = _brightened(batch.context, color * views)
    high = _brightened(batch.high, color * views)
    if config.noise:
        noise = config.noise * torch.randn(context.images.shape, generator=generator)
        context = replace(context, images=(context.images + noise.to(context.images)).clamp(0, 1))
    if config.depth_edges and context.depths is not None:
        wrong = torch.rand(context.depths.shape[:2], generator=generator) < config.depth_edges
        shifts = torch.randint(-1, 2, (2,), generator=generator).tolist()
        moved = _misaligned(context.depths, shifts)
        context = replace(context, depths=torch.where(wrong[..., None, None].to(moved.device), moved, context.depths))
    if config.depth_noise and context.depths is not None:
        error = 1 + config.depth_noise * _smooth_noise(context.depths, generator)
        context = replace(context, depths=context.depths * error)
    return replace(batch, context=context, high=high, target=_brightened(batch.target, color))


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """In −1..1."""
    return 2 * torch.rand(shape, generator=generator) - 1


def _brightened(scene: Scene, factor: Tensor) -> Scene:
    return replace(scene, images=(scene.images * factor.to(scene.images)).clamp(0, 1))


def _misaligned(depths: Float[Tensor, "b v h w"], shifts: list[int]) -> Float[Tensor, "b v h w"]:
    """Moved by (rows, columns) of −1..1, foreground grown by a pixel; unknown depth (0) is never foreground."""
    far = torch.where(depths > 0, depths, torch.inf)
    grown = -torch.nn.functional.max_pool2d(-far, 3, stride=1, padding=1)
    padded = torch.nn.functional.pad(grown, (1, 1, 1, 1), mode="replicate")
    h, w = depths.shape[-2:]
    moved = padded[..., 1 + shifts[0] : 1 + shifts[0] + h, 1 + shifts[1] : 1 + shifts[1] + w]
    return torch.where(torch.isfinite(moved), moved, torch.zeros_like(moved))


def _smooth_noise(
    like: Float[Tensor, "b v h w"], generator: torch.Generator, cell: int = 6
) -> Float[Tensor, "b v h w"]:
    """Unit-variance noise with bumps of about `cell` pixels, plus a quarter of white noise."""
    b, v, h, w = like.shape
    rough = torch.randn(b, v, -(-h // cell) + 1, -(-w // cell) + 1, generator=generator)
    smooth = torch.nn.functional.interpolate(rough, size=(h, w), mode="bicubic", align_corners=True)
    white = torch.randn(b, v, h, w, generator=generator)
    return (smooth + 0.25 * white).to(like)
