"""Ranges of a network's settings: what cannot be built or run is refused by its key, before any data is read."""

from __future__ import annotations

import math
from typing import Any

from sr3d.errors import Sr3dError

_POSITIVE = (
    "gather.occlusion_tolerance", "gather.color_tolerance", "geometry.step", "geometry.reach", "geometry.bound",
    "points.mlp_ratio", "points.cell", "encoder.std", "encoder.options.mlp_ratio", "upsampler.options.mlp_ratio",
)  # fmt: skip
_COUNTS = (
    "encoder.options.embed_dim", "encoder.options.depth", "encoder.options.num_heads", "encoder.options.patch_size",
    "encoder.options.img_size", "upsampler.options.embed_dim", "upsampler.options.depths",
    "upsampler.options.num_heads", "upsampler.options.window_size", "upsampler.options.image_size",
    "conditioning.embedding", "refinement.heads", "decoder.heads", "decoder.width", "decoder.fine",
    "geometry.hypotheses", "geometry.features", "points.blocks", "points.width", "points.heads", "points.window",
    "head.width", "semantics.width", "semantics.embedding", "recurrence.steps",
    "consistency.rounds",
)  # fmt: skip
_NOT_NEGATIVE = (
    "refinement.coarse_width", "decoder.blocks", "decoder.convolutions", "decoder.texture_bound",
    "head.position_bound", "head.ray_bound", "head.scale_bound", "head.angle_bound", "head.color_bound",
)  # fmt: skip


def check_ranges(config: dict[str, Any]) -> None:
    """Refuse values out of range.

    Args:
        config: A `SuperResolverConfig` as nested dictionaries. Parts and options that are not there are not looked at.

    Raises:
        Sr3dError: The first such value; the field is its dotted key.
    """
    rows = [("sh_degree", config["sh_degree"], 0 <= config["sh_degree"] <= 3, "0 to 3")]
    for keys, expected in ((_POSITIVE, "more than 0"), (_COUNTS, "1 or more"), (_NOT_NEGATIVE, "0 or more")):
        for key in keys:
            for value in _numbers(config, key):
                right = value > 0 if keys is _POSITIVE else value >= (keys is _COUNTS)
                rows.append((key, value, right and math.isfinite(value), expected))
    for key, value, right, expected in rows:
        if not right:
            raise Sr3dError("model.network", key, value, expected)


def _numbers(config: dict[str, Any], key: str) -> list[int | float]:
    """The number at a dotted key, the numbers of a list there, or none."""
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return [v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, int | float)]
