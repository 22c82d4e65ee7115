"""Files of results: one JSON per run, and one per finished case to resume from.

Everything that may differ between two runs of one protocol on one machine is under the key "timing" of the former.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

from sr3d.errors import Sr3dError
from sr3d.evaluation.results import Results, Scored
from sr3d.evaluation.statistics import TIMED, baseline_of, summarise
from sr3d.io.atomic import atomic

FORMAT, CASE_FORMAT, VERSION = "sr3d-results", "sr3d-case", 1
_PLAIN = ("protocol", "methods", "columns", "unavailable", "pooled", "missing", "expected", "provenance")
_KEYS = ("format", "version", "summary", "cases", "timing", *_PLAIN)
_PER_METHOD = ("means", "paired", "rows")


def write_results(path: str | Path, results: Results) -> None:
    """Write results with their statistics against the protocol's baseline; floats keep all their digits, NaN is null.

    Raises:
        Sr3dError: A case is there twice, a number is infinite, a value is none of JSON, or the file cannot be written.
    """
    path = Path(path)
    _once(path, [case.case for case in results.cases])
    # First of all: an infinite value would make the statistics undefined.
    cases = _plain(path, "cases", [asdict(case) for case in results.cases])
    times = {case["case"]: {name: case.pop(name) for name in TIMED} for case in cases}
    kept, timed = ({}, {}) if not results.methods else _split(asdict(summarise(results, baseline_of(results))))
    content = {
        "format": FORMAT,
        "version": VERSION,
        **{name: getattr(results, name) for name in _PLAIN},
        "summary": kept,
        "cases": cases,
        "timing": {"run": results.timing, "cases": times, "summary": timed},
    }
    _write(path, content)


def read_results(path: str | Path) -> Results:
    """Read what `write_results` has written; every field is checked.

    Raises:
        Sr3dError: No such file, no JSON, another format or version, or a field is missing, unknown or wrong.
    """
    path = Path(path)
    content = _document(path, FORMAT)
    _same_keys(path, "file", content, _KEYS)
    _decoded(path, "summary", content["summary"], dict[str, Any])
    timing = _decoded(path, "timing", content["timing"], dict[str, Any])
    _same_keys(path, "timing", timing, ("run", "cases", "summary"))
    cases = _decoded(path, "cases", content["cases"], list[dict[str, Any]])
    times = _decoded(path, "timing.cases", timing["cases"], dict[str, dict[str, Any]])
    names = [_decoded(path, f"cases[{i}].case", case.get("case"), str) for i, case in enumerate(cases)]
    _once(path, names)
    _same_keys(path, "timing.cases", times, names)
    untimed = tuple(field.name for field in fields(Scored) if field.name not in TIMED)
    for number, (name, case) in enumerate(zip(names, cases)):
        _same_keys(path, f"cases[{number}]", case, untimed)
        _same_keys(path, f"timing.cases.{name}", times[name], TIMED)
    whole = {name: content[name] for name in _PLAIN} | {"timing": timing["run"]}
    whole["cases"] = [case | times[case["case"]] for case in cases]
    results: Results = _decoded(path, "", whole, Results)
    _check_results(path, results)
    return results


def write_case(path: str | Path, scored: Scored, fingerprint: str) -> None:
    """Write the scores of a finished case.

    Args:
        path: The file.
        scored: Its scores.
        fingerprint: Of everything that they depend on.

    Raises:
        Sr3dError: A number is infinite, a value is none of JSON, or the file cannot be written.
    """
    content = {"format": CASE_FORMAT, "version": VERSION, "fingerprint": fingerprint, "scored": asdict(scored)}
    _write(Path(path), content)


def read_case(path: str | Path, fingerprint: str) -> Scored | None:
    """The scores of a finished case; None where the file is missing or its fingerprint is another one.

    Raises:
        Sr3dError: The file is damaged.
    """
    path = Path(path)
    if not path.exists():
        return None
    content = _document(path, CASE_FORMAT)
    _same_keys(path, "file", content, ("format", "version", "fingerprint", "scored"))
    if content["fingerprint"] != fingerprint:
        return None
    scored: Scored = _decoded(path, "scored", content["scored"], Scored)
    _check_scored(path, "scored", scored)
    return scored


def identical(a: str | Path, b: str | Path) -> list[str]:
    """Where two files of results differ, the key "timing" aside; an empty list if nowhere.

    Raises:
        Sr3dError: One of them is no file of results.
    """
    one, two = (_document(Path(path), FORMAT) for path in (a, b))
    one.pop("timing", None)
    two.pop("timing", None)
    return [at or "file" for at, _, _ in differences(one, two)]


def differences(a: object, b: object, at: str = "") -> list[tuple[str, object, object]]:
    """Where two JSON values differ: path ("cases[0].levels[1]") and both values, "nothing" where there is none."""
    if isinstance(a, dict) and isinstance(b, dict):
        dot = f"{at}." if at else ""
        keys = [*a, *(key for key in b if key not in a)]
        found = [differences(a.get(k, "nothing"), b.get(k, "nothing"), f"{dot}{k}") for k in keys]
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        found = [differences(x, y, f"{at}[{i}]") for i, (x, y) in enumerate(zip(a, b))]
    else:
        return [] if type(a) is type(b) and a == b else [(at, a, b)]
    return [entry for entries in found for entry in entries]


def _once(path: Path, names: list[str]) -> None:
    """Refuse two cases of one name."""
    for name, count in Counter(names).items():
        if count > 1:
            raise Sr3dError(path, "cases", f"{name!r} {count} times", "every case once")


def _split(summary: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A summary without the columns of `TIMED`, and those alone."""

    def chosen(value: Any, depth: int, timed: bool) -> Any:
        if depth == 0:
            return {column: found for column, found in value.items() if (column in TIMED) == timed}
        return {key: chosen(inner, depth - 1, timed) for key, inner in value.items()}

    # Columns are below level and method, in `rows` below the scene too.
    split = [{k: chosen(summary[k], 3 if k == "rows" else 2, timed) for k in _PER_METHOD} for timed in (False, True)]
    return summary | split[0], split[1]


