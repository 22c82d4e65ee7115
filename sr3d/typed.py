"""Typed configs from plain dictionaries (JSON, YAML, checkpoints), every fault named by its key."""

from __future__ import annotations

import math
import reprlib
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sr3d.errors import Sr3dError

_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def from_dict(kind: Any, values: Any, source: str | Path, key: str = "") -> Any:
    """A data class from plain values; the inverse of `dataclasses.asdict`, also after a trip through JSON or YAML.

    Args:
        kind: The data class.
        values: Plain values.
        source: File, for errors.
        key: Of `values` in the file, for errors.

    Raises:
        Sr3dError: An unknown or missing key, a value of the wrong type or out of range; names the key.
    """
    if not isinstance(values, dict):
        raise _fault(source, key, values, "a dictionary")
    hints, prefix = get_type_hints(kind), f"{key}." if key else ""
    known = {f.name: f for f in fields(kind)}
    for name in values:
        if name not in known:
            raise Sr3dError(source, f"config key {prefix}{name}", "unknown key", f"one of {', '.join(known)}")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise Sr3dError(source, f"config key {prefix}{name}", "missing", "a value")
    typed = {name: _value(hints[name], value, source, prefix + name) for name, value in values.items()}
    try:
        return kind(**typed)
    except Sr3dError as error:  # a value out of range
        raise Sr3dError(source, f"config key {prefix}{error.field}", error.found, error.expected) from None


def _value(kind: Any, value: Any, source: str | Path, key: str) -> Any:
    """A value of an annotated type: dataclass, X | None, Literal, list, dict, int, float, str, bool, Any."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return from_dict(kind, value, source, key)
    if origin in (Union, UnionType):
        if value is None and NoneType in parts:
            return None
        others = [part for part in parts if part is not NoneType]
        # Of several simple types, the one that the value has; else the first one's message.
        return _value(next((p for p in others if p is type(value)), others[0]), value, source, key)
    if origin is Literal:
        if not any(value == part and type(value) is type(part) for part in parts):
            raise _fault(source, key, value, f"one of {', '.join(map(repr, parts))}")
        return value
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise _fault(source, key, value, "a list")
        return origin(_value(parts[0], item, source, f"{key}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise _fault(source, key, value, "a dictionary")
        if not all(isinstance(name, str) for name in value):
            raise _fault(source, key, value, "keys that are texts")
        return {name: _value(parts[1], item, source, f"{key}.{name}") for name, item in value.items()}
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is not kind or (kind is float and math.isnan(value)):
        raise _fault(source, key, value, _NAMES.get(kind, kind.__name__))
    return value


def _fault(source: str | Path, key: str, value: object, expected: str) -> Sr3dError:
    return Sr3dError(source, f"config key {key}" if key else "config", reprlib.repr(value), expected)
