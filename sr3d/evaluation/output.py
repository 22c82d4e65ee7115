"""Everything that a run leaves behind: JSON, tables, plots, report, and the same on wandb."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from sr3d.evaluation.dashboard import log_to_wandb
from sr3d.evaluation.plots import save_plots
from sr3d.evaluation.report import write_report
from sr3d.evaluation.results import Results
from sr3d.evaluation.results_file import write_results
from sr3d.evaluation.statistics import baseline_of, summarise
from sr3d.evaluation.tables import latex, markdown, terminal
from sr3d.io.atomic import atomic

RESULTS = "results.json"


def write_output(results: Results, folder: Path, console: Console, wandb: bool = False) -> None:
    """Print the tables, and write results.json, results.md, results.tex, plots and report.html.

    Args:
        results: What was found.
        folder: Of the run.
        console: For the tables.
        wandb: Log the same to wandb; offline where no account is configured.

    Raises:
        Sr3dError: A file cannot be written.
    """
    summary = summarise(results, baseline_of(results))
    write_results(folder / RESULTS, results)
    for name, text in (("results.md", markdown(results, summary)), ("results.tex", latex(results, summary))):
        with atomic(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    save_plots(results, summary, folder / "plots")
    page = write_report(results, summary, folder)
    for table in terminal(results, summary):
        console.print(table)
    console.print(f"report: {page}", soft_wrap=True, highlight=False)
    if wandb:
        log_to_wandb(results, summary, folder)
