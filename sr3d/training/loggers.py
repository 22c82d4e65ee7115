"""Where the numbers of a run go: a CSV that survives kills and resumes, and wandb without prompts."""

from __future__ import annotations

import csv
import io
import netrc
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import lightning
import wandb
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from sr3d.errors import Sr3dError
from sr3d.io.atomic import atomic

_STEP = "trainer/global_step"


class CSVLogger(Logger):
    """Appends every scalar to `metrics.csv`: one row for each call, a column for each name, empty where not given.

    A row is on disk when the call returns. A name that was never seen before adds a column; only then is the file
    written again. A resumed run appends; `start` drops what a killed one wrote after its last checkpoint.

    Args:
        save_dir: Folder of the run.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self._folder, self._columns = Path(save_dir), list[str]()

    @property
    def name(self) -> str:
        """Empty: the folder names the run."""
        return ""

    @property
    def version(self) -> str:
        """Empty: a run has one folder."""
        return ""

    @property
    def save_dir(self) -> str:
        """Folder of the run."""
        return str(self._folder)

    @property
    def log_dir(self) -> str:
        """Folder of `metrics.csv`: that of the run."""
        return self.save_dir

    @property
    def path(self) -> Path:
        """The file."""
        return self._folder / "metrics.csv"

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: `RunRecord` writes the configuration to a file of its own."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append one row.

        Args:
            metrics: Scalars: numbers, or tensors of one element.
            step: Optimiser steps done before the one that is logged.

        Raises:
            Sr3dError: The file cannot be written.
        """
        row = {"step": step, **{k: int(v) if k == "epoch" else float(v) for k, v in metrics.items()}}
        if not self._columns or not row.keys() <= set(self._columns):
            columns, rows = self._read()
            self._columns = [*columns, *(name for name in row if name not in columns)]
            self._write(self._columns, rows)
        try:
            with self.path.open("a", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerow([row.get(name, "") for name in self._columns])
        except OSError as error:
            raise Sr3dError(self.path, "file", error.strerror or error, "a place that can be written") from error

    @rank_zero_only
    def start(self, step: int) -> None:
        """Drop the rows of `step` and later: a run that starts there writes them (again).

        Raises:
            Sr3dError: The file is no log of this class, or cannot be written.
        """
        columns, rows = self._read()
        if columns:
            self._write(columns, [row for row in rows if float(row[0]) < step] if step else [])
            self._columns = columns

    def _read(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows; none where there is no file. A last line that a kill cut short is left out."""
        if not self.path.is_file():
            return [], []
        text = self.path.read_text(encoding="utf-8")
        rows = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
        if not rows:
            return [], []
        if rows[0][0] != "step" or any(len(row) != len(rows[0]) for row in rows):
            raise Sr3dError(self.path, "rows", f"columns {rows[0][:3]}...", "a log of sr3d.training.loggers.CSVLogger")
        return rows[0], rows[1:]

    def _write(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """The whole file, short rows filled up."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with atomic(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(columns)
            writer.writerows([*row, *[""] * (len(columns) - len(row))] for row in rows)


class WandbLogger(Logger):
    """Sends a run to wandb and never asks anything: online where an account is configured, else offline.

    An account is an API key in `WANDB_API_KEY` or in the netrc file; `WANDB_MODE` (offline, disabled) is obeyed. A run
    that was offline is sent later with `wandb sync`. Lightning's own logger starts its run before the checkpoint is
    read, and so cannot go on with the run of a killed process.

    Args:
        save_dir: Folder of the run; wandb writes to `wandb/` in it.
        project: Name of the project.
        name: Name of the run; wandb invents one if None.
        entity: User or team; the default of the account if None.
        group: Name that runs share which belong together.
        tags: Labels of the run.
        offline: Stay offline, account or not.
    """

    def __init__(
        self,
        save_dir: str,
        project: str = "sr3d",
        name: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        offline: bool = False,
    ) -> None:
        super().__init__()
        self._options: dict[str, Any] = {
            "project": project,
            "name": name,
            "entity": entity,
            "group": group,
            "tags": tags,
        }
        self._save_dir, self._offline = save_dir, offline
        self._run: Any = None
        self._id: str | None = None

    @property
    def name(self) -> str:
        """Project."""
        return str(self._options["project"])

    @property
    def version(self) -> str | None:
        """Id of the run, once it has started."""
        return self._id

    @property
    def save_dir(self) -> str:
        """Folder of the run."""
        return self._save_dir

    @property
    def run(self) -> Any:
        """The wandb run; the first use starts it. For the process of rank zero.

        Raises:
            Sr3dError: wandb does not accept the account, or cannot be reached.
        """
        if self._run is None:
            mode: Literal["online", "offline", "disabled"] = "offline" if self._offline else wandb_mode(os.environ)
            if mode != "online":
                # wandb would report its own errors over the network.
                os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
            Path(self._save_dir).mkdir(parents=True, exist_ok=True)
            self._options["resume"] = "allow" if mode == "online" else None
            try:
                self._run = wandb.init(dir=self._save_dir, id=self._id, mode=mode, **self._options)
            except wandb.Error as error:
                expected = "a valid account and a network, or WANDB_MODE=offline"
                raise Sr3dError("wandb", "account", f"{type(error).__name__}: {error}", expected) from error
            self._id = str(self._run.id)
            self._run.define_metric(_STEP)
            self._run.define_metric("*", step_metric=_STEP)
        return self._run

    def resume(self, run_id: str) -> None:
        """Go on with the run of this id; call it before anything is logged."""
        self._id = run_id

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: `RunRecord` gives the whole configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log scalars, or wandb's own pictures, histograms and tables.

        Raises:
            Sr3dError: See `run`.
        """
        self.run.log({**metrics, _STEP: step})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Finish the run: one left open would swallow the next one of this process."""
        if self._run is not None:
            self._run.finish(exit_code=0 if status == "success" else 1)
            self._run = None


def wandb_mode(environment: Mapping[str, str]) -> Literal["online", "offline", "disabled"]:
    """What wandb can do without asking.

    Args:
        environment: Variables: `WANDB_MODE`, `WANDB_API_KEY`, `WANDB_BASE_URL`, `NETRC`, `HOME`.
    """
    wanted = environment.get("WANDB_MODE")
    if wanted == "disabled":
        return "disabled"
    account = bool(environment.get("WANDB_API_KEY")) or _in_netrc(environment)
    return "online" if account and wanted != "offline" else "offline"


def _in_netrc(environment: Mapping[str, str]) -> bool:
    """Whether the netrc file has a key for wandb's server."""
    url = environment.get("WANDB_BASE_URL")
    # Newer versions have another address, and still take the key of the old one.
    servers = [url] if url else [wandb.Settings().base_url, "https://api.wandb.ai"]
    home = Path(environment.get("HOME", "~")).expanduser()
    path = Path(environment.get("NETRC") or home / ".netrc").expanduser()
    try:
        entries = [netrc.netrc(str(path)).authenticators(urlsplit(server).netloc) for server in servers]
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return False
    return any(entry is not None and entry[2] for entry in entries)


def log_step(trainer: lightning.Trainer) -> int:
    """Optimiser steps done before the present one: the step under which Lightning logs."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def log_scalars(trainer: lightning.Trainer, values: Mapping[str, float]) -> None:
    """Log numbers to every logger, under Lightning's step."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=log_step(trainer))


def log_media(trainer: lightning.Trainer, values: Mapping[str, Any]) -> None:
    """Log wandb's tables, histograms and pictures, where wandb is attached."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_metrics(values, step=log_step(trainer))


def has_wandb(trainer: lightning.Trainer) -> bool:
    """Whether pictures and tables have somewhere to go."""
    return any(isinstance(logger, WandbLogger) for logger in trainer.loggers)


def run_folder(trainer: lightning.Trainer) -> Path:
    """Folder of the first logger; `trainer.log_dir` says the same, but only when all processes ask at once."""
    folders = [logger.log_dir or logger.save_dir for logger in trainer.loggers]
    return Path(folders[0] if folders and folders[0] else trainer.default_root_dir)
