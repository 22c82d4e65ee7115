"""Augmentation: what procedural worlds lack and real captures have.

Every batch is to be changed: a network that also sees clean ones learns to tell them apart, sharpens those without
restraint, and takes photographs and drawings for clean ones.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.datasets.batch import Batch
from sr3d.errors import Sr3dError
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
        blur: Largest standard deviation of a Gaussian blur of all views of a clip, high-resolution pixels: photographs
            are not sharp to the pixel, and places with little detail must not be given any.
        softness: Largest standard deviation of a Gaussian blur of the input views alone, low-resolution pixels: below
            the first level of a zoom, inputs are drawings of the level before, and less sharp than a photograph.
    """

    depth_noise: float = 0.0
    depth_edges: float = 0.0
    gain: float = 0.0
    tint: float = 0.0
    exposure: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    softness: float = 0.0

    def __post_init__(self) -> None:
        for name, strength in asdict(self).items():
            most = 1.0 if name == "depth_edges" else math.inf
            if not 0 <= strength <= most or math.isinf(strength):
                raise Sr3dError("model.augmentation", name, strength, "0 to 1" if most == 1 else "0 or more")


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
    if config.blur:
        batch = _blurred(batch, config.blur * torch.rand(scenes, generator=generator))
    if config.softness:
        soft = _out_of_focus(batch.context, config.softness * torch.rand(scenes, generator=generator))
        batch = replace(batch, context=soft)
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


def _blurred(batch: Batch, sigmas: Float[Tensor, " b"]) -> Batch:
    """All views out of focus; inputs lose what their full-resolution views lose, reduced by area."""
    high, target = _out_of_focus(batch.high, sigmas), _out_of_focus(batch.target, sigmas)
    factor = high.images.shape[2] // batch.context.images.shape[2]
    lost = (high.images - batch.high.images).flatten(0, 1).movedim(-1, 1)
    lost = torch.nn.functional.avg_pool2d(lost, factor).movedim(1, -1).unflatten(0, high.images.shape[:2])
    context = replace(batch.context, images=(batch.context.images + lost).clamp(0, 1))
    return replace(batch, context=context, high=high, target=target)


def _out_of_focus(scene: Scene, sigmas: Float[Tensor, " b"]) -> Scene:
    b, v = scene.images.shape[:2]
    radius = math.ceil(3 * float(sigmas.max()))
    steps = torch.arange(-radius, radius + 1) / sigmas[:, None].clamp_min(1e-3)
    kernel = torch.softmax(-steps.square() / 2, dim=1).to(scene.images)[:, None, None]  # [B, 1, 1, 2·radius + 1]
    # One group of channels per clip: each has its own width.
    images = scene.images.permute(1, 4, 0, 2, 3).flatten(0, 1)
    images = torch.nn.functional.pad(images, (radius,) * 4, mode="replicate")
    for weights in (kernel, kernel.mT):
        images = torch.nn.functional.conv2d(images, weights, groups=b)
    return replace(scene, images=images.unflatten(0, (v, 3)).permute(2, 0, 3, 4, 1).contiguous())


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
