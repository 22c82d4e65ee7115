"""Building blocks of a self-contained page: style sheet, document, tables, lists of facts."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any


def document(title: str, body: str) -> str:
    """A whole HTML page."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{CSS}</style></head><body><main>\n{body}\n</main></body></html>\n"
    )


def card(title: str, body: str, anchor: str = "") -> str:
    """A titled section; `body` is HTML."""
    identity = f' id="{html.escape(anchor)}"' if anchor else ""
    return f"<section class=card{identity}><h2>{html.escape(title)}</h2>{body}</section>"


def table(head: str, rows: Sequence[str]) -> str:
    """A table of numbers that scrolls by itself on narrow screens; `head` and `rows` are HTML rows."""
    body = "".join(rows)
    return f"<div class=scroll><table class=numbers><thead>{head}</thead><tbody>{body}</tbody></table></div>"


def row(cells: Sequence[str], kind: str = "td") -> str:
    """A row of text cells, the first one a heading."""
    first, *rest = (html.escape(c) for c in cells)
    return f"<tr><th>{first}</th>{''.join(f'<{kind}>{c}</{kind}>' for c in rest)}</tr>"


def facts(values: dict[str, str]) -> str:
    """Names and values, as text."""
    rows = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in values.items())
    return f"<dl>{rows}</dl>" if rows else ""


def value_tables(values: dict[str, Any]) -> str:
    """Lists of dictionaries as tables with a column per key; everything else as one list of names and values."""
    tables, plain = [], {}
    for name, value in values.items():
        if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
            records = [flat(v) for v in value]
            keys = list(dict.fromkeys(k for r in records for k in r))
            body = [row([number(r.get(k)) for k in keys]) for r in records]
            tables.append(f"<h3>{html.escape(name.replace('_', ' '))}</h3>" + table(row(keys, "th"), body))
        else:
            plain[name.replace("_", " ")] = number(value)
    return "".join(tables) + facts(plain)


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by a space, underscores as spaces."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("_", " ")
        nested = {f"{name} {k}": v for k, v in flat(value).items()} if isinstance(value, dict) else {name: value}
        out.update(nested)
    return out


def number(value: object) -> str:
    """Text of a value: two decimals or three digits for fractions, separators for counts, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"
    if isinstance(value, int | float):
        return f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return ", ".join(number(v) for v in value)
    if isinstance(value, dict):
        return ", ".join(f"{k} {number(v)}" for k, v in flat(value).items())
    return str(value)


CSS = """
:root { --bg: #f6f7f9; --card: #fff; --text: #1c2430; --soft: #667085; --line: #e4e7ec; --accent: #2563eb;
  --win: #067647; --win-bg: #e7f7ef; --loss: #b42318; --loss-bg: #fdeceb; }
@media (prefers-color-scheme: dark) { :root { --bg: #0f1319; --card: #171c24; --text: #e6e9ef; --soft: #98a2b3;
  --line: #2a313c; --accent: #7aa7ff; --win: #75e0a7; --win-bg: #11301f; --loss: #fda29b; --loss-bg: #3a1715; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--text);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 32px 20px 64px; }
header { padding: 8px 4px 20px; }
h1 { font-size: 34px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.02em; }
h2 { font-size: 21px; line-height: 1.3; margin: 0 0 14px; letter-spacing: -0.01em; }
h3 { font-size: 15px; margin: 26px 0 8px; }
h3 small { color: var(--soft); font-weight: 400; margin-left: 6px; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
.lead { color: var(--soft); font-size: 18px; max-width: 760px; margin: 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 22px;
  margin: 0 0 20px; }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; }
.note { color: var(--soft); font-size: 14px; margin: 10px 0 0; }
.legend { color: var(--soft); font-size: 14px; margin: 14px 0 0; padding: 0; list-style: none; }
.legend b { color: var(--text); display: inline-block; min-width: 96px; }
table.numbers { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 15px; }
.numbers th, .numbers td { padding: 8px 12px; border-bottom: 1px solid var(--line); white-space: nowrap;
  text-align: right; }
.numbers thead th { color: var(--soft); font-weight: 500; font-size: 13px; }
.numbers thead th[colspan] { text-align: center; }
.numbers tbody th, .numbers thead th:first-child { text-align: left; font-weight: 600; }
.numbers thead tr + tr th:first-child { text-align: right; font-weight: 500; }
.numbers small { display: block; color: var(--soft); font-weight: 400; font-size: 12px; }
.numbers tbody tr:last-child > * { border-bottom: 0; }
.gain { font-weight: 650; }
.win { color: var(--win); background: var(--win-bg); }
.loss { color: var(--loss); background: var(--loss-bg); }
.grid { display: grid; grid-template-columns: repeat(var(--columns), minmax(128px, 1fr)); gap: 4px; }
.grid img { width: 100%; display: block; border-radius: 3px; }
.grid .head { font-size: 13px; line-height: 1.3; padding: 2px 0; }
.grid .head span { display: block; color: var(--soft); font-size: 12px; }
.grid .label { grid-column: span 2; align-self: center; justify-self: end; text-align: right; padding: 0 12px;
  font-size: 13px; line-height: 1.35; max-width: 240px; }
.grid .label span { display: block; color: var(--soft); font-size: 12px; }
.pixelated { image-rendering: pixelated; }
.scroll .wide { min-width: 720px; }
.wide, video { width: 100%; border-radius: 6px; display: block; margin: 0 0 12px; }
video { max-width: 720px; }
.curves svg { width: 100%; height: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 20px; }
dl { display: grid; grid-template-columns: minmax(120px, max-content) 1fr; gap: 4px 18px; margin: 12px 0 0;
  font-size: 14px; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.bar { display: inline-block; height: 10px; min-width: 2px; margin-right: 10px; border-radius: 3px;
  background: var(--accent); }
details { margin-top: 14px; }
summary { cursor: pointer; color: var(--accent); font-size: 14px; }
pre { overflow-x: auto; font-size: 12.5px; line-height: 1.45; background: var(--bg); border-radius: 8px;
  padding: 12px; }
@media (max-width: 640px) {
  main { padding: 18px 10px 40px; }
  .card { padding: 16px 12px; border-radius: 10px; }
  h1 { font-size: 27px; }
  .lead { font-size: 16px; }
  .legend li { margin-bottom: 4px; }
  .numbers th, .numbers td { padding: 7px 8px; font-size: 14px; }
  .numbers tbody th { white-space: normal; min-width: 96px; font-size: 13px; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 8px; }
}
"""
