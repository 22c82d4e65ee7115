"""What the tables of an evaluation say, before it is typeset for a terminal, Markdown or LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sr3d.evaluation.results import Results
from sr3d.evaluation.statistics import COSTS, Mean, Paired, Summary, columns_of

MAIN = ("psnr_covered", "psnr", "ssim", "lpips")
_WIDEST, _MOST_SCENES, _FEW = 4, 50, 10


@dataclass(kw_only=True)
class Cell:
    """One cell.

    Attributes:
        value: The number, or a name; "–" for none.
        interval: Beside or below it, smaller; "" for nothing.
        won: Share of scenes that a method wins, beside or below the interval; "" for nothing.
        best: Best of its column (of its row, in a table of scenes).
        gain: "win" or "loss" for a difference whose interval excludes zero.
    """

    value: str = "–"
    interval: str = ""
    won: str = ""
    best: bool = False
    gain: str = ""


@dataclass(kw_only=True)
class Sheet:
    """One table.

    Attributes:
        title: Above it.
        head: Names of the columns; the first one holds the names of the rows.
        rows: Cells, as many as there are columns.
        notes: Sentences below it.
    """

    title: str
    head: list[str]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)


def sheets(results: Results, summary: Summary) -> list[Sheet]:
    """All tables: per level scores, differences to the baseline, costs and scenes; then quoted rows.

    Notes on what is missing stand below the last table that is ours.
    """
    found: list[Sheet] = []
    for level in summary.levels:
        named = f", level {level}×" if len(summary.levels) > 1 else ""
        found += _scores(results, summary, level, named)
        found += _differences(results, summary, level, named)
        found += _scenes(results, summary, level, named)
    if len(summary.levels) > 1:
        found += _pooled(results)
    found.append(_costs(results, summary))
    found[-1].notes += _gaps(results, summary)
    return found + [_quoted(results, summary, entry) for entry in results.protocol.get("published", [])]


def number(value: int | float, about: dict[str, Any], sign: str = "") -> str:
    """A value with the decimals of its column, bytes in MB, thousands apart; what rounds to zero has no sign."""
    shown, digits, unit = (value / 1e6, 0, " MB") if about["unit"] == "bytes" else (value, about["digits"], "")
    return f"{shown:{sign if round(shown, digits) else ''}z,.{digits}f}{unit}"


def heading(column: str, about: dict[str, Any]) -> str:
    """Title, unit and direction of a column."""
    unit = f" ({about['unit']})" if about["unit"] and column not in COSTS else ""
    return f"{about['title']}{unit} {'↑' if about['better'] == 'higher' else '↓'}"


def two_dimensional(results: Results) -> list[str]:
    """Methods that never made Gaussians: they enlarge the target views themselves."""
    flat = [name for name in results.methods if all(case.gaussians.get(name) is None for case in results.cases)]
    return [name for name in flat if any(name in case.values for case in results.cases)]


def few(summary: Summary, n: int) -> list[str]:
    """A warning where intervals rest on little."""
    if n == 1:
        return [f"One {summary.unit} only: no intervals."]
    return [f"Intervals over fewer than {_FEW} {summary.unit}s are too narrow."] if n < _FEW else []


def interval(found: Mean | Paired, about: dict[str, Any], sign: str = "") -> str:
    """The ends of an interval, "" without."""
    if found.low is None or found.high is None:
        return ""
    return f"[{number(found.low, about, sign)}, {number(found.high, about, sign)}]"


def difference(pair: Paired, about: dict[str, Any]) -> Cell:
    """A paired difference with its interval and win rate."""
    return Cell(
        value=number(pair.difference, about, "+"),
        interval=interval(pair, about, "+"),
        won=f"{100 * pair.win_rate:.0f} % won",
        gain=_gain(pair, about),
    )


def _gain(pair: Paired, about: dict[str, Any]) -> str:
    """Which way a difference goes, where its interval says that it does."""
    if pair.low is None or pair.high is None or pair.low <= 0 <= pair.high:
        return ""
    return "win" if (pair.low > 0) == (about["better"] == "higher") else "loss"


def _name(results: Results, method: str) -> Cell:
    zoomed = any(level > 1 for case in results.cases for level in case.levels)
    words = "(enlarges the input)" if zoomed else "(sees the target views, reduced)"
    return Cell(value=method, interval=words if method in two_dimensional(results) else "")


def _best(results: Results, values: dict[str, float], about: dict[str, Any]) -> set[str]:
    """Methods with the best value as printed, of two or more that make Gaussians."""
    flat = two_dimensional(results)
    printed = {method: round(value, about["digits"]) for method, value in values.items() if method not in flat}
    if len(printed) < 2:
        return set()
    top = (max if about["better"] == "higher" else min)(printed.values())
    return {method for method, value in printed.items() if value == top}


def _table(results: Results, title: str, columns: Sequence[str], means: dict[str, dict[str, Mean]]) -> Sheet:
    """Methods against columns, the best of each marked."""
    about = columns_of(results)
    rows = {method: [_name(results, method)] for method in results.methods}
    for column in columns:
        found = {method: row[column] for method, row in means.items() if column in row}
        best = _best(results, {method: mean.mean for method, mean in found.items()}, about[column])
        for method, row in rows.items():
            row.append(Cell())
            if mean := found.get(method):
                text, ends = number(mean.mean, about[column]), interval(mean, about[column])
                row[-1] = Cell(value=text, interval=ends, best=method in best)
    return Sheet(title=title, head=["Method", *(heading(c, about[c]) for c in columns)], rows=list(rows.values()))


def _scores(results: Results, summary: Summary, level: int, named: str) -> list[Sheet]:
    """Metrics of one level, four columns to a table; with those of all views together where there is one level."""
    means = {method: dict(found) for method, found in summary.means[level].items()}
    if len(summary.levels) == 1:
        for method, pooled in _pooled_means(results).items():
            means[method] |= pooled
    columns = [c for c in results.columns if any(c in found for found in means.values())]
    title = results.protocol.get("title") or results.protocol.get("name", "")
    parts = [columns[i : i + _WIDEST] for i in range(0, len(columns), _WIDEST)]
    found = [
        _table(results, f"{title}{named}{' (continued)' if i else ''}", part, means) for i, part in enumerate(parts)
    ]
    n = max((mean.n for row in summary.means[level].values() for mean in row.values()), default=0)
    if found:
        scenes = len(summary.rows[level])
        counted = f"{summary.views[level]} target views of {scenes} scene{'s' if scenes > 1 else f' ({n} cases)'}"
        covered = f"; {100 * summary.coverage[level]:.1f} % of their pixels are covered by the coarse scene"
        found[-1].notes += [
            f"{counted}{'' if results.protocol.get('kind') == 'generated' else covered}.",
            f"Mean over {summary.unit}s [95 % bootstrap interval].",
            *few(summary, n),
        ]
    return found


def _pooled_means(results: Results) -> dict[str, dict[str, Mean]]:
    """Metrics of all views together, which have no interval."""
    return {
        method: {c: Mean(mean=v, low=None, high=None, n=1) for c, v in pooled.items() if v is not None}
        for method, pooled in results.pooled.items()
    }


def _pooled(results: Results) -> list[Sheet]:
    means = _pooled_means(results)
    columns = [c for c in results.columns if any(c in found for found in means.values())]
    return [_table(results, "All levels together", columns, means)] if columns else []


def _differences(results: Results, summary: Summary, level: int, named: str) -> list[Sheet]:
    """Every method against the baseline in the main columns."""
    about, paired = columns_of(results), summary.paired[level]
    measured = [c for c in results.columns if any(c in found for found in paired.values())]
    columns = [c for c in MAIN if c in measured] or measured[:_WIDEST]
    if not columns:
        return []
    rows = [
        [_name(results, method), *(difference(found[c], about[c]) if c in found else Cell() for c in columns)]
        for method, found in paired.items()
    ]
    head = ["Method", *(heading(c, about[c]) for c in columns)]
    note = (
        f"Mean difference on the same views [95 % bootstrap interval]; won: share of {summary.unit}s it is better in."
    )
    return [Sheet(title=f"Difference to {summary.baseline}{named}", head=head, rows=rows, notes=[note])]


def _costs(results: Results, summary: Summary) -> Sheet:
    """What methods cost, the same at every level; nothing is marked: that the simplest is cheapest is no finding."""
    about, means = columns_of(results), summary.means[summary.levels[0]] if summary.levels else {}
    columns = [c for c in COSTS if any(c in found for found in means.values())]
    rows = []
    for method in results.methods:
        found = means.get(method, {})
        cells = [Cell(value=number(found[c].mean, about[c])) if c in found else Cell() for c in columns]
        rows.append([_name(results, method), *cells])
    note = "Seconds from the input views to Gaussians, the coarse stage included; FPS: target views drawn per second."
    return Sheet(
        title="Cost per case", head=["Method", *(heading(c, about[c]) for c in columns)], rows=rows, notes=[note]
    )


def _scenes(results: Results, summary: Summary, level: int, named: str) -> list[Sheet]:
    """Scenes against methods, in the first of the main columns that was measured."""
    about, rows = columns_of(results), summary.rows[level]
    measured = {column for found in summary.means[level].values() for column in found}
    column = next((c for c in (*MAIN, *results.columns) if c in measured), None)
    if column is None or not 1 < len(rows) <= _MOST_SCENES:
        return []
    body = []
    for scene, methods in rows.items():
        values = {method: found[column] for method, found in methods.items() if column in found}
        best = _best(results, values, about[column])
        texts = {method: number(value, about[column]) for method, value in values.items()}
        cells = [Cell(value=texts[m], best=m in best) if m in texts else Cell() for m in results.methods]
        body.append([Cell(value=scene), *cells])
    title = f"Scenes: {heading(column, about[column])}{named}"
    return [Sheet(title=title, head=["Scene", *results.methods], rows=body)]


def _gaps(results: Results, summary: Summary) -> list[str]:
    """What has no value, and why."""
    evaluated = sum(summary.views.values())
    notes = [f"{evaluated} of {results.expected} target views that the protocol names were evaluated."]
    notes += [f"Not available: {metric} ({reason})." for metric, reason in results.unavailable.items()]
    notes += [f"Missing: {entry['case']} ({entry['reason']})." for entry in results.missing]
    for level, methods in summary.means.items():
        at = f" at level {level}×" if len(summary.levels) > 1 else ""
        most = {c: max((found[c].n for found in methods.values() if c in found), default=0) for c in results.columns}
        notes += _views_without(summary, level, at)
        for method, found in methods.items():
            for column, mean in found.items():
                if mean.n < most.get(column, 0):
                    notes.append(f"{method}: {column}{at} over {mean.n} of {most[column]} {summary.unit}s only.")
    return notes


def _views_without(summary: Summary, level: int, at: str) -> list[str]:
    """Views without a value: one line for all columns and methods that lack as many."""
    methods: dict[tuple[str, int], list[str]] = {}
    for method, columns in summary.without[level].items():
        for column, count in columns.items():
            methods.setdefault((column, count), []).append(method)
    columns_of_group: dict[tuple[int, str], list[str]] = {}
    for (column, count), found in methods.items():
        columns_of_group.setdefault((count, ", ".join(found)), []).append(column)
    return [
        f"{count} of {summary.views[level]} views{at} have no {', '.join(columns)} and are left out ({found})."
        for (count, found), columns in columns_of_group.items()
    ]


def _quoted(results: Results, summary: Summary, entry: dict[str, Any]) -> Sheet:
    """Rows of a paper, and below them ours in the columns that are the same quantity."""
    about = columns_of(results)
    head = ["Method", *(heading(c, about[c]) if c in about else c for c in entry["columns"])]
    texts = {name: [_as_printed(entry, i, value) for i, value in enumerate(row)] for name, row in entry["rows"].items()}
    rows = [[Cell(value=f"{name} (quoted)"), *(Cell(value=t) for t in row)] for name, row in texts.items()]
    means = {method: dict(found) for method, found in _pooled_means(results).items()}
    first = summary.means[summary.levels[0]] if summary.levels else {}
    for method, found in first.items():
        # Costs are the same at every level; of several levels nobody knows which one a paper's row is about.
        means[method] = means.get(method, {}) | {
            c: m for c, m in found.items() if len(summary.levels) == 1 or c in COSTS
        }
    for method in results.methods:
        row = {c: m for c, m in means.get(method, {}).items() if c in entry["columns"] and c in about}
        if row:
            ours = [Cell(value=number(row[c].mean, about[c])) if c in row else Cell() for c in entry["columns"]]
            rows.append([Cell(value=f"{method} (ours)"), *ours])
    notes = [entry["note"]] if entry.get("note") else []
    return Sheet(title=f"Quoted from {entry['source']}", head=head, rows=rows, notes=notes)


def _as_printed(entry: dict[str, Any], index: int, value: int | float | str | None) -> str:
    """A quoted value with as many decimals as the longest of its column: papers print 23.10, files hold 23.1.

    Whole numbers from 100 on have none: counts, and seconds beside fractions of seconds.
    """
    if value is None or isinstance(value, str):
        return value or "–"
    if float(value).is_integer() and abs(value) >= 100:
        return f"{value:,.0f}"
    column = [row[index] for row in entry["rows"].values()]
    return f"{value:.{max(len(repr(v).partition('.')[2]) for v in column if isinstance(v, int | float))}f}"
