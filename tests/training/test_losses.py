from __future__ import annotations

import math

import torch

from sr3d.training.losses import LossConfig, image_losses, ssim
from sr3d.training.metrics import image_metrics, psnr


def test_psnr_of_a_known_error() -> None:
    truth = torch.full((2, 16, 16, 3), 0.5)
    torch.testing.assert_close(psnr(truth + 0.1, truth), torch.full((2,), 20.0), atol=1e-3, rtol=0)


def test_psnr_looks_only_at_the_mask() -> None:
    truth = torch.zeros(1, 16, 16, 3)
    image = truth.clone()
    image[:, :8] = 1.0
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[:, 4:12] = True
    torch.testing.assert_close(psnr(image, truth, mask), torch.tensor([-10 * math.log10(0.5)]))
    assert torch.isnan(psnr(image, truth, torch.zeros_like(mask))).all()


def test_colours_are_clamped_before_they_are_compared() -> None:
    truth = torch.ones(1, 16, 16, 3)
    assert psnr(truth * 1.5, truth).item() == 100.0


def test_ssim_matches_scikit_image() -> None:
    from skimage.metrics import structural_similarity

    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 3, 32, 40, 3, generator=generator)
    expected = [
        structural_similarity(
            x.numpy(), y.numpy(), channel_axis=2, data_range=1.0, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
        for x, y in zip(a, b)
    ]  # fmt: skip
    # torchmetrics pads by reflection before it filters, so borders differ in the third digit.
    torch.testing.assert_close(ssim(a, b), torch.tensor(expected, dtype=torch.float32), atol=1e-2, rtol=0)
    torch.testing.assert_close(ssim(a, a), torch.ones(3))


def test_loss_is_the_weighted_sum_and_parts_of_weight_zero_are_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 1, 2, 16, 16, 3, generator=generator)
    parts = image_losses(a, b, LossConfig(mse=2.0, ssim=0.5))
    torch.testing.assert_close(parts["mse"], (a - b).square().mean())
    torch.testing.assert_close(parts["loss"], 2 * parts["mse"] + 0.5 * parts["ssim"])
    assert set(image_losses(a, b, LossConfig(mse=1.0, ssim=0.0))) == {"mse", "loss"}


def test_metrics_keep_the_view_axes() -> None:
    image = torch.rand(2, 3, 16, 16, 3)
    values = image_metrics(image, image, torch.ones(2, 3, 16, 16, dtype=torch.bool))
    assert {k: tuple(v.shape) for k, v in values.items()} == {"psnr": (2, 3), "psnr_covered": (2, 3), "ssim": (2, 3)}
