"""The training benchmark, shrunk: its numbers hold together, and what was not measured says so."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sr3d.datasets.procedural import pack_procedural
from sr3d.datasets.shards import read_index
from sr3d.models.registry import create_model

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    pack_procedural(folder / "train", scenes=2, views=5, size=32, progress=False)
    pack_procedural(folder / "val", scenes=1, views=5, size=32, split="validation", progress=False)
    return folder


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("train_job")


@pytest.fixture
def bench(jobs: ModuleType) -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_train", FOLDER / "train.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_parts_fill_the_step_and_samples_follow_from_it(jobs: ModuleType, shards: Path) -> None:
    job = jobs.Job(kind="training", model="tiny", size=32, shards=str(shards), batch=4, accumulate=2, rows=3)
    found = jobs.measure_training(job)
    parts = found["parts_s"]
    assert sum(parts.values()) == pytest.approx(found["mean_step_s"], rel=0.05)
    assert 0 < parts["data"] < parts["network"] < found["mean_step_s"]
    assert found["samples_per_s"] == pytest.approx(4 / found["mean_step_s"])
    # Two multiplications and additions of 2000³ numbers in the time that was taken.
    assert found["product_flops"] * found["product_s"] == pytest.approx(1.6e10, rel=0.2)


def test_no_epoch_begins_while_the_time_is_taken(jobs: ModuleType, shards: Path, tmp_path: Path) -> None:
    job = jobs.Job(kind="training", model="tiny", size=32, shards=str(shards), batch=8, accumulate=2)
    for rows, every in ((2, 1), (13, 10)):
        path = jobs.training_config(job, tmp_path, "tiny", 32, rows, every)
        sets = json.loads(path.read_text())["data"]["train_shards"]
        assert sum(read_index(folder).clips for folder in sets) > 8 * rows * every


def test_inference_is_timed_and_beside_its_estimate(jobs: ModuleType, shards: Path) -> None:
    found = jobs.Job(kind="inference", model="tiny", size=64, shards=str(shards), rows=1).run()
    assert 0 < found["draw_s"] < found["network_s"] and found["coarse_s"] > 0
    network = create_model("tiny")
    assert found["estimate"]["parameters"] == sum(p.numel() for p in network.parameters())
    assert found["peak_bytes"] > 4 * found["estimate"]["parameters"]


def test_memory_of_a_block_is_its_own(jobs: ModuleType) -> None:
    # Small blocks, as an allocator keeps them when they are freed; every other one stays.
    held = [bytearray(50_000) for _ in range(4000)]
    del held[::2]
    peak = jobs.Peak("cpu")
    block = [bytearray(50_000) for _ in range(2000)]
    del block
    found = peak.found()
    if sys.platform != "linux":
        assert found is None
    else:
        assert 80_000_000 < found < 120_000_000  # parts of pages stay
    assert len(held) == 2000


def test_a_measurement_that_fails_says_why(jobs: ModuleType, tmp_path: Path) -> None:
    found = jobs.Job(kind="inference", model="tiny", size=32, shards=str(tmp_path / "nowhere")).fresh()
    assert found.keys() == {"failed"} and "nowhere" in found["failed"]


def test_all_tables(bench: ModuleType, jobs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fresh(job: Any) -> dict[str, Any]:
        if job.workers:
            return {"failed": "out of sockets"}
        both = {"product_s": 0.1, "product_flops": 1e11, "estimate": job.estimated()}
        if job.kind == "inference":
            return {**both, "network_s": 0.5, "coarse_s": 0.2, "draw_s": 0.1, "peak_bytes": 2_000_000_000}
        parts = {"data": 0.1, "network": 0.7, "backward": 1.2}
        times = {"step_s": 1.9, "mean_step_s": 2.0, "parts_s": parts, "samples_per_s": 0.5}
        return {**both, **times, "peak_bytes": 500_000_000}

    monkeypatch.setattr(jobs.Job, "fresh", fresh)
    needs = {"parameters": 2_000_000, "flops": 10**10, "bytes": 10**9}
    monkeypatch.setattr(jobs.Job, "estimated", lambda job: needs)
    monkeypatch.setattr(bench.torch.cuda, "is_available", lambda: False)
    report = bench.Report(tmp_path, "train")
    bench.study(report, ["tiny"], tmp_path / "shards", (32, 48), rows=1)
    written = json.loads((tmp_path / "train.json").read_text())
    kinds = [(m["job"]["kind"], "failed" in m["found"]) for m in written["measurements"]]
    assert kinds == [("training", False), ("training", True), ("training", False), ("inference", False)]

    waiting = written["Training steps that wait for data"]
    assert [row["waiting, %"] == "out of sockets" for row in waiting] == [False, True, False]
    split = written["Parts of a training step"][0]
    shares = {name: split[name] for name in ("data %", "network %", "backward %")}
    assert shares == pytest.approx({"data %": 5, "network %": 35, "backward %": 60})
    assert split["network"] == "tiny"
    steps = next(rows for title, rows in written.items() if title.startswith("Training steps (products"))[0]
    # 30 GFLOP in 2 s of 100 GFLOP/s.
    assert steps["FLOP use, %"] == pytest.approx(15) and steps["in products"] == pytest.approx(19)
    memory = next(rows for title, rows in written.items() if title.startswith("Memory"))
    assert [row["what"] for row in memory] == [
        "training, batch 1 in 1", "inference", "training, batch 8 in 1", "training, batch 8 in 8", "inference"
    ]  # fmt: skip
    assert [row["measured, GB"] == "estimate only" for row in memory] == [False, False, True, True, True]
    assert [row["estimate / measured"] for row in memory] == [2.0, 0.5, "", "", ""]

    targets = {row["what"]: row for row in written["Targets"]}
    measured = [what for what, row in targets.items() if row["met"]]
    assert len(measured) == 2 and all("waiting for data" in what for what in measured)
    for what, row in targets.items():
        assert what in measured or row["found"] == "not measured: no GPU"


def test_verdicts_of_a_gpu(bench: ModuleType, jobs: ModuleType) -> None:
    options = {"size": 256, "shards": "", "device": "cuda"}
    training = jobs.Job(kind="training", model="base", batch=8, threads=4, **options)
    estimate = {"parameters": 1, "flops": 2 * 10**12, "bytes": 1}
    found = {"mean_step_s": 0.05, "parts_s": {"data": 0.001}, "product_flops": 400e12, "estimate": estimate}
    slow = {**found, "mean_step_s": 0.1, "peak_bytes": 14_000_000_000}
    pairs = [
        (training, {**found, "peak_bytes": 13_000_000_000}),
        (dataclasses.replace(training, compiled=True), slow),
        (jobs.Job(kind="inference", model="base", **options), {"network_s": 0.08}),
    ]
    rows = {row["what"]: row for row in bench.verdicts(["base"], pairs)}
    # 3 · 2 TFLOP in 0.05 s are 120 of 400 TFLOP/s.
    use = rows["base, FLOP use in training, % of a large bf16 product"]
    assert use["found"] == pytest.approx(30) and use["met"] == "no"
    assert rows["base, inference on a GPU, s"]["met"] == "yes"
    memory = rows["base, GB of training on a GPU, batch 8 in one pass"]
    assert memory["found"] == pytest.approx(13) and memory["met"] == "no"
    assert "met" not in rows["base, GB of training on a GPU, batch 8 accumulated"]
    waiting = rows["base on cuda, % of a step waiting for data, threads 4"]
    assert waiting["found"] == pytest.approx(2) and waiting["met"] == "yes"