def _write(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(_plain(path, "", content), indent=1, ensure_ascii=False)
    with atomic(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _plain(path: Path, at: str, value: Any) -> Any:
    """A value as JSON has it: keys are strings, NaN is None."""
    if isinstance(value, dict):
        return {str(k): _plain(path, f"{at}.{k}" if at else str(k), v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(path, f"{at}[{i}]", v) for i, v in enumerate(value)]
    if isinstance(value, float):
        if math.isinf(value):
            raise Sr3dError(path, at, value, "a finite number, or NaN for none")
        return None if math.isnan(value) else float(value)
    if value is None or type(value) in (bool, int, str):
        return value
    raise Sr3dError(path, at, f"a {type(value).__name__}", "a plain value: number, text, list or dictionary")


def _document(path: Path, kind: str) -> dict[str, Any]:
    """A JSON object of a known format."""

    def constant(name: str) -> None:
        raise ValueError(f"{name}, which is no JSON")

    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=constant)
    except (OSError, ValueError, RecursionError) as error:
        raise Sr3dError(path, "file", f"{type(error).__name__}: {error}"[:200], f"a JSON file ({kind})") from None
    if not isinstance(content, dict):
        raise Sr3dError(path, "file", _short(content), f"a JSON object ({kind})")
    for name, wanted in (("format", kind), ("version", VERSION)):
        found = content.get(name, "nothing")
        if type(found) is not type(wanted) or found != wanted:
            raise Sr3dError(path, name, _short(found), repr(wanted))
    return content


def _same_keys(path: Path, at: str, found: dict[str, Any], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in found]
    unknown = sorted(found.keys() - set(wanted))
    if missing or unknown:
        first = f"no {missing[0]!r}" if missing else repr(unknown[0])
        raise Sr3dError(path, at, first, f"exactly the fields {', '.join(wanted)}"[:300])


def _decoded(path: Path, at: str, value: Any, hint: Any) -> Any:
    """A JSON value as a type of `Results` and `Scored`: data classes, lists, dictionaries, numbers, text."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        return None if value is None else _decoded(path, at, value, arguments[0])
    if is_dataclass(hint):
        content, names = _decoded(path, at, value, dict[str, Any]), tuple(f.name for f in fields(hint))
        _same_keys(path, at or "file", content, names)
        hints, make, dot = get_type_hints(hint), cast(Callable[..., Any], hint), f"{at}." if at else ""
        return make(**{name: _decoded(path, f"{dot}{name}", content[name], hints[name]) for name in names})
    if origin is dict and isinstance(value, dict):
        return {key: _decoded(path, f"{at}.{key}", inner, arguments[1]) for key, inner in value.items()}
    if origin is list and isinstance(value, list):
        return [_decoded(path, f"{at}[{i}]", inner, arguments[0]) for i, inner in enumerate(value)]
    if hint is float and type(value) in (int, float) and abs(value) < 1e300:
        return float(value)
    if hint in (int, str) and type(value) is hint:
        return value
    raise Sr3dError(path, at, _short(value), _WORDS[origin or hint])


_WORDS = {dict: "an object", list: "a list", float: "a finite number", int: "a whole number", str: "text"}


def _short(value: object) -> str:
    return repr(value)[:80]


def _check_scored(path: Path, at: str, scored: Scored) -> None:
    """What types do not say: lengths, signs and shares."""
    count = len(scored.frames)
    if count == 0:
        raise Sr3dError(path, f"{at}.frames", "none", "at least one target view")
    lists: dict[str, list[Any]] = {"levels": scored.levels, "coverage": scored.coverage}
    for method, columns in scored.values.items():
        lists |= {f"values.{method}.{column}": values for column, values in columns.items()}
    for name, values in lists.items():
        if len(values) != count:
            raise Sr3dError(path, f"{at}.{name}", f"{len(values)} values", f"{count}, one per target view")
    if min(scored.levels) < 1:
        raise Sr3dError(path, f"{at}.levels", min(scored.levels), "magnifications of at least 1")
    if not 0 <= min(scored.coverage) <= max(scored.coverage) <= 1:
        raise Sr3dError(path, f"{at}.coverage", scored.coverage, "shares between 0 and 1")
    for name in ("gaussians", *TIMED):
        for method, cost in getattr(scored, name).items():
            if cost is not None and cost < 0:
                raise Sr3dError(path, f"{at}.{name}.{method}", cost, "at least 0")


def _check_results(path: Path, results: Results) -> None:
    """What types do not say: every name is known, every case and every frame is there once."""
    for column, about in results.columns.items():
        _same_keys(path, f"columns.{column}", about, ("title", "better", "digits", "unit"))
        if about["better"] not in ("higher", "lower"):
            raise Sr3dError(path, f"columns.{column}.better", _short(about["better"]), "'higher' or 'lower'")
        for key, hint in (("title", str), ("digits", int), ("unit", str)):
            _decoded(path, f"columns.{column}.{key}", about[key], hint)
    for number, scored in enumerate(results.cases):
        _check_scored(path, f"cases[{number}]", scored)
        for method, columns in scored.values.items():
            _known(path, f"cases[{number}].values", method, list(results.methods))
            for column in columns:
                _known(path, f"cases[{number}].values.{method}", column, list(results.columns))
        for name in ("gaussians", "notes", *TIMED):
            for method in getattr(scored, name):
                _known(path, f"cases[{number}].{name}", method, list(results.methods))
    for method, pooled in results.pooled.items():
        _known(path, "pooled", method, list(results.methods))
        for column in pooled:
            _known(path, f"pooled.{method}", column, list(results.columns))
    for number, entry in enumerate(results.missing):
        _same_keys(path, f"missing[{number}]", entry, ("case", "reason"))
    if results.expected < 0:
        raise Sr3dError(path, "expected", results.expected, "at least 0")


def _known(path: Path, at: str, name: str, names: list[str]) -> None:
    if name not in names:
        raise Sr3dError(path, at, repr(name), f"one of {', '.join(names)}")
