from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import sloped_scene, tiny_config
from safetensors.torch import load_file, save_file

from sr3d import Sr3dError, SuperResolver
from sr3d.models.checkpoint import FORMAT


@pytest.fixture
def network() -> SuperResolver:
    torch.manual_seed(3)
    net = SuperResolver(tiny_config())
    torch.nn.init.normal_(net.head.out.weight, std=0.1)
    return net.eval()


def test_the_file_alone_rebuilds_the_network(network: SuperResolver, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path / "model.safetensors")
    for source in (tmp_path / "model.safetensors", tmp_path):
        again = SuperResolver.from_pretrained(source)
        assert again.config == network.config
        scene = sloped_scene(1, 2)
        with torch.no_grad():
            assert torch.equal(again(*scene).means, network(*scene).means)


def test_lightning_checkpoint_rebuilds_the_network(network: SuperResolver, tmp_path: Path) -> None:
    from dataclasses import asdict

    state = {f"network.{k}": v for k, v in network.state_dict().items()}
    torch.save({"state_dict": state, "sr3d_config": asdict(network.config)}, tmp_path / "a.ckpt")
    assert SuperResolver.from_pretrained(tmp_path / "a.ckpt").config == network.config


def _other_width(path: Path) -> None:
    state = load_file(path)
    state["head.out.bias"] = torch.zeros(3)
    save_file(state, path, {"format": FORMAT, "config": _config(path)})


def _config(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        return opened.metadata()["config"]


def _without(path: Path) -> None:
    state = load_file(path)
    del state["slots.weight"]
    save_file(state, path, {"format": FORMAT, "config": _config(path)})


def _unknown_key(path: Path) -> None:
    config = json.loads(_config(path))
    config["decoder"]["widht"] = 3
    save_file(load_file(path), path, {"format": FORMAT, "config": json.dumps(config)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), "no such file"),
        (lambda p: p.write_bytes(p.read_bytes()[:1000]), "unreadable"),
        (lambda p: p.write_bytes(b"not a checkpoint"), "unreadable"),
        (lambda p: save_file({"a": torch.zeros(1)}, p), "format"),
        (lambda p: save_file({"a": torch.zeros(1)}, p, {"format": FORMAT, "config": "{"}), "config"),
        (_other_width, r"head\.out\.bias.*architecture"),
        (_without, r"slots\.weight.*missing"),
        (_unknown_key, r"decoder\.widht.*unknown key"),
    ],
)
def test_bad_checkpoints_are_named(network: SuperResolver, tmp_path: Path, damage, message: str) -> None:
    path = tmp_path / "model.safetensors"
    network.save_pretrained(path)
    damage(path)
    with pytest.raises(Sr3dError, match=message) as caught:
        SuperResolver.from_pretrained(path)
    assert "model.safetensors" in str(caught.value)


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_a_pickled_bomb_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "sr3d_config": Bomb()}, tmp_path / "bomb.ckpt")
    with pytest.raises(Sr3dError, match=r"bomb\.ckpt"):
        SuperResolver.from_pretrained(tmp_path / "bomb.ckpt")
    assert not (tmp_path / "exploded").exists()


def test_nothing_half_written(network: SuperResolver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Sr3dError, match="folder"):
        network.save_pretrained(tmp_path / "missing" / "model.safetensors")
    assert list(tmp_path.iterdir()) == []
