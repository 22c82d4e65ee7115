from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from observed import noisy, observed
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sr3d import Sr3dError
from sr3d.evaluation.metrics.lpips import Lpips
from sr3d.evaluation.metrics.psnr import Psnr
from sr3d.evaluation.metrics.ssim import MsSsim, Ssim
from sr3d.training.perceptual import weights_file

_BORDER = 5  # of the 11 x 11 window


def _half(views: int, height: int, width: int) -> torch.Tensor:
    covered = torch.zeros(views, height, width, dtype=torch.bool)
    covered[:, :, : width // 2] = True
    return covered


def test_psnr_of_scikit_image() -> None:
    rgb, truth = noisy(2, 24, 40)
    covered = _half(2, 24, 40)
    values = Psnr().measure(observed(rgb, truth, covered=covered))
    assert list(values) == [column.name for column in Psnr.columns]
    for i in range(2):
        a, b = truth[i].numpy(), rgb[i].numpy()
        assert values["psnr"][i] == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1), abs=1e-4)
        expected = peak_signal_noise_ratio(a[:, :20], b[:, :20], data_range=1)
        assert values["psnr_covered"][i] == pytest.approx(expected, abs=1e-4)
    assert (values["psnr"] != values["psnr_covered"]).all()


def test_ssim_of_scikit_image() -> None:
    rgb, truth = noisy(2, 24, 40)
    covered = _half(2, 24, 40)
    values = Ssim().measure(observed(rgb, truth, covered=covered))
    for i in range(2):
        # torchmetrics mirrors at the borders and keeps them, scikit-image leaves them out.
        a, b = (np.pad(x[i].double(), [(5, 5), (5, 5), (0, 0)], mode="reflect") for x in (truth, rgb))
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
        mean, pixels = structural_similarity(a, b, channel_axis=-1, full=True, **options)
        assert values["ssim"][i] == pytest.approx(mean, abs=1e-5)
        inner = pixels[_BORDER:-_BORDER, _BORDER:-_BORDER].mean(axis=-1)
        assert values["ssim_covered"][i] == pytest.approx(inner[covered[i].numpy()].mean(), abs=1e-5)
    equal = Ssim().measure(observed(truth, truth))
    assert equal["ssim"].tolist() == equal["ssim_covered"].tolist() == [1, 1]
    small = Ssim().measure(observed(rgb[:, :10], truth[:, :10]))
    assert small["ssim"].isnan().all() and small["ssim_covered"].isnan().all()


def _ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Of one channel, by scipy: contrast at four scales, contrast and luminance at the fifth."""
    value = 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        blurred = [gaussian_filter(x, 1.5, mode="mirror", truncate=3.5) for x in (a, b, a * a, b * b, a * b)]
        mean_a, mean_b, square_a, square_b, product = blurred
        contrast = (2 * (product - mean_a * mean_b) + 9e-4) / (square_a - mean_a**2 + square_b - mean_b**2 + 9e-4)
        luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
        inner = contrast[_BORDER:-_BORDER, _BORDER:-_BORDER].mean()
        value *= (inner if scale < 4 else (luminance * contrast).mean()) ** weight
        a, b = (x.reshape(len(x) // 2, 2, -1, 2).mean(axis=(1, 3)) for x in (a, b))
    return value


def test_ms_ssim_of_scipy() -> None:
    rgb, truth = noisy(1, 192, 224)
    covered = _half(1, 192, 224)
    gray, true = (x.mean(dim=-1, keepdim=True).expand(-1, -1, -1, 3) for x in (rgb, truth))
    values = MsSsim().measure(observed(gray, true, covered=covered))
    a, b = gray[0, ..., 0].double().numpy(), true[0, ..., 0].double().numpy()
    assert values["ms_ssim"].item() == pytest.approx(_ms_ssim(a, b), abs=1e-5)
    mixed = np.where(covered[0].numpy(), a, b)
    assert values["ms_ssim_covered"].item() == pytest.approx(_ms_ssim(mixed, b), abs=1e-5)
    assert 0.1 < values["ms_ssim"].item() < values["ms_ssim_covered"].item() < 1


@pytest.mark.parametrize(("height", "has_value"), [(176, True), (175, False)])
def test_ms_ssim_of_small_views(height: int, has_value: bool) -> None:
    _, truth = noisy(1, height, 176)
    for value in MsSsim().measure(observed(truth, truth)).values():
        assert value.item() == 1 if has_value else value.isnan().all()


@pytest.fixture
def alexnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where AlexNet's weights are looked for; small and random ones take their place."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path, _ = weights_file("alex")
    path.parent.mkdir()
    return path


def test_lpips(alexnet: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(torchvision.models.alexnet(weights=None).state_dict(), alexnet)
    rgb, truth = noisy(2, 40, 48)
    metric = Lpips()
    values = metric.measure(observed(rgb, truth, covered=_half(2, 40, 48)))
    assert (values["lpips_covered"] > 0).all() and (values["lpips_covered"] < values["lpips"]).all()
    everywhere = metric.measure(observed(rgb, truth))
    assert torch.equal(everywhere["lpips"], everywhere["lpips_covered"])
    assert torch.equal(everywhere["lpips"], values["lpips"])
    assert metric.measure(observed(truth, truth))["lpips"].tolist() == [0, 0]
    # One view does not depend on the other, and too small ones have no value.
    torch.testing.assert_close(metric.measure(observed(rgb[1:], truth[1:]))["lpips"], values["lpips"][1:])
    small = metric.measure(observed(rgb[:, :30], truth[:, :30]))
    assert all(value.isnan().all() for value in small.values())


def test_lpips_with_a_file_of_something_else(alexnet: Path) -> None:
    alexnet.write_text("<html>log in to this network</html>")
    with pytest.raises(Sr3dError, match=r"weights: found .*; expected those of alexnet"):
        Lpips()
