"""Sizes of the network by name, in timm's style."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from typing import Any

from sr3d.errors import Sr3dError
from sr3d.models.config import config_from_dict
from sr3d.models.decoder import DecoderConfig
from sr3d.models.encoder import EncoderConfig
from sr3d.models.head import HeadConfig
from sr3d.models.refinement import RefinementConfig
from sr3d.models.resolver import SuperResolver, SuperResolverConfig


def tiny() -> SuperResolverConfig:
    """For CPUs: learns in minutes on two cores."""
    return SuperResolverConfig(
        encoder=EncoderConfig(name="vit_tiny_patch16_224", options={"embed_dim": 96, "depth": 2, "num_heads": 4}),
    )


def small() -> SuperResolverConfig:
    """ViT-S: for one small GPU."""
    return SuperResolverConfig(
        encoder=EncoderConfig(name="vit_small_patch16_224"),
        refinement=RefinementConfig(heads=6),
        decoder=DecoderConfig(blocks=4, heads=6, width=96, convolutions=6, fine=32),
        head=HeadConfig(width=128),
    )


_SIZES: dict[str, Callable[[], SuperResolverConfig]] = {f.__name__: f for f in (tiny, small)}


def list_models() -> list[str]:
    """Names of the sizes, smallest first."""
    return list(_SIZES)


def model_config(name: str, **overrides: Any) -> SuperResolverConfig:
    """Config of a size.

    Args:
        name: One of `list_models()`.
        overrides: Fields of `SuperResolverConfig` to change. Of a group (`decoder={"width": 64}`) only the given keys
            change; None switches an optional part off.

    Raises:
        Sr3dError: Unknown name or key, or a value of the wrong type.
    """
    if name not in _SIZES:
        raise Sr3dError("sr3d models", "name", repr(name), f"one of {', '.join(_SIZES)}")
    values = asdict(_SIZES[name]())
    for key, value in overrides.items():
        value = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        old = values.get(key)
        values[key] = old | value if isinstance(old, dict) and isinstance(value, dict) else value
    return config_from_dict(values, source=f"sr3d model {name}")


def create_model(name: str, **overrides: Any) -> SuperResolver:
    """An untrained network of a size; arguments as in `model_config`. It returns the scaffold until it is trained."""
    return SuperResolver(model_config(name, **overrides))
