"""Losses on rendered images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure


@dataclass(kw_only=True)
class LossConfig:
    """Weights of the parts.

    Attributes:
        mse: Mean squared error.
        ssim: 1 − SSIM.
    """

    mse: float = 1.0
    ssim: float = 0.02


def image_losses(
    rgb: Float[Tensor, "*views h w 3"], truth: Float[Tensor, "*views h w 3"], config: LossConfig
) -> dict[str, Float[Tensor, ""]]:
    """Parts of the loss and their weighted sum under "loss"; parts of weight 0 are not computed."""
    parts: dict[str, Tensor] = {}
    if config.mse:
        parts["mse"] = (rgb - truth).square().mean()
    if config.ssim:
        parts["ssim"] = 1 - ssim(rgb, truth).mean()
    total = sum(
        (getattr(config, name) * value for name, value in parts.items()), torch.zeros_like(rgb[..., 0, 0, 0].sum())
    )
    return {**parts, "loss": total}


def ssim(rgb: Float[Tensor, "*views h w 3"], truth: Float[Tensor, "*views h w 3"]) -> Float[Tensor, "*views"]:
    """Structural similarity of each view (11 × 11 Gaussian window, σ 1.5), images in [0, 1]."""
    a, b = (x.flatten(0, -4).movedim(-1, 1) for x in (rgb, truth))
    value = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
    assert isinstance(value, Tensor)
    return value.reshape(rgb.shape[:-3])
