"""Image metrics: whole image, and on the pixels that the coarse scene covers."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sr3d.training.losses import ssim

COVERED_ALPHA = 0.8


def psnr(
    rgb: Float[Tensor, "*views h w 3"],
    truth: Float[Tensor, "*views h w 3"],
    mask: Bool[Tensor, "*views h w"] | None = None,
) -> Float[Tensor, "*views"]:
    """Peak signal-to-noise ratio of each view in dB, images in [0, 1], over the pixels of `mask`; NaN for no pixels."""
    error = (rgb.clamp(0, 1) - truth).square().mean(dim=-1)
    if mask is None:
        mse = error.mean(dim=(-2, -1))
    else:
        mse = (error * mask).sum(dim=(-2, -1)) / mask.sum(dim=(-2, -1))
    return -10 * torch.log10(mse.clamp_min(1e-10))


def image_metrics(
    rgb: Float[Tensor, "*views h w 3"], truth: Float[Tensor, "*views h w 3"], covered: Bool[Tensor, "*views h w"]
) -> dict[str, Float[Tensor, "*views"]]:
    """`psnr`, `psnr_covered` and `ssim` of each view."""
    return {
        "psnr": psnr(rgb, truth),
        "psnr_covered": psnr(rgb, truth, covered),
        "ssim": ssim(rgb.clamp(0, 1), truth),
    }
