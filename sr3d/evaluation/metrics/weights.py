"""Weights and packages that metrics need: fetched once, with one short try, and nothing that executes code."""

from __future__ import annotations

import importlib
import pickle
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from sr3d.errors import Sr3dError
from sr3d.evaluation.metrics.base import MetricUnavailable


def optional_package(name: str) -> ModuleType:
    """A package of the extra `metrics`.

    Raises:
        MetricUnavailable: It, or what it imports, is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MetricUnavailable(f"package {error.name} is missing: pip install 'sr3d[metrics]'") from None


def require_reachable(url: str, timeout: int | float = 5.0) -> None:
    """One short try whether a file can be downloaded.

    Raises:
        MetricUnavailable: There is no answer within `timeout` seconds, or there is no such file.
    """
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout).close()
    except (OSError, HTTPException) as error:
        raise MetricUnavailable(f"weights cannot be had ({error}): {url}") from None


def fetched(url: str, path: Path, prefix: str | None = None) -> Path:
    """A file, downloaded if it is not at `path`.

    Args:
        url: Where it comes from.
        path: Where it is kept.
        prefix: First digits of its SHA-256, where known.

    Raises:
        MetricUnavailable: It cannot be downloaded.
    """
    if not path.exists():
        require_reachable(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=False)
        except (OSError, HTTPException, RuntimeError) as error:
            raise MetricUnavailable(f"weights cannot be had ({error}): {url}") from None
    return path


def tensors(path: Path, url: str) -> dict[str, Any]:
    """The table of tensors in a file that was saved by torch, refused if reading it could execute code.

    Raises:
        Sr3dError: The file holds something else.
    """
    try:
        table = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise Sr3dError(path, "weights", str(error).splitlines()[0], f"the tensors of {url}") from None
    if not isinstance(table, dict):
        raise Sr3dError(path, "weights", type(table).__name__, f"the tensors of {url}")
    return table


def require_hub(name: str, files: Sequence[str], timeout: int | float = 5.0) -> None:
    """One short try whether a model can be had: `from_pretrained` tries for minutes.

    Args:
        name: Of the Hugging Face hub, or a folder.
        files: Weights of the model; one of them in the hub's cache is enough.
        timeout: Seconds.

    Raises:
        MetricUnavailable: No file is in the cache, and the hub does not answer, or is not to be asked.
    """
    from huggingface_hub import constants, hf_hub_url

    if Path(name).is_dir() or cached(name, files):
        return
    if constants.HF_HUB_OFFLINE:
        raise MetricUnavailable(f"weights of {name} are not in the hub's cache, and HF_HUB_OFFLINE is set")
    require_reachable(hf_hub_url(name, "config.json"), timeout)


def cached(name: str, files: Sequence[str]) -> bool:
    """Whether one of the files of a model is in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(name, file), str) for file in files)
