"""Every callback in real, tiny training runs."""

from __future__ import annotations

import csv
import json
import re
import runpy
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import wandb
import yaml
from PIL import Image

from sr3d.datasets.procedural import pack_procedural
from sr3d.training.callbacks import ProgressBar, ResidualHistograms, metric_table
from sr3d.training.cli import main
from sr3d.training.loggers import CSVLogger
from sr3d.training.timing import PARTS, StepTimes
from sr3d.training.worst import Scored, worst

ROOT = Path(__file__).resolve().parents[2]
STEPS, EVERY = 6, 2
KINDS = {"position", "slide", "log_scale", "angle", "logit_opacity", "color"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    pack_procedural(folder / "train", scenes=4, views=5, size=32, seed=0, progress=False)
    pack_procedural(folder / "val", scenes=4, views=5, size=32, seed=0, split="validation", progress=False)
    return folder


def config(folder: Path, shards: Path, **trainer: Any) -> Path:
    """A tiny network with features, one source of depth, and the whole dashboard."""
    checkpoint = {"dirpath": str(folder), "filename": "{step}", "save_top_k": -1, "every_n_train_steps": EVERY}
    callbacks: list[tuple[str, dict[str, Any]]] = [
        ("sr3d.training.provenance.RunRecord", {}),
        ("sr3d.training.callbacks.ProgressBar", {}),
        ("sr3d.training.callbacks.MemoryOnBar", {"every_n_steps": 1}),
        ("sr3d.training.callbacks.ImagePanels", {"clips": 3}),
        ("sr3d.training.callbacks.ResidualHistograms", {"every_n_steps": EVERY}),
        ("sr3d.training.callbacks.MetricTable", {}),
        ("sr3d.training.timing.StepTimes", {"every_n_steps": EVERY}),
        ("sr3d.training.worst.WorstScenes", {"count": 3}),
        ("lightning.pytorch.callbacks.ModelCheckpoint", checkpoint),
    ]
    loggers = [("CSVLogger", {"save_dir": str(folder)}), ("WandbLogger", {"save_dir": str(folder), "name": "test"})]
    network = {
        "factor": 4, "scaffold": {"grid": 2}, "semantics": {},
        "encoder": {"options": {"embed_dim": 24, "depth": 1, "num_heads": 2}},
        "refinement": {"heads": 2}, "decoder": {"blocks": 1, "heads": 2, "width": 16, "convolutions": 1, "fine": 8},
    }  # fmt: skip
    values = {
        "trainer": {
            "max_steps": STEPS, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1, "val_check_interval": 3,
            "check_val_every_n_epoch": None, "limit_val_batches": 1.0, "num_sanity_val_steps": 1,
            "enable_model_summary": False, "default_root_dir": str(folder),
            "logger": [{"class_path": f"sr3d.training.loggers.{k}", "init_args": v} for k, v in loggers],
            "callbacks": [{"class_path": k, "init_args": v} for k, v in callbacks], **trainer,
        },
        "model": {
            "sources": ["depth"], "warmup_steps": 1, "coarse": {"source": "depth"}, "augmentation": {"noise": 0.005},
            "loss": {"mse": 1.0, "dssim": 0.02, "context": 0.5}, "network": network,
        },
        "data": {
            "train_shards": str(shards / "train"), "val_shards": str(shards / "val"), "factor": 4,
            "views": {"target": 2}, "global_batch_size": 2,
        },
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


class Recorded:
    """Takes the place of a wandb run, and keeps what it is sent."""

    def __init__(self, **options: Any) -> None:
        self.options, self.id = options, options["id"] or "first"
        self.config: dict[str, Any] = {}
        self.logged: list[dict[str, Any]] = []
        self.finished: int | None = None
        runs.append(self)
        self.config = SimpleNamespace(update=self._update, values={})

    def _update(self, values: dict[str, Any], allow_val_change: bool) -> None:
        assert allow_val_change
        json.dumps(values, default=str)
        self.config.values |= values

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        assert step_metric in (None, "trainer/global_step")

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.finished = exit_code

    def media(self, kind: type) -> dict[str, list[tuple[int, Any]]]:
        found: dict[str, list[tuple[int, Any]]] = {}
        for row in self.logged:
            for name, value in row.items():
                if isinstance(value, kind):
                    found.setdefault(name, []).append((row["trainer/global_step"], value))
        return found


runs: list[Recorded] = []


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def column(folder: Path, name: str) -> dict[int, float]:
    return {int(r["step"]): float(r[name]) for r in rows(folder) if r.get(name)}


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorded]:
    """An unbroken run: its folder, and what wandb got."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wandb, "init", Recorded)
        main(["fit", "--config", str(config(folder, shards))])
    assert len(runs) == 1 and runs[0].finished == 0
    return folder, runs[0]


def test_the_csv_has_every_number_that_wandb_got(trained: tuple[Path, Recorded]) -> None:
    folder, run = trained
    sent = [
        (row["trainer/global_step"], name, float(value))
        for row in run.logged
        for name, value in row.items()
        if isinstance(value, int | float) and name != "trainer/global_step"
    ]
    written = [(int(r["step"]), k, float(v)) for r in rows(folder) for k, v in r.items() if v and k != "step"]
    assert sorted(map(repr, sent)) == sorted(map(repr, written)) and len(sent) > 150


def test_losses_times_memory_and_validation_are_logged(trained: tuple[Path, Recorded]) -> None:
    folder, _ = trained
    for name in ("loss", "mse", "dssim", "context", "psnr"):
        assert sorted(column(folder, f"train/{name}")) == list(range(STEPS)), name
    every = list(range(EVERY - 1, STEPS, EVERY))
    parts = [column(folder, f"time/{part}") for part in (*PARTS, "other")]
    whole = column(folder, "time/step")
    assert sorted(whole) == every and all(sorted(p) == every for p in parts)
    for step in every:
        assert min(p[step] for p in parts) >= 0
        assert sum(p[step] for p in parts) == pytest.approx(whole[step], rel=1e-6)
    speed = column(folder, "samples_per_second")
    assert all(speed[s] == pytest.approx(2 / whole[s]) for s in every)
    ram = column(folder, "memory/ram")
    assert sorted(ram) == every and all(0.1 < v < 100 for v in ram.values())
    names = {k for r in rows(folder) for k in r}
    psnr = [k for k in names if re.fullmatch(r"val/.+/x4/depth/sr3d/psnr_covered", k)]
    assert len(psnr) == 1 and sorted(column(folder, psnr[0])) == [2, 5]
    assert "ram_gib" not in names


def test_residuals_have_quantiles_and_histograms(trained: tuple[Path, Recorded]) -> None:
    folder, run = trained
    histograms = run.media(wandb.Histogram)
    assert set(histograms) == {f"residual/{k}" for k in KINDS}
    for kind in KINDS:
        assert [s for s, _ in histograms[f"residual/{kind}"]] == [1, 3, 5]
        last = [column(folder, f"residual/{kind}/q{q}")[5] for q in ("05", "25", "50", "75", "95")]
        histogram = histograms[f"residual/{kind}"][-1][1]
        assert last == sorted(last) and last[0] < last[-1]
        assert histogram.bins[0] <= last[0] and last[-1] <= histogram.bins[-1] and sum(histogram.histogram) > 1000


def test_panels_show_a_row_for_each_of_the_first_clips(trained: tuple[Path, Recorded]) -> None:
    folder, run = trained
    files = sorted(p.name for p in (folder / "panels").iterdir())
    assert files == ["step000002-depth.png", "step000005-depth.png"]
    page = np.asarray(Image.open(folder / "panels" / files[-1]))
    # Nine pictures across: features and true depth are there; three clips down.
    assert page.shape[1] > 9 * 256 and 3 * 256 < page.shape[0] < 3 * 320
    ((name, images),) = run.media(wandb.Image).items()
    assert name == "panels/depth" and [s for s, _ in images] == [2, 5]


def test_tables_hold_the_validation_and_its_worst_clips(trained: tuple[Path, Recorded]) -> None:
    folder, run = trained
    tables = run.media(wandb.Table)
    assert [s for s, _ in tables["val/table"]] == [s for s, _ in tables["val/worst"]] == [2, 5]
    table = tables["val/table"][-1][1]
    methods = dict(zip([row[3] for row in table.data], table.data))
    assert set(methods) == {"coarse", "upsampled", "scaffold", "sr3d"}
    at = table.columns.index("psnr_covered")
    gain = column(folder, "val/depth/gain")[5]
    assert methods["sr3d"][at] - methods["upsampled"][at] == pytest.approx(gain, abs=1e-4)

    found = json.loads((folder / "worst" / "step000005.json").read_text())
    gains = [clip["gain"] for clip in found]
    assert len(found) == 3 == len({clip["scene"] for clip in found}) and gains == sorted(gains)
    assert all(clip["gain"] == pytest.approx(clip["sr3d"] - clip["upsampled"]) for clip in found)
    assert column(folder, "val/worst_gain")[5] == pytest.approx(gains[0]) and gains[0] <= gain
    rows_of_table = tables["val/worst"][-1][1].data
    assert [row[0] for row in rows_of_table] == [c["scene"] for c in found]
    assert all(isinstance(row[-1], wandb.Image) for row in rows_of_table)
    assert (folder / "worst" / "step000005.png").is_file()


def test_the_record_says_what_the_run_was_made_from(trained: tuple[Path, Recorded]) -> None:
    folder, run = trained
    record = json.loads((folder / "run-step000000.json").read_text())
    assert record["config"]["model"]["network"]["decoder"]["width"] == 16
    assert record["config"]["trainer"]["max_steps"] == STEPS and record["step"] == 0
    assert record["machine"]["versions"]["torch"] == version("torch") and record["machine"]["processes"] == 1
    assert run.config.values["model"] == record["config"]["model"] and run.config.values["git"] == record["git"]
    if (ROOT / ".git").exists():
        head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
        assert re.fullmatch("[0-9a-f]{40}", record["git"]["commit"]) and head.returncode == 0


def test_a_resumed_run_goes_on_with_the_same_logs(
    trained: tuple[Path, Recorded], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after step 4 was logged, resumed from the checkpoint of step 2."""
    whole, _ = trained
    monkeypatch.setattr(wandb, "init", Recorded)
    path = config(tmp_path, shards)
    with monkeypatch.context() as patch:
        patch.setattr(CSVLogger, "log_metrics", _killed_at(4, CSVLogger.log_metrics))
        with pytest.raises(KeyError, match="killed"):
            main(["fit", "--config", str(path)])
    killed = rows(tmp_path)
    assert max(int(r["step"]) for r in killed) == 3 and column(tmp_path, "val/depth/gain")
    first = runs[-1]
    (checkpoint,) = tmp_path.glob("*step=2.ckpt")
    main(["fit", "--config", str(path), "--ckpt_path", str(checkpoint)])
    for name in ("train/loss", "train/mse", "val/depth/gain", "val/worst_gain", "residual/color/q95"):
        expected = [(r["step"], r[name]) for r in rows(whole) if r[name]]
        assert [(r["step"], r[name]) for r in rows(tmp_path) if r[name]] == expected, name
    assert [r["step"] for r in rows(tmp_path)] == sorted((r["step"] for r in rows(tmp_path)), key=int)
    assert runs[-1] is not first and runs[-1].options["id"] == first.id
    assert first.finished == 1 and runs[-1].finished == 0
    assert sorted(p.name for p in tmp_path.glob("run-*.json")) == ["run-step000000.json", "run-step000002.json"]


def _killed_at(step: int, log: Any) -> Any:
    def log_metrics(self: CSVLogger, metrics: dict[str, Any], step_now: int | None = None, **named: Any) -> None:
        if named.get("step", step_now) == step:
            raise KeyError("killed")
        log(self, metrics, named.get("step", step_now))

    return log_metrics


@pytest.mark.slow
def test_two_processes_write_once_and_compare_all_their_clips(shards: Path, tmp_path: Path) -> None:
    path = config(tmp_path, shards, devices=2, strategy="ddp", max_steps=3)
    values = yaml.safe_load(path.read_text())
    values["trainer"]["callbacks"][-2]["init_args"]["count"] = 10
    # Without a loss on them, features are parameters that DDP waits for in vain.
    del values["model"]["network"]["semantics"]
    path.write_text(yaml.safe_dump(values))
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "fit", "--config", str(path)],
        cwd=tmp_path, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "worst" / "step000002.json").read_text())
    assert len(found) == 4 == len({clip["scene"] for clip in found})
    losses = [r["step"] for r in rows(tmp_path) if r["train/loss"]]
    assert losses == ["0", "1", "2"]
    whole, speed = column(tmp_path, "time/step"), column(tmp_path, "samples_per_second")
    assert speed[1] == pytest.approx(2 / whole[1])
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1


