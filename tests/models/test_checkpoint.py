from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_networks import sloped_scene, tiny_config

from sr3d import Sr3dError, SuperResolver
from sr3d.models import checkpoint as module
from sr3d.models.checkpoint import EMA_KEY, FORMAT, network_entries
from sr3d.models.config import config_from_dict
from sr3d.typed import from_dict


@pytest.fixture(scope="module")
def network() -> SuperResolver:
    torch.manual_seed(3)
    net = SuperResolver(tiny_config())
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return net.eval()


def lightning(network: SuperResolver, path: Path, **entries: Any) -> None:
    state = {f"network.{k}": v for k, v in network.state_dict().items()} | {"loss.other": torch.zeros(1)}
    torch.save({"state_dict": state, **network_entries(network), **entries}, path)


def same(a: SuperResolver, b: SuperResolver) -> bool:
    states = a.state_dict(), b.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][k]) for k, v in states[0].items())


@pytest.mark.parametrize("name", ["model.safetensors", "v1.0", "a.ckpt"])
def test_what_is_stored_alone_rebuilds_the_network(network: SuperResolver, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    lightning(network, path) if path.suffix == ".ckpt" else network.save_pretrained(path)
    before = torch.random.get_rng_state()
    again = SuperResolver.from_pretrained(path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert again.config == network.config and same(again, network) and not again.training
    scene = sloped_scene(1, 2)
    with torch.no_grad():
        assert torch.equal(again(*scene).means, network(*scene).means)


def test_a_folder_keeps_its_other_files_and_a_file_its_own_config(network: SuperResolver, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    for _ in range(2):
        network.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    (tmp_path / "config.json").unlink()
    assert same(SuperResolver.from_pretrained(tmp_path), network)
    # Other tools keep the weights and lose the metadata.
    network.save_pretrained(tmp_path)
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors")
    assert same(SuperResolver.from_pretrained(tmp_path), network)


def test_averaged_weights_are_taken(network: SuperResolver, tmp_path: Path) -> None:
    averaged = {k: v + 1 for k, v in network.named_parameters()}
    lightning(network, tmp_path / "a.ckpt", **{EMA_KEY: averaged})
    again = SuperResolver.from_pretrained(tmp_path / "a.ckpt")
    for name, value in again.named_parameters():
        assert torch.equal(value, averaged[name])


def rewrite(path: Path, change: Callable[[dict], None] | None = None, format: str = FORMAT, **tensors: Any) -> None:
    """A file of `save_pretrained` with another config, format or tensors (None: left out)."""
    with safe_open(path, framework="pt") as opened:
        config = json.loads(opened.metadata()["config"])
    if change:
        change(config)
    state = {k: v for k, v in (load_file(path) | tensors).items() if v is not None}
    save_file(state, path, {"format": format, "config": json.dumps(config)})


DAMAGES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda p: p.unlink(), "no such file"),
    (lambda p: p.write_bytes(p.read_bytes()[:1000]), "unreadable"),
    (lambda p: p.write_bytes(p.read_bytes()[:-1]), "unreadable"),
    (lambda p: p.write_bytes(b"not a checkpoint"), "unreadable"),
    (lambda p: p.write_bytes(b""), "unreadable"),
    (lambda p: save_file({"a": torch.zeros(1)}, p), "format: found None"),
    (lambda p: save_file({"a": torch.zeros(1)}, p, {"format": FORMAT}), "config: found missing"),
    (lambda p: save_file({"a": torch.zeros(1)}, p, {"format": FORMAT, "config": "{"}), "config: found unreadable"),
    (lambda p: save_file({"a": torch.zeros(1)}, p, {"format": FORMAT, "config": "[" * 10**5}), "config: found unread"),
    (lambda p: save_file({"a": torch.zeros(1)}, p, {"format": FORMAT, "config": "[]"}), "found a list"),
    (lambda p: rewrite(p, format="sr3d-network-1"), "sr3d-network-1.*sr3d-network-3.*train again"),
    # Format 2 had keys that are unknown now; it is the format that matters.
    (lambda p: rewrite(p, lambda c: c.update(gone=1), "sr3d-network-2"), "sr3d-network-2.*sr3d-network-3.*train again"),
    (lambda p: rewrite(p, format="sr3d-network-30"), "sr3d-network-30.*at most 'sr3d-network-3'; update sr3d"),
    (lambda p: rewrite(p, format="pt"), "format: found 'pt'"),
    (lambda p: rewrite(p, **{"head.out.bias": torch.zeros(3)}), r"head\.out\.bias.*\(3,\).*architecture"),
    (lambda p: rewrite(p, **{"decoder.stem.bias": None}), r"decoder\.stem\.bias.*missing"),
    (lambda p: rewrite(p, more=torch.zeros(1)), r"weight more.*no such weight"),
    (lambda p: rewrite(p, **{"decoder.stem.bias": torch.zeros(16, dtype=torch.int32)}), r"stem\.bias.*int32"),
    (lambda p: rewrite(p, **{"decoder.stem.bias": torch.full((16,), torch.nan)}), r"stem\.bias.*not finite"),
    (lambda p: rewrite(p, lambda c: c["decoder"].update(widht=3)), r"decoder\.widht.*unknown key"),
    (lambda p: rewrite(p, lambda c: c["decoder"].update(width="3")), r"decoder\.width: found '3'.*whole number"),
    (lambda p: rewrite(p, lambda c: c["decoder"].update(width=-3)), r"config key decoder\.width: found -3"),
    (lambda p: rewrite(p, lambda c: c["decoder"].update(width=10**30)), r"config: found impossible"),
    (lambda p: rewrite(p, lambda c: c["encoder"]["options"].update(num_heads=5)), r"encoder.*num_heads"),
    (lambda p: rewrite(p, lambda c: c["encoder"]["options"].update(depth=10**9)), r"options\.depth: found 1000000000"),
    (lambda p: rewrite(p, lambda c: c["decoder"].update(convolutions=10**9)), r"convolutions: found 1000000000"),
    (
        lambda p: rewrite(p, lambda c: c["upsampler"].update(method="swin2sr", options={"depths": [1, 10**9]})),
        r"upsampler\.options\.depths: found 1000000000; expected at most \d+, the number of stored",
    ),
    (lambda p: rewrite(p, lambda c: c.update(factor=3)), r"safetensors: config key factor: found 3"),
    (lambda p: rewrite(p, lambda c: c["scaffold"].update(grid=0)), r"config key scaffold\.grid: found 0"),
    (lambda p: rewrite(p, lambda c: c["encoder"].update(name="hf-hub:some/where")), r"encoder\.name.*it is stored"),
    (lambda p: rewrite(p, lambda c: c["encoder"].update(pretrained=True)), r"encoder\.pretrained.*it is stored"),
    (lambda p: rewrite(p, lambda c: c["encoder"]["options"].update(checkpoint_path="x")), "path: found 'x'.*stored"),
    (lambda p: rewrite(p, lambda c: c["upsampler"].update(method="swin2sr", name="a/b")), r"upsampler\.name.*stored"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_bad_files_are_named(network: SuperResolver, tmp_path: Path, damage: Callable, message: str) -> None:
    path = tmp_path / "model.safetensors"
    network.save_pretrained(path)
    damage(path)
    with pytest.raises(Sr3dError, match=message) as caught:
        SuperResolver.from_pretrained(path)
    assert "model.safetensors" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config: found unreadable"),
        ('{"config": {}}', "format: found None"),
        (json.dumps({"format": FORMAT}), "config: found None"),
        (
            json.dumps({"format": FORMAT, "config": {"factor": 8}}),
            r"config key conditioning: found missing; expected None",
        ),
        ("\ud800", "config: found unreadable"),
    ],
)
def test_bad_folders_are_named(network: SuperResolver, tmp_path: Path, text: str, message: str) -> None:
    network.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(Sr3dError, match=message) as caught:
        SuperResolver.from_pretrained(tmp_path)
    assert "config.json" in str(caught.value)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(Sr3dError, match=r"no model\.safetensors"):
        SuperResolver.from_pretrained(tmp_path)


def test_two_configs_that_disagree_are_refused(network: SuperResolver, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["config"]["sh_degree"] = 2
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(Sr3dError, match=r"config key sh_degree: found 2; expected 0, as inside model\.safetensors"):
        SuperResolver.from_pretrained(tmp_path)


class Bomb:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"sr3d_config": Bomb()}, "unreadable"),
        ({"state_dict": [1]}, "state_dict: found something else"),
        ({"ema_state": {"a": 1}}, "ema_state: found something else"),
        ({"ema_state": {"a": torch.zeros(1)}}, "weight a: found shape .*no such weight"),
        ({"sr3d_config": 3}, "sr3d_config: found a int"),
        ({"sr3d_format": None}, "format: found None"),
        ({"sr3d_format": "sr3d-network-4"}, "update sr3d"),
        # A weight that claims a terabyte is refused by its shape.
        (
            {"ema_state": {"decoder.stem.bias": torch.zeros(1).expand(2**38)}},
            r"stem\.bias: found shape \(274877906944,\)",
        ),
    ],
)
def test_hostile_checkpoints_do_nothing(
    network: SuperResolver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: dict, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    lightning(network, tmp_path / "bomb.ckpt", **entries)
    with pytest.raises(Sr3dError, match=message) as caught:
        SuperResolver.from_pretrained(tmp_path / "bomb.ckpt")
    assert "bomb.ckpt" in str(caught.value) and not (tmp_path / "exploded").exists()


def test_checkpoints_before_formats_were_counted_are_format_1(network: SuperResolver, tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "sr3d_config": asdict(network.config)}, tmp_path / "old.ckpt")
    with pytest.raises(Sr3dError, match=r"sr3d-network-1.*train again"):
        SuperResolver.from_pretrained(tmp_path / "old.ckpt")


