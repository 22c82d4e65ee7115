"""Tables of an evaluation: for the terminal, as Markdown and as LaTeX."""

from __future__ import annotations

import rich.box
from rich.table import Table
from rich.text import Text

from sr3d.evaluation.results import Results
from sr3d.evaluation.sheets import Cell, Sheet, sheets
from sr3d.evaluation.statistics import Summary

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "×": r"$\times$", "−": r"$-$", "–": "--", "→": r"$\to$", "±": r"$\pm$",
    "²": r"\textsuperscript{2}", "³": r"\textsuperscript{3}", "τ": r"$\tau$",
}  # fmt: skip
_MARKDOWN = {character: f"\\{character}" for character in "\\|*_`<>[]"}


def terminal(results: Results, summary: Summary) -> list[Table]:
    """Tables for a terminal of 100 columns or more; intervals stand below their values."""
    return [_rich(sheet) for sheet in sheets(results, summary)]


def markdown(results: Results, summary: Summary) -> str:
    """All tables in GitHub's Markdown, under headings of the third order; ends with a line break."""
    return "\n".join(_markdown(sheet) for sheet in sheets(results, summary))


def latex(results: Results, summary: Summary) -> str:
    r"""All tables as LaTeX floats, for \usepackage{booktabs}; ends with a line break."""
    return "\n".join(_latex(sheet) for sheet in sheets(results, summary))


def _rich(sheet: Sheet) -> Table:
    caption = Text("\n".join(sheet.notes), style="dim") if sheet.notes else None
    table = Table(title=Text(f"\n{sheet.title}", style="bold"), caption=caption, box=rich.box.SIMPLE)
    table.title_justify = table.caption_justify = "left"
    for i, name in enumerate(sheet.head):
        table.add_column(Text(name), justify="right" if i else "left", max_width=None if i else 24)
    for row in sheet.rows:
        table.add_row(*(_stacked(cell) for cell in row))
    return table


def _stacked(cell: Cell) -> Text:
    text = Text(cell.value, style="bold" if cell.best else "")
    for line in filter(None, (cell.interval, cell.won)):
        text.append(f"\n{line}", style="not bold dim")
    return text


def _beside(cell: Cell) -> str:
    return f"{cell.interval} {cell.won}".strip()


def _markdown(sheet: Sheet) -> str:
    def words(text: str) -> str:
        return "".join(_MARKDOWN.get(c, c) for c in text)

    def shown(cell: Cell) -> str:
        value = f"**{words(cell.value)}**" if cell.best else words(cell.value)
        return f"{value} {words(_beside(cell))}".strip()

    lines = [[words(name) for name in sheet.head], ["---", *["---:"] * (len(sheet.head) - 1)]]
    lines += [[shown(cell) for cell in row] for row in sheet.rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "".join(f"\n{words(note)}  " for note in sheet.notes)
    return f"### {words(sheet.title)}\n\n{table}\n" + (f"{notes}\n" if notes else "")


def _latex(sheet: Sheet) -> str:
    def words(text: str) -> str:
        return "".join(_LATEX.get(c, c) for c in text)

    def shown(cell: Cell) -> str:
        value = rf"\textbf{{{words(cell.value)}}}" if cell.best else words(cell.value)
        beside = words(_beside(cell))
        return rf"{value} {{\scriptsize {beside}}}" if beside else value

    lines = [" & ".join(shown(cell) for cell in row) + r" \\" for row in sheet.rows]
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\caption{{{words(sheet.title)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(sheet.head) - 1)}}}", r"\toprule",
        " & ".join(words(name) for name in sheet.head) + r" \\", r"\midrule", *lines, r"\bottomrule", r"\end{tabular}",
        *(rf"\par\footnotesize {words(note)}" for note in sheet.notes), r"\end{table}", "",
    ])  # fmt: skip
