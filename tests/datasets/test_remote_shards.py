"""Training from a server that misbehaves: every clip once, retries counted, the cache bounded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lightning
import pytest
import torch
from bad_server import BadServer, Reply
from stored import clip

from sr3d import Sr3dError
from sr3d.datasets import ShardDataset, write_shards
from sr3d.datasets.batch import Batch
from sr3d.datasets.datamodule import ClipDataModule
from sr3d.datasets.index import FILE
from sr3d.datasets.reader import BatchConfig, ClipBatches, ClipLoader
from sr3d.datasets.shards import read_index
from sr3d.datasets.views import ViewConfig
from sr3d.io.remote import RemoteConfig

NAMES = sorted(f"clip {i}/a.b" for i in range(12))
VIEWS = ViewConfig(context=1, target=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("served")
    write_shards((clip(i) for i in range(12)), out, shard_bytes=20_000)
    assert len(read_index(out).shards) == 6
    return out


def _troubles(folder: Path) -> dict[str, list[Reply]]:
    files = [s.file for s in read_index(folder).shards]
    cut = Reply(cut=20_000)
    return {
        FILE: [Reply(status=503), Reply(cut=100)],
        files[0]: [cut],
        files[1]: [Reply(hang_up=True), cut, cut],
        files[2]: [Reply(cut=20_000, ranges=False, claim="20000")],  # says that it is whole
        files[3]: [Reply(body=b"x" * 40_960)],  # another file of about that size
        files[4]: [Reply(status=500)],
    }


class Seen(lightning.LightningModule):
    """Writes down what it trains on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.names = torch.nn.Parameter(torch.zeros(())), list[str]()

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.names += batch.context.name.split(", ")
        return (batch.target.images.mean() - self.weight).square()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_sees_every_clip_once(folder: Path, tmp_path: Path, workers: int) -> None:
    remote = RemoteConfig(cache=tmp_path / "cache", retries=5, backoff=0.01, timeout=5.0)
    write_shards([clip(99)], tmp_path / "val")
    with BadServer(folder, _troubles(folder)) as server:
        data = ClipDataModule(
            server.url,
            str(tmp_path / "val"),
            factor=2,
            views=VIEWS,
            global_batch_size=2,
            workers=workers,
            remote=remote,
        )
        module = Seen()
        trainer = lightning.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, limit_val_batches=0, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, data)
        assert sorted(module.names[:12]) == sorted(module.names[12:]) == NAMES
        assert module.names[:12] != module.names[12:]
        counts = data.counts()
    # The index failed twice, five files 1 + 2 + 1 + 1 + 1 times (the second cut came after the missing rest, fetched as
    # a range); each of the six was fetched once for all workers.
    assert counts["retries"] == 8 and counts["downloads"] == 6
    assert counts["bytes"] >= sum(s.bytes for s in read_index(folder).shards)
    assert server.count(FILE) >= 3


def test_a_cache_smaller_than_the_data(folder: Path, tmp_path: Path) -> None:
    largest = max(s.bytes for s in read_index(folder).shards)
    remote = RemoteConfig(cache=tmp_path / "cache", cache_gb=2.5 * largest / 1e9, backoff=0.01)
    with BadServer(folder) as server:
        config = BatchConfig(factor=2, views=VIEWS)
        loader = ClipLoader(ClipBatches(server.url, config, shuffle=True, remote=remote), 2)
        for _ in range(2):
            assert sorted(b.context.name for b in loader) == NAMES
            kept = sum(p.stat().st_size for p in (tmp_path / "cache").rglob("*.tar"))
            assert 0 < kept <= 2.5 * largest


def test_addresses_without_index(folder: Path, tmp_path: Path) -> None:
    remote = RemoteConfig(cache=tmp_path / "cache", backoff=0.01)
    with BadServer(folder) as server:
        some = ShardDataset(f"{server.url}/shard-000000-{{00..02}}.tar", remote)
        assert [c.name for c in some] == [f"clip {i}/a.b" for i in range(len(some))] and len(some) == 6
        assert next(c.name for c in ShardDataset(f"{server.url}/{FILE}", remote)) == "clip 0/a.b"


def test_a_server_that_stays_down_is_one_clear_error(folder: Path, tmp_path: Path) -> None:
    remote = RemoteConfig(cache=tmp_path / "cache", retries=2, backoff=0.01)
    file = read_index(folder).shards[2].file
    with BadServer(folder, {file: [Reply(hang_up=True)] * 99}) as server:
        batches = ClipBatches(server.url, BatchConfig(factor=2, views=VIEWS), shuffle=True, remote=remote)
        with pytest.raises(Sr3dError, match=rf"{file}.*3 tries"):
            list(ClipLoader(batches, 0))
        assert batches.counters.total()["retries"] >= 2
        with pytest.raises(Sr3dError, match=rf"{file}"):
            list(ClipLoader(ClipBatches(server.url, replace(batches.config), shuffle=True, remote=remote), 2))