def test_the_table_of_metrics_has_a_row_for_each_combination() -> None:
    columns, data = metric_table(
        {"val/a/b/x4/depth/sr3d/psnr": 20.0, "val/a/b/x4/depth/coarse/psnr": 18.0, "val/a/b/x4/depth/coarse/ssim": 0.5,
         "val/a/b/x8/sweep/sr3d/psnr": 15.0, "val/depth/gain": 1.0, "train/loss": 0.1}
    )  # fmt: skip
    assert columns == ["data set", "factor", "source", "method", "psnr", "ssim"]
    assert data == [
        ["a/b", 4, "depth", "coarse", 18.0, 0.5], ["a/b", 4, "depth", "sr3d", 20.0, None],
        ["a/b", 8, "sweep", "sr3d", 15.0, None],
    ]  # fmt: skip
    assert metric_table({"val/depth/gain": 1.0}) == (["data set", "factor", "source", "method"], [])


def test_the_worst_are_those_with_the_lowest_gain_once_each() -> None:
    def clip(name: str, ours: float, base: float | None = 20.0) -> tuple[Scored, str]:
        scored = Scored(scene=name, dataset="d", factor=4, source="depth", sr3d=ours, upsampled=base)
        return scored, name

    found = [clip("a", 21.0), clip("b", 19.0), clip("c", 20.5), clip("b", 19.0), clip("d", 30.0)]
    assert [name for _, name in worst(found, 3)] == ["b", "c", "a"]
    alone = [clip("a", 25.0, None), clip("b", 18.0, None)]
    assert [name for _, name in worst(alone, 3)] == ["b", "a"] and alone[0][0].gain == 25.0


