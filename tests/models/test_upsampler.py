from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from sr3d import Sr3dError
from sr3d.models.upsampler import Upsampler, UpsamplerConfig

TINY = {"embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 4, "drop_path_rate": 0.0}


def swin2sr(trainable: bool = False, **options: Any) -> Upsampler:
    torch.manual_seed(0)
    return Upsampler(UpsamplerConfig(method="swin2sr", options=TINY | options, trainable=trainable))


def images(n: int, h: int, w: int) -> torch.Tensor:
    return torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_interpolates_bit_for_bit(method: Any, factor: int) -> None:
    x = images(2, 7, 10)
    expected = torch.nn.functional.interpolate(x, scale_factor=factor, mode=method, align_corners=False).clamp(0, 1)
    assert torch.equal(Upsampler(UpsamplerConfig(method=method))(x, factor), expected)


def test_factor_one_changes_nothing() -> None:
    x = images(1, 5, 6)
    assert torch.equal(Upsampler(UpsamplerConfig())(x, 1), x)


@pytest.mark.parametrize("h, w", [(8, 8), (9, 14), (2, 3), (1, 17)])
def test_swin2sr_enlarges_any_size(h: int, w: int) -> None:
    out = swin2sr()(images(2, h, w), 4)
    assert out.shape == (2, 3, 4 * h, 4 * w)
    assert out.amin() >= 0 and out.amax() <= 1 and out.std() > 1e-3


def test_swin2sr_is_repeated_and_the_rest_is_bicubic() -> None:
    upsampler, x = swin2sr(), images(1, 8, 12)
    once = upsampler.swin2sr(x).reconstruction.clamp(0, 1)
    assert torch.allclose(upsampler(x, 2), once, atol=1e-6)
    assert torch.allclose(upsampler(x, 4), upsampler.swin2sr(once).reconstruction.clamp(0, 1), atol=1e-6)
    six = torch.nn.functional.interpolate(once, scale_factor=3, mode="bicubic", align_corners=False).clamp(0, 1)
    assert torch.allclose(upsampler(x, 6), six, atol=1e-6)


@pytest.mark.parametrize(
    "head, upscale", [("pixelshuffle", 3), ("pixelshuffle_aux", 4), ("pixelshuffledirect", 2), ("nearest+conv", 4)]
)
def test_swin2sr_heads(head: str, upscale: int) -> None:
    out = swin2sr(upsampler=head, upscale=upscale)(images(1, 6, 5), upscale)
    assert out.shape == (1, 3, 6 * upscale, 5 * upscale)


def test_swin2sr_stays_frozen_unless_trained() -> None:
    frozen, trained = swin2sr().train(), swin2sr(trainable=True).train()
    assert not any(m.training for m in frozen.modules()) and all(m.training for m in trained.modules())
    x = images(1, 5, 6)
    assert not frozen(x, 2).requires_grad
    assert torch.equal(frozen(x, 2), trained(x, 2))
    gradients = []
    for enabled in (False, True):
        trained.set_checkpointing(enabled)
        trained.zero_grad()
        (trained(x, 4) * images(1, 20, 24)).sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.parameters())
        gradients.append([p.grad.clone() for p in trained.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*gradients))


def test_full_precision_inside_autocast() -> None:
    upsampler, x = swin2sr(), images(1, 5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(upsampler(x, 4), swin2sr()(x, 4)) and upsampler(x, 4).dtype == torch.float32


def test_named_weights_are_loaded_and_rebuilt_without_the_name(tmp_path: Any) -> None:
    original, x = swin2sr(window_size=8), images(1, 9, 10)
    original.swin2sr.save_pretrained(tmp_path)
    loaded = Upsampler(UpsamplerConfig(method="swin2sr", name=str(tmp_path)))
    assert torch.equal(loaded(x, 2), original(x, 2))
    assert loaded.config.name == "" and loaded.config.options["window_size"] == 8
    rebuilt = Upsampler(loaded.config)
    rebuilt.load_state_dict(loaded.state_dict())
    assert torch.equal(rebuilt(x, 2), original(x, 2))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"method": "swin2sr", "name": "./no/such/folder"}, r"upsampler\.name: found ./no/such/folder"),
        ({"method": "swin2sr", "options": {"windowsize": 4}}, r"upsampler\.options: found windowsize; expected one of"),
        ({"method": "swin2sr", "options": {"window_size": "x"}}, r"upsampler\.options: found .*window_size"),
        ({"method": "swin2sr", "options": TINY | {"embed_dim": 13}}, r"upsampler\.options: found .*embed_dim"),
        ({"method": "swin2sr", "options": TINY | {"num_channels": 1}}, r"upsampler\.options: found num_channels 1"),
        ({"method": "swin2sr", "options": TINY | {"upsampler": ""}}, r"upsampler\.options: found .*upsampler ''"),
        ({"method": "swin2sr", "options": TINY | {"upscale": 5}}, r"upsampler\.options: found .*upscale"),
        ({"options": {"window_size": 4}}, r"upsampler\.options: found .*bicubic"),
        ({"name": "some/weights"}, r"upsampler\.name: found some/weights with method 'bicubic'"),
    ],
)
def test_impossible_configs(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(Sr3dError, match=r"config: model\.network\." + message):
        Upsampler(UpsamplerConfig(**arguments))


def test_impossible_factors() -> None:
    with pytest.raises(Sr3dError, match=r"upsampler\.method: found Swin2SR of 4× for factor 2; expected a divisor"):
        swin2sr(upscale=4)(images(1, 4, 4), 2)
    swin2sr(upscale=4).check(8)


def test_interpolation_does_not_import_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert Upsampler(UpsamplerConfig())(images(1, 2, 2), 2).shape == (1, 3, 4, 4)
    with pytest.raises(ImportError):
        swin2sr()