@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
def test_damaged_files_raise_nothing_else(
    network: SuperResolver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    lightning(network, path) if name.endswith("ckpt") else network.save_pretrained(path)
    data, draw, refused = path.read_bytes(), random.Random(0), 0
    # Where the structure is: pickle and zip directories at the ends of a checkpoint, the header of safetensors.
    spots = [*range(4, 9000), *range(len(data) - 9000, len(data))] if name.endswith("ckpt") else range(9000)
    monkeypatch.setattr(module, "_rebuild", lambda file, config, state: network)
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(draw.choice([1, 1, 2, 8])):
            i = draw.choice(spots)
            if draw.random() < 0.7:
                damaged[i] = draw.randrange(256)
            else:
                del damaged[i : i + draw.randrange(1, 9)]
        path.write_bytes(damaged)
        try:
            SuperResolver.from_pretrained(path)
        except Sr3dError as error:
            assert error.source == str(path)
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("name", ["model.safetensors", "folder"])
def test_nothing_half_written(
    network: SuperResolver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with pytest.raises(Sr3dError, match="folder"):
        network.save_pretrained(tmp_path / "missing" / name)
    for wrong in ("a.ckpt", "model.pt"):
        with pytest.raises(Sr3dError, match="path: found a file name"):
            network.save_pretrained(tmp_path / wrong)
    assert list(tmp_path.iterdir()) == []

    def full(state: dict, file: Path, metadata: dict) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(Sr3dError, match="No space left"):
        network.save_pretrained(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    network.save_pretrained(tmp_path / name)
    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(Sr3dError, match="No space left"):
        network.save_pretrained(tmp_path / name)
    monkeypatch.undo()
    assert same(SuperResolver.from_pretrained(tmp_path / name), network)


def test_the_name_of_a_size_is_no_checkpoint() -> None:
    for name in ("tiny", Path("tiny")):
        with pytest.raises(Sr3dError, match=r"tiny.*no weights.*create_model\('tiny'\)"):
            SuperResolver.from_pretrained(name)


def test_hub_names(network: SuperResolver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Sr3dError, match=r"lab/tiny: checkpoint: found neither a path nor .*hub") as caught:
        SuperResolver.from_pretrained("lab/tiny")
    assert "\n" not in str(caught.value)
    # What an earlier download left in the hub's cache.
    folder, commit = tmp_path / "models--lab--tiny", "a" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots").mkdir()
    network.save_pretrained(folder / "snapshots" / commit)
    assert same(SuperResolver.from_pretrained("lab/tiny"), network)
    # A mistyped path asks no server.
    (tmp_path / "runs").mkdir()
    for name in ("runs/tiny", "lab/tiny.ckpt", "../x", "/a/b", "a b/c"):
        with pytest.raises(Sr3dError, match="no such file"):
            SuperResolver.from_pretrained(name)


@dataclass(kw_only=True)
class Part:
    rate: float
    mode: Literal["a", "b"] = "a"


@dataclass(kw_only=True)
class Whole:
    part: Part | None = None
    sizes: list[int] | None = None
    parts: list[Part]
    options: dict[str, Any]
    pair: tuple[int, ...] = (1, 2)
    either: int | float = 1


def test_optional_parts_and_lists_survive_json() -> None:
    for value in (
        Whole(part=Part(rate=0.5, mode="b"), sizes=[2], parts=[Part(rate=1.0)], options={"a": [1, None]}, either=0.5),
        Whole(parts=[], options={}),
    ):
        again = from_dict(Whole, json.loads(json.dumps(asdict(value))), "x", "")
        assert again == value and type(again.pair) is tuple
    config = replace(tiny_config(), factor=8)
    assert config_from_dict(json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"part": 3}, "config key part: found 3; expected a dictionary"),
        ({"part": {}}, r"config key part\.rate: found missing"),
        ({"part": {"rate": "1"}}, r"config key part\.rate: found '1'; expected a number"),
        ({"part": {"rate": True}}, r"config key part\.rate: found True; expected a number"),
        ({"part": {"rate": float("nan")}}, r"config key part\.rate: found nan"),
        ({"part": {"rate": 10**400}}, r"config key part\.rate: found 1000"),
        ({"part": {"rate": 1, "mode": "c"}}, r"config key part\.mode: found 'c'; expected one of 'a', 'b'"),
        ({"sizes": [1, 2.5]}, r"config key sizes\[1\]: found 2\.5; expected a whole number"),
        ({"sizes": 3}, "config key sizes: found 3; expected a list"),
        ({"parts": [{"rate": None}]}, r"config key parts\[0\]\.rate: found None"),
        ({"options": {1: 2}}, "config key options.*keys that are texts"),
        ({"options": None}, "config key options: found None; expected a dictionary"),
        ({"either": "x"}, "config key either: found 'x'"),
        ({"pair": [1, True]}, r"config key pair\[1\]: found True"),
        ({"sice": 1}, "config key sice: found unknown key; expected one of part, sizes"),
    ],
)
def test_wrong_values_are_named_by_key(change: dict, message: str) -> None:
    values = copy.deepcopy({"parts": [], "options": {}} | change)
    with pytest.raises(Sr3dError, match=message):
        from_dict(Whole, values, "x", "")
