"""Networks on disk: weights and the config that rebuilds them, in a folder, in one file, or in a run's checkpoint.

Nothing that is read may execute code: safetensors, JSON, and PyTorch's `weights_only` unpickler.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import uuid
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.io.atomic import atomic
from sr3d.models.config import SuperResolverConfig, config_from_dict
from sr3d.models.encoder import PLACES
from sr3d.models.registry import list_models
from sr3d.models.resolver import SuperResolver

VERSION = 3
FORMAT = f"sr3d-network-{VERSION}"
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
# Where a Lightning checkpoint keeps what a network is rebuilt from; `sr3d.training.module` writes them.
CONFIG_KEY, FORMAT_KEY, EMA_KEY, PREFIX = "sr3d_config", "sr3d_format", "ema_state", "network."

# What torch.load raises for damaged files, found by damaging half a million of them.
_DAMAGE = (
    UnpicklingError, RuntimeError, ValueError, LookupError, EOFError, TypeError, AttributeError, AssertionError,
    ArithmeticError, MemoryError, struct.error, OSError,
)  # fmt: skip
# What modules raise while they are built from sizes that do not go together.
_IMPOSSIBLE = (AssertionError, ValueError, TypeError, RuntimeError, LookupError, ArithmeticError, AttributeError)
# Settings whose modules are as many as they say.
_REPEATED = ("depth", "depths", "blocks", "convolutions")
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)
_FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".json")

Stored = tuple[dict[str, Any], dict[str, Tensor]]


def network_entries(network: SuperResolver) -> dict[str, Any]:
    """What a training checkpoint must hold beside its `state_dict`, so that the file alone rebuilds the network."""
    return {FORMAT_KEY: FORMAT, CONFIG_KEY: asdict(network.config)}


def save_network(network: SuperResolver, path: str | Path) -> None:
    """Write weights and config; nothing is ever half-written.

    Args:
        network: Any network.
        path: A name that ends in .safetensors: one file with the config inside. Else a folder, made if need be, that
            gets `model.safetensors` and `config.json`; its other files are left alone.

    Raises:
        Sr3dError: The folder above does not exist, the name belongs to another format, or the disk is full.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        with atomic(path) as temporary:
            _write_weights(network, temporary)
        return
    if path.suffix in _FILE_SUFFIXES or path.is_file():
        raise Sr3dError(path, "path", f"a file name {path.name!r}", "a folder, or a name that ends in .safetensors")
    if path.is_dir():
        _write_folder(network, path)
        return
    if not path.parent.is_dir():
        raise Sr3dError(path, "folder", f"no folder {path.parent}", "an existing folder to write into")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.mkdir()
        _write_folder(network, temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise Sr3dError(path, "folder", error.strerror or error, "a place that can be written") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_network(name_or_path: str | Path) -> SuperResolver:
    """Rebuild a network, in evaluation mode on the CPU, from what is stored alone.

    Args:
        name_or_path: A folder or file of `save_network`; the checkpoint of a training run (.ckpt: the averaged weights
            where there are some); or a repository of the Hugging Face hub, ORGANISATION/NAME, of which only
            safetensors and `config.json` are fetched. Weights that the config would fetch are not: they are stored.

    Raises:
        Sr3dError: Nothing there, the bare name of a size (`list_models`: it has no weights), a damaged file, another
            format, or weights that do not fit the config beside them.
    """
    path = Path(name_or_path)
    if not path.exists():
        path = _find(str(name_or_path), path)
    if path.is_dir():
        file = path / WEIGHTS_FILE
        config, state = _read_folder(path)
    else:
        file = path
        config, state = _read_lightning(file) if file.suffix == ".ckpt" else _read_weights(file, inside=True)
    return _rebuild(file, config, state)


def _find(name: str, path: Path) -> Path:
    """Folder with a network that is not on this disk yet."""
    if name in list_models():
        wanted = f"a checkpoint; sr3d.models.create_model({name!r}) makes an untrained network of this size"
        raise Sr3dError(name, "checkpoint", "the name of a size, which has no weights", wanted)
    # A first part that exists here is a folder, and the name a mistyped path.
    if not _HUB_ID.fullmatch(name) or path.suffix in _FILE_SUFFIXES or path.parent.exists():
        wanted = "a folder, a .safetensors or .ckpt file of sr3d, or ORGANISATION/NAME on the Hugging Face hub"
        raise Sr3dError(path, "checkpoint", "no such file", wanted)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HTTPError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", CONFIG_FILE]))
    except (OSError, ValueError, EntryNotFoundError, HTTPError) as error:
        reason = f"neither a path nor to be had from the Hugging Face hub ({_line(error)})"
        raise Sr3dError(name, "checkpoint", reason, "a public repository and a connection, or a copy on disk") from None


def _rebuild(file: Path, config: dict[str, Any], state: dict[str, Tensor]) -> SuperResolver:
    """The network of a config with these weights; memory is taken only once all shapes agree."""
    built = config_from_dict(config, source=file)
    _check_stored(built, file)
    for key, value in _leaves(asdict(built)).items():
        # Millions of blocks, none of them stored, would take for ever to build.
        for count in value if isinstance(value, list | tuple) else [value]:
            if key.rpartition(".")[2] in _REPEATED and isinstance(count, int) and count > len(state):
                raise Sr3dError(file, f"config key {key}", count, f"at most {len(state)}, the number of stored weights")
    try:
        with torch.device("meta"):
            expected = SuperResolver(built).state_dict()
    except _IMPOSSIBLE as error:
        if isinstance(error, Sr3dError):
            raise Sr3dError(file, f"config: {error.field}", error.found, error.expected) from None
        raise Sr3dError(file, "config", f"impossible ({_line(error)})", "sizes that go together") from None
    for name in sorted(expected.keys() | state.keys()):
        found = _kind(state[name]) if name in state else "missing"
        wanted = _kind(expected[name]) if name in expected else "no such weight"
        if found != wanted:
            raise Sr3dError(file, f"weight {name}", found, f"{wanted} (another architecture?)")
        if not torch.isfinite(state[name]).all():
            raise Sr3dError(file, f"weight {name}", "values that are not finite", "finite numbers")
    with torch.random.fork_rng(devices=[]):
        network = SuperResolver(built)
    network.load_state_dict(state)
    return network.eval()


def _kind(tensor: Tensor) -> str:
    number = "" if tensor.is_floating_point() else f" of {str(tensor.dtype).removeprefix('torch.')}"
    return f"shape {tuple(tensor.shape)}{number}"


def _check_stored(config: SuperResolverConfig, file: Path) -> None:
    """Refuse a config that would make a library read or fetch something beside the file.

    Raises:
        Sr3dError: Weights of the encoder or the upsampler by name.
    """
    encoder = config.encoder
    foreign: dict[str, object] = {f"encoder.options.{k}": v for k, v in encoder.options.items() if k in PLACES}
    if encoder.pretrained:
        foreign["encoder.pretrained"] = True
    if re.search(r"[:/\\]", encoder.name):
        foreign["encoder.name"] = encoder.name
    if config.upsampler.name:
        foreign["upsampler.name"] = config.upsampler.name
    for key, value in foreign.items():
        raise Sr3dError(file, f"config key {key}", repr(value), "nothing that has to be read or fetched: it is stored")


def _write_weights(network: SuperResolver, file: Path) -> None:
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    try:
        save_file(state, file, metadata={"format": FORMAT, "config": json.dumps(asdict(network.config))})
    except SafetensorError as error:
        raise OSError(_line(error)) from None


def _write_folder(network: SuperResolver, folder: Path) -> None:
    with atomic(folder / WEIGHTS_FILE) as temporary:
        _write_weights(network, temporary)
    with atomic(folder / CONFIG_FILE) as temporary:
        content = {"format": FORMAT, "config": asdict(network.config)}
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _check_format(file: Path, found: object) -> None:
    """Refuse networks of other versions, each with what to do about it."""
    match = re.fullmatch(r"sr3d-network-(\d{1,9})", found) if isinstance(found, str) else None
    if match is None:
        raise Sr3dError(file, "format", repr(found), f"a network of sr3d ({FORMAT!r})")
    if int(match[1]) > VERSION:
        raise Sr3dError(file, "format", repr(found), f"at most {FORMAT!r}; update sr3d")
    if int(match[1]) < VERSION:
        raise Sr3dError(file, "format", repr(found), f"{FORMAT!r}; the architecture has changed, train again")


def _parse_config(file: Path, text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Sr3dError(file, "config", f"unreadable ({_line(error)})", "the network's config as JSON") from None
    if not isinstance(config, dict):
        raise Sr3dError(file, "config", f"a {type(config).__name__}", "a dictionary")
    return config


def _read_folder(folder: Path) -> Stored:
    """Weights and config; where both files hold a config, it is the same one."""
    weights, file = folder / WEIGHTS_FILE, folder / CONFIG_FILE
    if not weights.is_file():
        raise Sr3dError(folder, "checkpoint", f"no {WEIGHTS_FILE}", f"{WEIGHTS_FILE} and {CONFIG_FILE}")
    if not file.is_file():
        return _read_weights(weights, inside=True)
    try:
        content = _parse_config(file, file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise Sr3dError(file, "config", f"unreadable ({_line(error)})", "the network's config as JSON") from None
    _check_format(file, content.get("format"))
    inside, state = _read_weights(weights, inside=False)
    config = content.get("config")
    if not isinstance(config, dict):
        raise Sr3dError(file, "config", repr(config), "a dictionary")
    here, there = _leaves(config), _leaves(inside)
    if inside and here != there:
        key = min(k for k in here.keys() | there.keys() if here.get(k, "missing") != there.get(k, "missing"))
        wanted = f"{there.get(key, 'missing')}, as inside {WEIGHTS_FILE}"
        raise Sr3dError(file, f"config key {key}", here.get(key, "missing"), wanted)
    return config, state


def _read_weights(file: Path, inside: bool) -> Stored:
    """A .safetensors file; without `inside` it need not hold a config, which is then empty."""
    try:
        with safe_open(file, framework="pt") as opened:
            metadata, names = opened.metadata() or {}, opened.keys()
            state = {name: opened.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise Sr3dError(file, "checkpoint", f"unreadable ({_line(error)})", "a complete .safetensors file") from None
    if not inside and "config" not in metadata:
        return {}, state
    _check_format(file, metadata.get("format"))
    if "config" not in metadata:
        raise Sr3dError(file, "config", "missing", "the network's config as JSON in the metadata")
    return _parse_config(file, metadata["config"]), state


def _read_lightning(file: Path) -> Stored:
    """A training run's checkpoint; averaged weights take the place of the last ones."""
    whole = "a complete .ckpt file of sr3d"
    try:
        with open(file, "rb") as opened:
            magic = opened.read(4)
        if magic != b"PK\x03\x04":
            raise Sr3dError(file, "checkpoint", f"unreadable (starts with {magic!r})", whole)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        if isinstance(error, Sr3dError):
            raise
        raise Sr3dError(file, "checkpoint", f"unreadable ({_line(error)})", whole) from None
    if not isinstance(content, dict) or not {CONFIG_KEY, "state_dict"} <= content.keys():
        raise Sr3dError(file, "checkpoint", "no network of sr3d", f"a checkpoint with {CONFIG_KEY!r} and 'state_dict'")
    _check_format(file, content.get(FORMAT_KEY, "sr3d-network-1"))
    config: Any = content[CONFIG_KEY]
    state: dict[str, Tensor] = {}
    if not isinstance(config, dict):
        raise Sr3dError(file, CONFIG_KEY, f"a {type(config).__name__}", "a dictionary")
    for key in ("state_dict", EMA_KEY):
        weights = content.get(key)
        if weights is None:
            continue
        if not isinstance(weights, dict) or not all(
            isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()
        ):
            raise Sr3dError(file, key, "something else", "a dictionary of tensors by name")
        own = weights if key == EMA_KEY else {k: v for k, v in weights.items() if k.startswith(PREFIX)}
        state |= {k.removeprefix(PREFIX): v for k, v in own.items()}
    return config, state


def _leaves(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves


def _line(error: BaseException) -> str:
    """First line of what an error says."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
