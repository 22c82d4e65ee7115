"""Methods of evaluation. A new one is one new file in this folder: a subclass of `Method` with a `name`."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Sequence
from dataclasses import replace

from sr3d.errors import Sr3dError
from sr3d.evaluation.methods.base import Method, MethodOptions

__all__ = ["Method", "MethodOptions", "create_methods", "method_classes"]

_TAKEN = ("covered", "input", "truth")  # names of other pictures of a case
_SPEC = re.compile(r"(?:(?P<label>[\w.-]+)=)?(?P<name>\w+)(?::(?P<argument>.+))?")


def method_classes() -> dict[str, type[Method]]:
    """Name → class of every method in this folder."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)
    return {method.name: method for method in sorted(Method.__subclasses__(), key=lambda m: m.name)}


def create_methods(specs: Sequence[str], options: MethodOptions) -> dict[str, Method]:
    """Methods in the order asked for.

    Args:
        specs: NAME, NAME:ARGUMENT or LABEL=NAME:ARGUMENT each, e.g. "coarse", "optimise:100", "long=sr3d:long.ckpt".
        options: For all of them; the argument is the spec's own.

    Returns:
        Label → method; the label of NAME:ARGUMENT is the same text.

    Raises:
        Sr3dError: No methods, a spec that cannot be read, an unknown name, a label twice or one that pictures have,
            or a method cannot use its options.
    """
    classes, made = method_classes(), dict[str, Method]()
    for spec in specs:
        match = _SPEC.fullmatch(spec)
        if match is None:
            raise Sr3dError("sr3d eval", "--methods", repr(spec), "NAME, NAME:ARGUMENT or LABEL=NAME:ARGUMENT")
        name, label = match["name"], match["label"] or spec
        if name not in classes:
            raise Sr3dError("sr3d eval", "--methods", repr(name), ", ".join(classes))
        if label in _TAKEN:
            raise Sr3dError("sr3d eval", "--methods", f"label {label}", f"any but {', '.join(_TAKEN)}")
        if label in made:
            raise Sr3dError("sr3d eval", "--methods", f"{label} twice", "a label of its own each: LABEL=NAME:ARGUMENT")
        made[label] = classes[name](replace(options, argument=match["argument"]))
    if not made:
        raise Sr3dError("sr3d eval", "--methods", "none", "one or more, separated by commas")
    return made
