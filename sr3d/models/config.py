"""The config of a network from a plain dictionary (JSON, checkpoints)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sr3d.models.resolver import SuperResolverConfig
from sr3d.typed import from_dict


def config_from_dict(values: dict[str, Any], source: str | Path = "config") -> SuperResolverConfig:
    """A network's config; the inverse of `dataclasses.asdict`, also after a trip through JSON.

    Raises:
        Sr3dError: An unknown or missing key, or a value of the wrong type; names the key, e.g. `decoder.width`.
    """
    config: SuperResolverConfig = from_dict(SuperResolverConfig, values, source)
    return config