def _trainer(step: int, logger: CSVLogger) -> lightning.Trainer:
    trainer = lightning.Trainer(accelerator="cpu", logger=logger, enable_checkpointing=False)
    trainer.fit_loop.epoch_loop._batches_that_stepped = step
    return trainer


@pytest.mark.parametrize("residuals", [{}, {"position": torch.full((1, 5, 3), torch.nan)}])
def test_nothing_to_show_is_nothing_logged(tmp_path: Path, residuals: dict[str, torch.Tensor]) -> None:
    logger = CSVLogger(str(tmp_path))
    record = SimpleNamespace(prediction=SimpleNamespace(residuals=residuals), seconds={}, samples=1)
    for step in (record, None):
        ResidualHistograms(1).on_train_batch_end(_trainer(0, logger), SimpleNamespace(step=step), None, None, 0)
    assert not logger.path.exists()


def test_times_leave_out_validation_and_skipped_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    times, logger = StepTimes(4), CSVLogger(str(tmp_path))
    module = SimpleNamespace(step=None, timing=False, device=torch.device("cpu"))
    times.on_train_start(_trainer(0, logger), module)
    for step in range(8):
        trainer = _trainer(step, logger)
        times.on_train_batch_start(trainer, module, None, 0)
        now[0] += 1.0
        if step != 2:
            # The third step is skipped: the record is still that of the second.
            module.step = SimpleNamespace(samples=3, seconds={"network": 0.5, "data": 0.25})
        times.on_train_batch_end(trainer, module, None, None, 0)
        if step in (1, 3):
            times.on_validation_start(trainer, module)
            now[0] += 50.0
            times.on_validation_end(trainer, module)
    assert column(tmp_path, "time/step") == {3: 1.0, 7: 1.0}
    assert column(tmp_path, "time/network") == {3: 0.375, 7: 0.5}
    assert column(tmp_path, "time/other") == {3: 1 - 0.75 * 0.75, 7: 0.25}
    assert column(tmp_path, "samples_per_second") == {3: 9 / 4, 7: 3.0}


