"""Networks on disk: one `.safetensors` file that holds weights and config, or the checkpoint of a training run."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.models.resolver import SuperResolver, SuperResolverConfig

FORMAT = "sr3d-network-1"
# Where a Lightning checkpoint keeps what a network is rebuilt from; `sr3d.training.module` writes it.
CONFIG_KEY, PREFIX = "sr3d_config", "network."


def save_network(network: SuperResolver, path: str | Path) -> None:
    """Write weights and config to one file; the file appears only when it is complete.

    Raises:
        Sr3dError: The folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise Sr3dError(path, "folder", "missing", "an existing folder")
    part = path.with_name(path.name + ".part")
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    save_file(state, part, metadata={"format": FORMAT, "config": json.dumps(asdict(network.config))})
    os.replace(part, path)


def load_network(path: str | Path) -> SuperResolver:
    """Rebuild a network from a file of `save_network`, a Lightning `.ckpt`, or a folder with `model.safetensors`.

    Raises:
        Sr3dError: The file is missing or damaged, was written for another format, or holds weights that do not fit the
            config beside them.
    """
    path = Path(path)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise Sr3dError(file, "checkpoint", "no such file", "a .safetensors or .ckpt file of sr3d")
    config, state = _read_lightning(file) if file.suffix == ".ckpt" else _read_safetensors(file)
    network = SuperResolver(config_from_dict(config, source=file))
    expected = network.state_dict()
    for name in sorted(expected.keys() | state.keys()):
        found = "missing" if name not in state else f"shape {tuple(state[name].shape)}"
        wanted = "no such weight" if name not in expected else f"shape {tuple(expected[name].shape)}"
        if found != wanted:
            raise Sr3dError(file, f"weight {name}", found, f"{wanted} (another architecture?)")
    network.load_state_dict(state)
    return network.eval()


def config_from_dict(values: dict[str, Any], source: str | Path = "config") -> SuperResolverConfig:
    """Typed config from plain dictionaries.

    Raises:
        Sr3dError: An unknown key, or a group that is not a dictionary.
    """
    return _build(SuperResolverConfig, values, str(source), "")


def _build(kind: Any, values: Any, source: str, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise Sr3dError(source, prefix.rstrip(".") or "config", repr(values), "a dictionary")
    hints = get_type_hints(kind)
    known = [f.name for f in fields(kind)]
    for key in values:
        if key not in known:
            raise Sr3dError(source, f"config key {prefix}{key}", "unknown key", f"one of {', '.join(known)}")
    built = {
        k: _build(hints[k], v, source, f"{prefix}{k}.") if is_dataclass(hints[k]) else v for k, v in values.items()
    }
    return kind(**built)


def _read_safetensors(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            state = {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise Sr3dError(file, "checkpoint", f"unreadable ({error})", "a complete .safetensors file") from None
    if metadata.get("format") != FORMAT:
        raise Sr3dError(file, "format", repr(metadata.get("format")), repr(FORMAT))
    try:
        return json.loads(metadata["config"]), state
    except (KeyError, json.JSONDecodeError) as error:
        raise Sr3dError(file, "config", f"unreadable ({error})", "the network's config as JSON") from None


def _read_lightning(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Sr3dError(file, "checkpoint", f"unreadable ({reason})", "a complete .ckpt file of sr3d") from None
    if not isinstance(content, dict) or CONFIG_KEY not in content or "state_dict" not in content:
        raise Sr3dError(file, "checkpoint", "no sr3d config", f"a checkpoint with {CONFIG_KEY!r} and 'state_dict'")
    state = {k.removeprefix(PREFIX): v for k, v in content["state_dict"].items() if k.startswith(PREFIX)}
    return content[CONFIG_KEY], state
