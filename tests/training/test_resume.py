"""Two processes over seven shards with workers of their own, killed in mid-epoch and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from resume_run import BATCH, EVERY, SEED
from stored import H, W, clip

from sr3d.datasets import write_shards
from sr3d.datasets.reader import BatchConfig, ClipBatches
from sr3d.datasets.shards import read_index
from sr3d.datasets.views import ViewConfig

CLIPS, EPOCHS = 42, 2
PER_EPOCH = CLIPS // 2 // BATCH


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards((clip(i) for i in range(CLIPS)), folder, shard_bytes=70_000)
    assert len(read_index(folder).shards) == 7
    return folder


def _expected(shards: Path) -> dict[tuple[int, int], tuple[str, float]]:
    """(rank, step) → names and sum of the inputs, read without Lightning, workers or interruption."""
    config = BatchConfig(
        factor=2, batch_size=BATCH, views=ViewConfig(context=1, target=1), image_size=(W, H), seed=SEED
    )
    out = {}
    for rank in range(2):
        batches = ClipBatches(shards, config, shuffle=True, rank=rank, world=2)
        for epoch in range(EPOCHS):
            batches.seek(epoch, 0)
            for i, batch in enumerate(batches):
                total = float(batch.context.images.double().sum())
                out[rank, epoch * PER_EPOCH + i] = (batch.context.name, total)
    return out


def _trace(folder: Path) -> Iterator[tuple[int, int, str, float]]:
    for rank in range(2):
        path = folder / f"trace-{rank}.txt"
        for line in path.read_text().splitlines() if path.exists() else []:
            step, _, total, name = line.split("\t")
            yield rank, int(step), name, float(total)


def _start(shards: Path, folder: Path, *options: str | int) -> subprocess.Popen[bytes]:
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(tests), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, tests / "resume_run.py", shards, folder, *map(str, options)]
    return subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "amount", "workers", "kill_at"), [("max_steps", 2 * PER_EPOCH, 3, 6), ("max_epochs", 2, 1, 15)]
)
def test_a_killed_run_goes_on_with_the_samples_it_would_have_seen(
    shards: Path, tmp_path: Path, limit: str, amount: int, workers: int, kill_at: int
) -> None:
    run = _start(shards, tmp_path, limit, amount, workers)
    deadline = time.monotonic() + 120
    while max((step for _, step, _, _ in _trace(tmp_path)), default=0) < kill_at and time.monotonic() < deadline:
        assert run.poll() is None, run.communicate()[1].decode()[-2000:]
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    before = list(_trace(tmp_path))
    reached = max(step for _, step, _, _ in before)
    assert kill_at <= reached < 2 * PER_EPOCH - 1, "killed too late"
    for path in tmp_path.glob("trace-*.txt"):
        path.unlink()
    again = _start(shards, tmp_path, limit, amount, workers)
    _, errors = again.communicate(timeout=180)
    assert again.returncode == 0, errors.decode()[-2000:]
    after = list(_trace(tmp_path))
    expected = _expected(shards)
    for rank, step, name, total in before + after:
        assert (name, total) == expected[rank, step], f"process {rank}, step {step}"
    steps = sorted(step for rank, step, _, _ in after if rank == 0)
    assert steps == list(range(steps[0], 2 * PER_EPOCH)), "every step once, none twice"
    assert 0 < steps[0] <= reached + 1 and steps[0] % EVERY == 0
    # Both processes together see no clip twice in an epoch, and all but those that do not fill a global batch.
    for epoch in range(EPOCHS):
        part = [expected[r, epoch * PER_EPOCH + i][0] for r in range(2) for i in range(PER_EPOCH)]
        names = {n for names in part for n in names.split(", ")}
        assert len(names) == len(part) * BATCH == CLIPS - CLIPS % (2 * BATCH)
