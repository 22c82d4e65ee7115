from __future__ import annotations

import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
import torchvision

from sr3d import Sr3dError
from sr3d.training import perceptual
from sr3d.training.losses import LossConfig, Losses
from sr3d.training.perceptual import Perceptual, load_perceptual, weights_file


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch looks for the weights of SqueezeNet: nothing is there yet."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path, url = weights_file("squeeze")
    assert path.parent == tmp_path / "checkpoints" and url.endswith(path.name)
    path.parent.mkdir()
    return path


def _write(path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)


def test_distance_of_images(weights: Path) -> None:
    _write(weights)
    distance = Perceptual("squeeze")
    truth = torch.rand(2, 3, 32, 40, 3, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    rgb = (truth + 0.1 * noise).requires_grad_()
    value = distance(rgb, truth)
    assert value.shape == (2, 3) and (distance(truth, truth) == 0).all()
    assert (value > 0).all() and (value < distance(truth + 0.3 * noise, truth)).all()
    # View by view, whatever is beside it; brighter than white is white.
    torch.testing.assert_close(value[1, 2], distance(rgb[1, 2], truth[1, 2]))
    torch.testing.assert_close(distance(torch.ones_like(truth) * 1.5, truth), distance(torch.ones_like(truth), truth))
    (gradient,) = torch.autograd.grad(value.mean(), rgb)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
    (flat,) = torch.autograd.grad(distance(rgb * 0, truth * 0).sum(), rgb)
    assert torch.isfinite(flat).all()
    assert not any(p.requires_grad for p in distance.parameters())
    with pytest.raises(Sr3dError, match="image size: found 40x16; expected 17x17 or more"):
        distance(rgb[..., :16, :, :], truth[..., :16, :, :])


@pytest.mark.parametrize("net", ["vgg", "alex", "squeeze"])
def test_smallest_images(net: str) -> None:
    least = perceptual._LEAST[net]
    with torch.device("meta"):
        features = torchvision.models.get_model(perceptual._BACKBONES[net], weights=None).features[:-1]
        features(torch.zeros(1, 3, least, least))
        with pytest.raises(RuntimeError):
            features(torch.zeros(1, 3, least - 1, least - 1))


def test_part_of_the_loss_with_the_weights_and_without(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, timeout: float = 60.0, **kwargs: object) -> None:
        asked.append(timeout)
        raise urllib.error.URLError("no route to host")

    asked: list[float] = []
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    config = LossConfig(mse=1.0, lpips=0.5, context=0.0)
    start = time.monotonic()
    with pytest.warns(UserWarning, match="LPIPS is left out.*no route to host.*squeezenet1_1") as seen:
        losses = Losses(config, perceptual="squeeze")
    assert len(asked) == len(seen) == 1 and asked[0] <= 5 and time.monotonic() - start < 5
    assert losses.perceptual is None and set(losses.weights) == {"mse", "dssim"}
    _write(weights)
    losses = Losses(config, perceptual="squeeze")
    assert len(asked) == 1 and set(losses.weights) == {"mse", "dssim", "lpips"}


@pytest.mark.parametrize("content", ["text", "half", "other"])
def test_a_file_of_something_else_is_an_error(weights: Path, content: str) -> None:
    _write(weights)
    if content == "text":
        weights.write_text("<html>log in to this network</html>")
    elif content == "half":
        weights.write_bytes(weights.read_bytes()[:100_000])
    else:
        torch.save({"a": torch.zeros(2)}, weights)
    with pytest.raises(Sr3dError, match=r"weights: found .*; expected those of squeezenet1_1"):
        load_perceptual("squeeze")


def test_processes_agree_on_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    config = LossConfig(lpips=0.1)
    monkeypatch.setattr("sr3d.training.losses.load_perceptual", lambda net: torch.nn.Identity())
    losses = Losses(config)
    losses.agree(torch.device("cpu"))
    assert "lpips" in losses.weights and losses.perceptual is not None
    monkeypatch.setattr("sr3d.training.losses.any_process", lambda flag, device: True)
    with pytest.warns(UserWarning, match="LPIPS is left out: another process") as said:
        losses.agree(torch.device("cpu"))
        losses.agree(torch.device("cpu"))
    assert "lpips" not in losses.weights and losses.perceptual is None and len(said) == 1
    Losses(LossConfig()).agree(torch.device("cpu"))
