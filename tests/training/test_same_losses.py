"""One global batch, one curve: in one process, in two, and in two halves one after the other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from training_run import EVERY, trace, write_config

from sr3d.training.cli import main

STEPS = 20
DDP = ["--trainer.strategy", "ddp"]
SHARDED = ["--trainer.strategy", "fsdp"]


def _config(folder: Path, worlds: Path) -> Path:
    """With a loss on features, whose map to embeddings is a weight that the loss looks at itself."""
    path = write_config(folder, worlds, steps=STEPS)
    table = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    save_file({"embeddings": table}, folder / "classes.safetensors")
    values = yaml.safe_load(path.read_text())
    values["model"]["teacher"] = {"kind": "labels", "table": str(folder / "classes.safetensors")}
    values["model"]["loss"]["semantic"] = 0.1
    values["model"]["network"]["semantics"] = {"width": 4, "embedding": 6}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def alone(worlds: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("alone")
    # Sums of several threads end differently from run to run, and Adam makes steps of rounding errors near 0.
    torch.set_num_threads(1)
    main(["fit", "--config", str(_config(folder, worlds))])
    return trace(folder)


def _same(alone: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    assert [line["step"] for line in other] == list(range(1, STEPS + 1))
    for one, two in zip(alone, other):
        for name, value in one["losses"].items():
            tolerance = 1e-2 if name.endswith("psnr") else 1e-4
            assert abs(two["losses"][name] - value) < tolerance, f"step {one['step']}: {name}"
        for name in ("weights", "ema"):
            assert two[name] == pytest.approx(one[name], rel=1e-5)
    assert len({line["losses"]["train/loss"] for line in alone}) == STEPS


def _train(config: Path, *options: str) -> None:
    """In two processes."""
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(tests), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, tests / "training_run.py", "fit", "--config", config, "--trainer.devices", "2", *options]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("options", [DDP, SHARDED], ids=["ddp", "sharded"])
def test_two_processes_have_the_losses_of_one(
    alone: list[dict[str, Any]], worlds: Path, tmp_path: Path, options: list[str]
) -> None:
    config = _config(tmp_path, worlds)
    _train(config, *options)
    first, second = (trace(tmp_path, rank) for rank in range(2))
    _same(alone, first)
    for one, a, b in zip(alone, first, second):
        assert one["names"] == a["names"] + b["names"], "each process takes its half of the global batch"
        assert one["sources"] == a["sources"] + b["sources"]
        assert a["losses"] == b["losses"] and a["weights"] == b["weights"]
    if options is SHARDED:
        end = torch.load(tmp_path / f"step={STEPS}.ckpt", weights_only=True)
        (tmp_path / f"step={STEPS}.ckpt").unlink()
        _train(config, *options, "--resume", "true")
        assert trace(tmp_path)[STEPS:] == first[EVERY:], "the second half again, to the last bit"
        again = torch.load(tmp_path / f"step={STEPS}.ckpt", weights_only=True)["ema_state"]
        assert all(torch.equal(v, end["ema_state"][k]) for k, v in again.items())


def test_accumulated_batches_have_the_losses_of_one(alone: list[dict[str, Any]], worlds: Path, tmp_path: Path) -> None:
    config = _config(tmp_path, worlds)
    main(["fit", "--config", str(config), "--trainer.accumulate_grad_batches", "2"])
    halves = trace(tmp_path)
    _same(alone, halves)
    assert [(a["names"], a["sources"]) for a in halves] == [(a["names"], a["sources"]) for a in alone]