def test_the_bar_says_how_long_the_whole_training_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    bar = ProgressBar()
    monkeypatch.setattr("lightning.pytorch.callbacks.RichProgressBar.on_train_start", lambda *_: None)
    monkeypatch.setattr(
        "lightning.pytorch.callbacks.RichProgressBar.get_metrics", lambda *_: {"v_num": "", "psnr": 20.0}
    )
    trainer = SimpleNamespace(global_step=100, estimated_stepping_batches=1100)
    bar.on_train_start(trainer, None)
    assert bar.get_metrics(trainer, None) == {"psnr": 20.0}
    now[0], trainer.global_step = 50.0, 110
    assert bar.get_metrics(trainer, None) == {"psnr": 20.0, "eta": "1:22:30"}


def test_a_page_of_curves_is_drawn_from_the_folder(trained: tuple[Path, Recorded], tmp_path: Path) -> None:
    draw = runpy.run_path(str(ROOT / "benchmarks" / "dashboard.py"))["draw"]
    draw(trained[0], tmp_path / "pages")
    names = {"dashboard-curves.png", "dashboard-residuals.png", "dashboard-panels-depth.jpg", "dashboard-worst.jpg"}
    assert {p.name for p in (tmp_path / "pages").iterdir()} == names
    page = np.asarray(Image.open(tmp_path / "pages" / "dashboard-curves.png").convert("L"))
    # Every one of the six axes has something in it besides its frame.
    cells = [c for half in np.array_split(page, 2) for c in np.array_split(half, 3, axis=1)]
    assert all((cell < 200).mean() > 0.005 for cell in cells)
