from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
from tiny_networks import tiny_config

from sr3d import Sr3dError
from sr3d.models.config import config_from_dict
from sr3d.models.consistency import ConsistencyConfig
from sr3d.models.ranges import _COUNTS, _NOT_NEGATIVE, _POSITIVE, check_ranges

WRONG: list[tuple[str, Any, str]] = [
    *((key, 0, "1 or more") for key in _COUNTS),
    *((key, 0.0, "more than 0") for key in _POSITIVE),
    *((key, -1, "0 or more") for key in _NOT_NEGATIVE),
    ("recurrence.steps", -1, "1 or more"),
    ("upsampler.options.depths", [2, 0], "1 or more"),
    ("gather.color_tolerance", float("inf"), "more than 0"),
    ("head.ray_bound", float("nan"), "0 or more"),
    ("sh_degree", -2, "0 to 3"),
    ("sh_degree", 7, "0 to 3"),
]


def with_value(key: str, value: object) -> dict[str, Any]:
    config = asdict(replace(tiny_config("full"), consistency=ConsistencyConfig()))
    *groups, name = key.split(".")
    part = config
    for group in groups:
        part = part[group]
    if groups[1:] != ["options"]:
        assert name in part, "no such setting"
    part[name] = value
    return config


@pytest.mark.parametrize(("key", "value", "expected"), WRONG)
def test_settings_out_of_range_are_named(key: str, value: object, expected: str) -> None:
    with pytest.raises(Sr3dError) as caught:
        check_ranges(with_value(key, value))
    found = value[1] if isinstance(value, list) else value
    assert str(caught.value) == f"model.network: {key}: found {found}; expected {expected}"


def test_configs_are_checked_as_they_are_made() -> None:
    with pytest.raises(Sr3dError, match=r"^a\.yaml: config key decoder\.heads: found 0; expected 1 or more$"):
        config_from_dict(with_value("decoder.heads", 0), source="a.yaml")
    check_ranges({"sh_degree": 0, "encoder": {"options": {"img_size": None}}, "head": None})
