"""Two runs of one protocol: what became worse, on the same views."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import rich.box
from rich.table import Table
from rich.text import Text

from sr3d.errors import Sr3dError
from sr3d.evaluation.results import Results, Scored
from sr3d.evaluation.results_file import differences, read_results
from sr3d.evaluation.sheets import difference, few, heading, number
from sr3d.evaluation.statistics import COSTS, Paired, Summary, columns_of, summarise

# Keys of a protocol that change no value of the metrics two runs have in common.
_WORDS = ("title", "notes", "published", "baseline", "metrics")
_SHOWN = 5


@dataclass(kw_only=True)
class Change:
    """One column of one method, run B against run A.

    Attributes:
        level: Magnification; None for metrics of all views together.
        method: Label, the same in both.
        column: Name.
        about: {"title", "better", "digits", "unit"} of the column.
        a: Mean of the first run.
        b: Mean of the second one.
        paired: B − A on the same views; None for metrics of all views together.
        verdict: "worse" or "better", see `compare`; "" where nothing can be said.
    """

    level: int | None
    method: str
    column: str
    about: dict[str, Any]
    a: float
    b: float
    paired: Paired | None
    verdict: Literal["worse", "better", ""] = ""


@dataclass(kw_only=True)
class Comparison:
    """Run B against run A.

    Attributes:
        changes: Quality columns and costs, method by method.
        notes: What keeps the runs from being the same but for the change that is tested.
    """

    changes: list[Change]
    notes: list[str] = field(default_factory=list)

    @property
    def regressed(self) -> bool:
        """Whether a quality column of a method is significantly worse. Costs never count."""
        return any(change.verdict == "worse" for change in self.changes if change.column not in COSTS)


def compare(a: str | Path, b: str | Path) -> Comparison:
    """Compare the files of two runs on the methods, cases and columns that both have.

    Differences are paired per scene (per case where there is one scene), with the bootstrap interval of `summarise`.
    A column is called worse (or better) where its difference shows in the printed digits and its interval, widened,
    excludes zero. Widened by Student's t for few scenes, and for the number of quality columns (Bonferroni): where 16
    columns differ by noise over six scenes, one is called worse in 3 of 100 comparisons then, and in 73 otherwise. With
    a single case there is no interval, and nothing is called worse; metrics of all views together have none either.

    Args:
        a: File of the run before.
        b: File of the run after.

    Raises:
        Sr3dError: A file cannot be read, the protocols or their indices differ, or no method or no case is common.
    """
    one, two = read_results(a), read_results(b)
    _same_protocol(a, b, one, two)
    methods = [name for name in one.methods if name in two.methods]
    pairs = _common_cases(b, one, two)
    columns = {name: about for name, about in one.columns.items() if name in two.columns}
    if not methods or not pairs:
        kind, names = ("methods", one.methods) if not methods else ("cases", [case.case for case in one.cases])
        raise Sr3dError(b, kind, "none in common", f"some of {', '.join(names)}"[:200])
    changes: list[Change] = []
    notes = _notes(one, two, pairs)
    for method in methods:
        cases = [_merged(x, y, method) for x, y in pairs]
        merged = replace(one, methods={"A": {}, "B": {}}, columns=columns, cases=cases)
        summary = summarise(merged, "A")
        changes += _paired(method, merged, summary)
        changes += _pooled(method, columns, one, two)
        notes += few(summary, max((c.paired.n for c in changes if c.paired), default=0))
    return Comparison(changes=_judged(changes), notes=list(dict.fromkeys(notes)))


def terminal(comparison: Comparison) -> Table:
    """The comparison for a terminal of 100 columns or more."""
    caption = Text("\n".join(comparison.notes), style="dim") if comparison.notes else None
    table = Table(title=Text("\nB against A", style="bold"), caption=caption, box=rich.box.SIMPLE)
    table.title_justify = table.caption_justify = "left"
    for i, name in enumerate(("Method", "Column", "A", "B", "B − A", "95 % interval", "Won", "")):
        table.add_column(name, justify="right" if 1 < i < 7 else "left")
    several = len({change.level for change in comparison.changes if change.level is not None}) > 1
    for change in comparison.changes:
        at = f", {change.level}×" if several and change.level is not None else ""
        a, b = number(change.a, change.about), number(change.b, change.about)
        apart = [number(change.b - change.a, change.about, "+"), "", ""]
        if change.paired:
            cell = difference(change.paired, change.about)
            apart = [cell.value, cell.interval, cell.won.removesuffix(" won")]
        style = {"worse": "red", "better": "green", "": ""}[change.verdict]
        name = f"{heading(change.column, change.about)}{at}"
        table.add_row(*(Text(text, style=style) for text in (change.method, name, a, b, *apart, change.verdict)))
    return table


def _same_protocol(a: str | Path, b: str | Path, one: Results, two: Results) -> None:
    """Refuse runs whose values mean different things."""
    first, second = ({k: v for k, v in run.protocol.items() if k not in _WORDS} for run in (one, two))
    for at, x, y in differences(first, second, "protocol"):
        raise Sr3dError(b, at, _short(y), f"{_short(x)}, as in {a}: only runs of one protocol can be compared")
    for column in one.columns.keys() & two.columns.keys():
        if one.columns[column]["better"] != two.columns[column]["better"]:
            found, expected = two.columns[column]["better"], f"{one.columns[column]['better']!r}, as in {a}"
            raise Sr3dError(b, f"columns.{column}.better", repr(found), expected)


def _common_cases(b: str | Path, one: Results, two: Results) -> list[tuple[Scored, Scored]]:
    """Cases of both runs, in the order of the first; their views are the same."""
    others = {case.case: case for case in two.cases}
    pairs = [(case, others[case.case]) for case in one.cases if case.case in others]
    for x, y in pairs:
        for name in ("scene", "frames", "levels"):
            if getattr(x, name) != getattr(y, name):
                found, expected = _short(getattr(y, name)), f"{_short(getattr(x, name))}, as in the other run"
                raise Sr3dError(b, f"{name} of case {x.case}", found, expected)
    return pairs


def _merged(x: Scored, y: Scored, method: str) -> Scored:
    """One case of both runs, as if they were two methods of one."""

    def both(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
        return {run: found[method] for run, found in (("A", a), ("B", b)) if method in found}

    return replace(
        x,
        values=both(x.values, y.values),
        gaussians=both(x.gaussians, y.gaussians),
        seconds=both(x.seconds, y.seconds),
        fps=both(x.fps, y.fps),
        peak_bytes=both(x.peak_bytes, y.peak_bytes),
    )


def _paired(method: str, merged: Results, summary: Summary) -> list[Change]:
    changes = []
    for level in summary.levels:
        means, paired = summary.means[level], summary.paired[level]["B"]
        for column, about in columns_of(merged).items():
            if pair := paired.get(column):
                a, b = means["A"][column].mean, means["B"][column].mean
                changes.append(Change(level=level, method=method, column=column, about=about, a=a, b=b, paired=pair))
    return changes


def _judged(changes: list[Change]) -> list[Change]:
    """The same with verdicts."""
    count = sum(change.column not in COSTS and change.paired is not None for change in changes)
    return [replace(change, verdict=_verdict(change, count)) for change in changes]


def _verdict(change: Change, count: int) -> Literal["worse", "better", ""]:
    """Whether a difference is significant as one of `count`, and large enough to be seen."""
    pair, about = change.paired, change.about
    if pair is None or pair.low is None or pair.high is None:
        return ""
    stretch = _stretch(pair.n, count)
    low = pair.difference - stretch * (pair.difference - pair.low)
    high = pair.difference + stretch * (pair.high - pair.difference)
    if low <= 0 <= high or abs(pair.difference) < 0.5 * 10.0 ** -about["digits"]:
        return ""
    return "better" if (pair.difference > 0) == (about["better"] == "higher") else "worse"


@lru_cache(maxsize=16)
def _stretch(n: int, count: int) -> float:
    """How much wider than the bootstrap's an interval must be that is one of `count` and rests on n ≥ 2 values.

    The bootstrap's is 1.96 σ/√n wide to each side, σ² the mean squared deviation; it should be t σ/√(n−1).
    """
    drawn = np.random.default_rng(0).standard_t(n - 1, 1_000_000)
    return float(np.quantile(drawn, 1 - 0.025 / max(count, 1))) / NormalDist().inv_cdf(0.975) * math.sqrt(n / (n - 1))


def _pooled(method: str, columns: dict[str, dict[str, Any]], one: Results, two: Results) -> list[Change]:
    changes = []
    for column, about in columns.items():
        a, b = (run.pooled.get(method, {}).get(column) for run in (one, two))
        if a is not None and b is not None:
            changes.append(Change(level=None, method=method, column=column, about=about, a=a, b=b, paired=None))
    return changes


def _notes(one: Results, two: Results, pairs: list[tuple[Scored, Scored]]) -> list[str]:
    """What only one run has, and what else differs between them."""
    notes = [
        f"B − A on the same views of {len(pairs)} cases. Costs are never a regression.",
        "Intervals are those of single columns; verdicts allow for the number of columns, and for few scenes.",
    ]
    for kind, first, second in (
        ("Methods", list(one.methods), list(two.methods)),
        ("Columns", list(one.columns), list(two.columns)),
        ("Cases", [case.case for case in one.cases], [case.case for case in two.cases]),
    ):
        for run, names in (("A", set(first) - set(second)), ("B", set(second) - set(first))):
            if names:
                notes.append(f"{kind} of {run} only: {_listed(sorted(names))}.")
    masks = sum(x.coverage != y.coverage for x, y in pairs)
    if masks:
        notes.append(f"Coverage differs in {masks} cases: their covered pixels are not the same ones.")
    common = [name for name in one.methods if name in two.methods]
    settings = differences({m: one.methods[m] for m in common}, {m: two.methods[m] for m in common})
    for what, found in (("Settings", settings), ("Provenance", differences(one.provenance, two.provenance))):
        if found:
            notes.append(f"{what}: {_listed([f'{at} {_short(x)} → {_short(y)}' for at, x, y in found])}.")
    return notes


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
