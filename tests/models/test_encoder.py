from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_networks import tiny_config

from sr3d import Sr3dError, SuperResolver
from sr3d.models.encoder import Encoder, EncoderConfig

SHRUNK = {
    "vit_tiny_patch16_224": {"embed_dim": 24, "depth": 2, "num_heads": 2},
    "vit_small_patch14_dinov2": {"embed_dim": 24, "depth": 2, "num_heads": 2, "init_values": 1.0},
    "vit_small_patch14_reg4_dinov2": {"embed_dim": 24, "depth": 2, "num_heads": 2, "init_values": 1.0},
    "vit_small_patch16_dinov3": {"embed_dim": 24, "depth": 2, "num_heads": 2, "init_values": 1.0},
    "vit_base_patch16_siglip_224": {"embed_dim": 24, "depth": 2, "num_heads": 2},
}
every_kind = pytest.mark.parametrize("name", SHRUNK)


def encoder(name: str = "vit_tiny_patch16_224", **arguments: Any) -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderConfig(name=name, **({"options": SHRUNK[name]} | arguments)))


def views(h: int, w: int, v: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(1, v, 3, h, w, generator=generator)
    return images, torch.randn(1, v, 6, h, w, generator=generator)


@every_kind
@pytest.mark.parametrize("h, w", [(32, 64), (33, 50), (15, 90)])
def test_tokens_of_any_size(name: str, h: int, w: int) -> None:
    model = encoder(name)
    assert model.patch == (14 if "patch14" in name else 16) and model.width == 24
    tokens = model(*views(h, w))
    assert tokens.shape == (1, 2, -(-h // model.patch) * -(-w // model.patch), 24)
    assert tokens.isfinite().all()


@every_kind
def test_tokens_are_in_row_major_order_and_know_their_place(name: str) -> None:
    model = encoder(name, options={**SHRUNK[name], "depth": 1}).eval()
    images, rays = views(3 * model.patch, 5 * model.patch, v=1)
    before = model(images, rays)[0, 0]
    p, (row, column) = model.patch, (1, 3)
    changed = images.clone()
    changed[..., row * p : (row + 1) * p, column * p : (column + 1) * p] += 0.5
    # The patch's own token changes most: the others see it through attention only.
    change = (model(changed, rays)[0, 0] - before).norm(dim=-1)
    assert change.argmax() == row * 5 + column and change.amin() > 0
    # Equal patches differ by where they are.
    flat = model(torch.full_like(images, 0.3), torch.zeros_like(rays))[0, 0]
    assert torch.cdist(flat, flat)[~torch.eye(15, dtype=torch.bool)].amin() > (
        1e-5 if model.vit.pos_embed is not None else 0
    )


@every_kind
def test_every_parameter_receives_a_gradient_with_and_without_checkpointing(name: str) -> None:
    model = encoder(name)
    gradients = []
    for enabled in (False, True):
        model.set_checkpointing(enabled)
        model.zero_grad()
        model(*views(33, 50)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(*gradients))


def test_views_do_not_mix() -> None:
    model, (images, rays) = encoder().eval(), views(32, 48)
    both = model(images, rays)
    alone = torch.cat([model(images[:, i : i + 1], rays[:, i : i + 1]) for i in range(2)], dim=1)
    assert torch.allclose(both, alone, atol=1e-5)


def test_images_are_normalised_as_the_model_was_trained() -> None:
    images, rays = views(32, 32)
    for name, mean, std in [("vit_tiny_patch16_224", 0.5, 0.5), ("vit_small_patch16_dinov3", 0.406, 0.225)]:
        model, seen = encoder(name), []
        model.vit.patch_embed.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        model(images, rays)
        blue = images[0, :, 2]
        assert torch.allclose(seen[0][:, 2], (blue - mean) / std, atol=1e-5)
        assert torch.equal(seen[0][:, 3:], rays[0])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_pretrained_weights_keep_their_meaning(name: str, tmp_path: Path) -> None:
    import timm

    torch.manual_seed(3)
    original = timm.create_model(name, num_classes=0, dynamic_img_size=True, **SHRUNK[name]).eval()
    save_file(original.state_dict(), tmp_path / "weights.safetensors")
    options = SHRUNK[name] | {"pretrained_cfg_overlay": {"file": str(tmp_path / "weights.safetensors")}}
    model = encoder(name, pretrained=True, options=options).eval()
    images, rays = views(32, 48)
    expected = original.forward_features(((images - model.mean) / model.std)[0])[:, original.num_prefix_tokens :]
    assert torch.allclose(model(images, rays)[0], expected, atol=1e-5)  # whatever the rays are
    model.train()(images, rays).square().sum().backward()
    assert model.vit.patch_embed.proj.weight.grad[:, 3:].abs().sum() > 0  # but they are learned
    (tmp_path / "weights.safetensors").unlink()
    rebuilt = Encoder(model.config).eval()
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt(images, rays), model.eval()(images, rays))


@pytest.mark.parametrize("source", ["overlay", "checkpoint", "folder"])
@pytest.mark.parametrize("pretrained", [True, False])
def test_networks_with_settings_from_elsewhere_are_stored_alone(source: str, pretrained: bool, tmp_path: Path) -> None:
    import timm

    torch.manual_seed(3)
    name, elsewhere = "vit_tiny_patch16_224", tmp_path / "elsewhere"
    original = timm.create_model(name, num_classes=0, img_size=64, **SHRUNK[name])
    elsewhere.mkdir()
    save_file(original.state_dict(), elsewhere / "model.safetensors")
    about = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "input_size": [3, 64, 64], "fixed_input_size": True}
    content = {"architecture": name, "pretrained_cfg": about | {"num_classes": 0}, "model_args": SHRUNK[name]}
    (elsewhere / "config.json").write_text(json.dumps(content))
    file = str(elsewhere / "model.safetensors")
    options: dict[str, Any] = SHRUNK[name] | {"pretrained_cfg_overlay": about | {"file": file}}
    if source == "folder":
        name, options = f"local-dir:{elsewhere}", {}
    if source == "checkpoint":
        weights = timm.create_model(name, num_classes=0, img_size=64, in_chans=3 if pretrained else 9, **SHRUNK[name])
        save_file(weights.state_dict(), file)
        options["checkpoint_path"] = file
    config = EncoderConfig(name=name, pretrained=pretrained, options=options)
    network = SuperResolver(replace(tiny_config(), encoder=config, refinement=None)).eval()
    network.save_pretrained(tmp_path / "network")
    shutil.rmtree(elsewhere)
    again = SuperResolver.from_pretrained(tmp_path / "network")
    assert again.config == network.config and again.encoder.config.name == "vit_tiny_patch16_224"
    assert torch.equal(again.encoder(*views(32, 48)), network.encoder(*views(32, 48)))
    assert again.encoder.std.flatten().tolist() == pytest.approx(about["std"])


def test_frozen_trains_the_first_layer_alone() -> None:
    model = encoder(frozen=True, options=SHRUNK["vit_tiny_patch16_224"] | {"drop_path_rate": 0.5}).train()
    images, rays = views(32, 32)
    assert torch.equal(model(images, rays), model(images, rays))  # nothing is dropped
    model(images, rays).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("vit.patch_embed."), name


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "vit_tiny_patch15"}, "name: found 'vit_tiny_patch15'.*expected a model of timm, as vit_tiny_patch16"),
        ({"name": "resnet18"}, "name: found resnet18; expected a plain vision transformer"),
        ({"name": "swin_tiny_patch4_window7_224"}, "name: found swin_tiny.*; expected a plain vision transformer"),
        ({"name": "vit_small_r26_s32_224"}, "name: found vit_small_r26_s32_224; expected a plain vision transformer"),
        ({"options": {"patch_drop_rate": 0.5}}, r"options\.patch_drop_rate: found 0\.5"),
        ({"mean": [0.5]}, r"mean: found \[0\.5\]; expected three numbers"),
        ({"options": {"embed_dims": 24}}, "options: found .*embed_dims"),
        ({"options": {"embed_dim": 25, "num_heads": 2}}, "options: found .*25"),
        (
            {"pretrained": True, "options": {"pretrained_cfg_overlay": {"file": "none.pth"}}},
            "pretrained: found no weights",
        ),
    ],
)
def test_impossible_configs(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(Sr3dError, match=r"config: model\.network\.encoder\." + message):
        Encoder(EncoderConfig(**arguments))
