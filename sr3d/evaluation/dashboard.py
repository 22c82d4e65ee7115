"""An evaluation as a wandb run."""

from __future__ import annotations

from pathlib import Path

import wandb

from sr3d.evaluation.plots import focus_of, save_plots
from sr3d.evaluation.report import pictured, shown_scenes, write_report
from sr3d.evaluation.results import Results
from sr3d.evaluation.statistics import Summary, columns_of
from sr3d.training.loggers import WandbLogger


def log_to_wandb(
    results: Results, summary: Summary, folder: Path, project: str = "sr3d", name: str | None = None
) -> None:
    """Log an evaluation as one run, offline where no account is configured; nothing is ever asked.

    Logged are the means and differences of `summary_values`, a table of all scenes, the plots, pictures of the best,
    the median and the worst scene, and the page of `write_report`, which is written into `folder` again. The run's
    configuration is the protocol, the methods and the provenance. It is finished in any case, as failed after an error.
    For the process of rank zero.

    Args:
        results: What was found.
        summary: Its statistics.
        folder: Of the results; wandb writes to `wandb/` in it, plots go to `plots/`.
        project: Name of the project.
        name: Name of the run; that of the protocol if None.

    Raises:
        Sr3dError: wandb does not accept the account or cannot be reached, or see `write_report`.
    """
    logger = WandbLogger(str(folder), project=project, name=name or results.protocol.get("name"), tags=["evaluation"])
    status = "failed"
    try:
        logger.run.config.update(
            {"protocol": results.protocol, "methods": results.methods, "provenance": results.provenance}
        )
        report = write_report(results, summary, folder)
        logged = {
            **summary_values(results, summary),
            "scenes": _table(results, summary),
            "report": wandb.Html(report.read_text(encoding="utf-8"), inject=False),
            **{f"plots/{path.stem}": wandb.Image(str(path)) for path in save_plots(results, summary, folder / "plots")},
            **_pictures(results, summary, folder),
        }
        logger.log_metrics(logged, 0)
        status = "success"
    finally:
        logger.finalize(status)


def summary_values(results: Results, summary: Summary) -> dict[str, float]:
    """Every number of a summary under one name.

    Returns:
        `<method>/<column>`, with `/low` and `/high` for its interval, `<method>/<column>/difference` and
        `<method>/<column>/win_rate` against the baseline, `coverage`, `views`; after `x<level>/` where there are
        several levels. `pooled/<method>/<column>` of metrics of all views together.
    """
    values: dict[str, float] = {}
    for level in summary.levels:
        at = f"x{level}/" if len(summary.levels) > 1 else ""
        values[f"{at}coverage"], values[f"{at}views"] = summary.coverage[level], summary.views[level]
        for method, means in summary.means[level].items():
            for column, mean in means.items():
                values[f"{at}{method}/{column}"] = mean.mean
                if mean.low is not None and mean.high is not None:
                    values |= {f"{at}{method}/{column}/low": mean.low, f"{at}{method}/{column}/high": mean.high}
        for method, differences in summary.paired[level].items():
            for column, paired in differences.items():
                values[f"{at}{method}/{column}/difference"] = paired.difference
                values[f"{at}{method}/{column}/win_rate"] = paired.win_rate
    for method, pooled in results.pooled.items():
        values |= {f"pooled/{method}/{column}": value for column, value in pooled.items() if value is not None}
    return values


def _table(results: Results, summary: Summary) -> wandb.Table:
    """A row for each level, scene and method."""
    columns = list(columns_of(results))
    data = [
        [level, scene, method, *(found.get(column) for column in columns)]
        for level, scenes in summary.rows.items()
        for scene, methods in scenes.items()
        for method, found in methods.items()
    ]
    return wandb.Table(columns=["level", "scene", "method", *columns], data=data)


def _pictures(results: Results, summary: Summary, folder: Path) -> dict[str, wandb.Image]:
    """Pictures of the best, the median and the worst scene."""
    focus = focus_of(results, summary)
    found = {}
    for name, rank in shown_scenes(focus).items() if focus is not None else ():
        case = pictured(results, summary, name, folder)
        if case is not None:
            for key, path in case[1].items():
                found[f"{rank}_{summary.unit}/{key}"] = wandb.Image(str(path), caption=name)
    return found
