"""Sizes of the network by name, in timm's style."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from typing import Any

from sr3d.errors import Sr3dError
from sr3d.models.config import SuperResolverConfig, config_from_dict
from sr3d.models.decoder import DecoderConfig
from sr3d.models.encoder import EncoderConfig
from sr3d.models.geometry import GeometryConfig
from sr3d.models.head import HeadConfig
from sr3d.models.points import PointsConfig
from sr3d.models.refinement import RefinementConfig
from sr3d.models.resolver import SuperResolver
from sr3d.models.scaffold import ScaffoldConfig


def tiny() -> SuperResolverConfig:
    """For CPUs: a transformer of two small blocks; most of the work is done by convolutions and the points."""
    return SuperResolverConfig(
        scaffold=ScaffoldConfig(budget=0.5),
        encoder=EncoderConfig(name="vit_tiny_patch16_224", options={"embed_dim": 96, "depth": 2, "num_heads": 4}),
        refinement=RefinementConfig(heads=4),
        decoder=DecoderConfig(blocks=1, heads=4, width=48, convolutions=4, fine=16),
        geometry=GeometryConfig(hypotheses=4, features=16),
        points=PointsConfig(blocks=2, width=32, heads=2, window=64),
        head=HeadConfig(width=64),
    )


def small() -> SuperResolverConfig:
    """ViT-S: for one small GPU."""
    return SuperResolverConfig(
        scaffold=ScaffoldConfig(budget=0.5),
        encoder=EncoderConfig(name="vit_small_patch16_224"),
        refinement=RefinementConfig(heads=6),
        decoder=DecoderConfig(blocks=3, heads=6, width=96, convolutions=6, fine=24),
        geometry=GeometryConfig(hypotheses=6, features=24),
        points=PointsConfig(blocks=3, width=64, heads=4),
        head=HeadConfig(width=96),
    )


def base() -> SuperResolverConfig:
    """ViT-B: what SR3R's tables call for."""
    return SuperResolverConfig(
        scaffold=ScaffoldConfig(budget=0.5),
        encoder=EncoderConfig(name="vit_base_patch16_224"),
        refinement=RefinementConfig(heads=12),
        decoder=DecoderConfig(blocks=6, heads=12, width=128, convolutions=10, fine=32),
        geometry=GeometryConfig(hypotheses=8, features=32),
        points=PointsConfig(blocks=4, width=128, heads=8),
        head=HeadConfig(width=128),
    )


def large() -> SuperResolverConfig:
    """ViT-L: for several large GPUs."""
    return SuperResolverConfig(
        scaffold=ScaffoldConfig(budget=0.5),
        encoder=EncoderConfig(name="vit_large_patch16_224"),
        refinement=RefinementConfig(heads=16),
        decoder=DecoderConfig(blocks=8, heads=16, width=192, convolutions=16, fine=48),
        geometry=GeometryConfig(hypotheses=8, features=48),
        points=PointsConfig(blocks=6, width=192, heads=12),
        head=HeadConfig(width=192),
    )


_SIZES: dict[str, Callable[[], SuperResolverConfig]] = {f.__name__: f for f in (tiny, small, base, large)}


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
