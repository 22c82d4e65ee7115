"""SIGKILL, SLURM's signal, and a resumed run: the curve is that of an unbroken one, to the last bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from training_run import EVERY, trace, write_config

from sr3d import SuperResolver
from sr3d.training.cli import main

STEPS, DROP = 40, 0.1


@pytest.fixture(scope="module")
def unbroken(worlds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    main(["fit", "--config", str(write_config(folder, worlds, steps=STEPS, drop=DROP))])
    return folder


def _start(config: Path, folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    tests = Path(__file__).parents[1]
    variables = {**os.environ, "PYTHONPATH": str(tests), "CUDA_VISIBLE_DEVICES": "", **environment}
    command = [sys.executable, tests / "training_run.py", "fit", "--config", config]
    with (folder / "errors.txt").open("wb") as errors:
        return subprocess.Popen(command, env=variables, stderr=errors, stdout=subprocess.DEVNULL)


def _signal_at(run: subprocess.Popen[bytes], folder: Path, step: int, signum: signal.Signals) -> None:
    deadline = time.monotonic() + 120
    while len(trace(folder)) < step:
        assert run.poll() is None and time.monotonic() < deadline, (folder / "errors.txt").read_text()[-3000:]
        time.sleep(0.02)
    run.send_signal(signum)
    run.wait(60)


def _check(unbroken: Path, folder: Path, lines: list[dict[str, Any]], first: int) -> None:
    assert [line["step"] for line in lines] == list(range(first, STEPS + 1)), "every step once"
    for one, other in zip(trace(unbroken)[first - 1 :], lines):
        assert one == other
    files = [torch.load(f / f"step={STEPS}.ckpt", weights_only=True) for f in (unbroken, folder)]
    for part in ("state_dict", "ema_state"):
        assert files[0][part].keys() == files[1][part].keys()
        assert all(torch.equal(files[0][part][k], files[1][part][k]) for k in files[0][part])
    assert any(not torch.equal(files[0]["ema_state"][k.removeprefix("network.")], v)
               for k, v in files[0]["state_dict"].items())  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_goes_on_along_the_same_curve(unbroken: Path, worlds: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, worlds, steps=STEPS, pause=0.05, drop=DROP)
    run = _start(config, tmp_path)
    _signal_at(run, tmp_path, 30, signal.SIGKILL)
    before = trace(tmp_path)
    reached = before[-1]["step"]
    assert 30 <= reached < STEPS, "killed too late"
    assert before == trace(unbroken)[:reached]
    main(["fit", "--config", str(config), "--resume", "true"])
    after = trace(tmp_path)[reached:]
    # The last checkpoint may be one that was only being written.
    assert reached - EVERY <= after[0]["step"] - 1 <= reached
    _check(unbroken, tmp_path, after, after[0]["step"])


@pytest.mark.slow
def test_a_requeued_job_goes_on_along_the_same_curve(
    unbroken: Path, worlds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, scontrol = tmp_path / "calls.txt", tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    scontrol.chmod(0o755)
    config = write_config(tmp_path, worlds, steps=STEPS, pause=0.05, drop=DROP)
    slurm = {
        "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NAME": "training", "SLURM_JOB_ID": "17",
        "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1",
    }  # fmt: skip
    run = _start(config, tmp_path, PATH=f"{scontrol.parent}:{os.environ['PATH']}", **slurm)
    _signal_at(run, tmp_path, 14, signal.SIGUSR1)
    assert run.returncode == 0, (tmp_path / "errors.txt").read_text()[-3000:]
    assert calls.read_text() == "requeue 17\n"
    before = trace(tmp_path)
    reached = before[-1]["step"]
    assert 14 <= reached < STEPS and before == trace(unbroken)[:reached]
    assert torch.load(tmp_path / "requeue.ckpt", weights_only=True)["global_step"] == reached, "not a step is lost"
    for name, value in {**slurm, "SLURM_RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(name, value)
    main(["fit", "--config", str(config)])
    _check(unbroken, tmp_path, trace(tmp_path)[reached:], reached + 1)


def test_released_weights_are_the_average(unbroken: Path) -> None:
    state = torch.load(unbroken / f"step={STEPS}.ckpt", weights_only=True)
    weights = SuperResolver.from_pretrained(unbroken / f"step={STEPS}.ckpt").state_dict()
    assert weights.keys() == state["ema_state"].keys()
    assert all(torch.equal(weights[k], v) for k, v in state["ema_state"].items())
