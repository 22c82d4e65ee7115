from __future__ import annotations

import errno
import hashlib
import mmap
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from bad_server import BadServer, Reply
from remote_files import BODY, PATH, SHA, left, numbered, quick_config
from torch.utils.data import DataLoader, Dataset

from sr3d import Sr3dError
from sr3d.io import cache
from sr3d.io.cache import lock
from sr3d.io.remote import Counters, RemoteConfig, fetch, fetch_open


@pytest.fixture
def config(tmp_path: Path) -> RemoteConfig:
    return quick_config(tmp_path)


def test_least_recently_used_go_first(config: RemoteConfig) -> None:
    config = replace(config, cache_gb=3.5e-6)
    shards = config.cache / "shards"
    shards.mkdir(parents=True)
    (shards / "notes.txt").write_bytes(b"x" * 5000)
    sizes: list[int] = []
    with BadServer(numbered(6)) as server:

        def get(i: int) -> Path:
            for copy in shards.glob("*.tar"):
                os.utime(copy, ns=(0, copy.stat().st_mtime_ns - 10**10))
            path = fetch(f"{server.url}/{i}.tar", config, size=1000)
            sizes.append(sum(p.stat().st_size for p in shards.glob("*.tar")))
            return path

        with fetch_open(f"{server.url}/0.tar", config, size=1000) as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        gone, *_ = [get(i) for i in (0, 1, 2, 1, 3)]
        assert server.count("1.tar") == 1 and not gone.exists()
        # 0 was used longest ago; who has it mapped goes on reading.
        assert mapped[:] == bytes(1000)
        get(4)
        assert sorted(p.name[-5:] for p in shards.glob("*.tar")) == ["1.tar", "3.tar", "4.tar"]
        get(2)
        assert server.count("2.tar") == 2 and max(sizes) == 3000
    assert (shards / "notes.txt").stat().st_size == 5000
    # No locks without their copies.
    assert {p.stem for p in shards.glob("*.lock")} == {p.name for p in shards.glob("*.tar")}


@pytest.mark.parametrize("reply", [Reply(), Reply(claim="")])
@pytest.mark.parametrize("size", [1000, None])
def test_larger_than_the_cache(config: RemoteConfig, reply: Reply, size: int | None) -> None:
    config = replace(config, cache_gb=0.9e-6)
    with BadServer(numbered(1), {"0.tar": [reply]}) as server:
        with pytest.raises(Sr3dError, match=r"0\.tar: cache_gb: found 9e-07 GB; expected at least 1e-06 GB"):
            fetch(f"{server.url}/0.tar", config, size=size)
        assert server.count("0.tar") == (size is None)
    assert left(config) == []


def test_damaged_copy_is_downloaded_again(config: RemoteConfig) -> None:
    with BadServer({PATH: BODY}) as server:
        url = f"{server.url}/{PATH}"
        path = fetch(url, config, size=len(BODY), sha256=SHA)
        os.truncate(path, 1000)
        assert fetch(url, config, size=len(BODY), sha256=SHA).read_bytes() == BODY and server.count(PATH) == 2
        # An index with another digest: the shard was written anew.
        server.files = {PATH: BODY[::-1]}
        other = hashlib.sha256(BODY[::-1]).hexdigest()
        assert fetch(url, config, size=len(BODY), sha256=other).read_bytes() == BODY[::-1]
        assert server.count(PATH) == 3


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_disk_full(config: RemoteConfig, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with BadServer({PATH: BODY}) as server:
        with pytest.raises(Sr3dError, match=f"shards: cache: found {os.strerror(code)} while fetching {server.url}"):
            fetch(f"{server.url}/{PATH}", config)
        assert server.count(PATH) == 1
    assert left(config) == []


def test_disk_full_while_writing(config: RemoteConfig) -> None:
    """A limit on the length of files stands in for a disk that is full; the process is one of its own."""

    def child(url: str) -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            fetch(url, config)
        except Sr3dError as error:
            os._exit(0 if error.field == "disk" and ".part" in error.source and "too large" in error.found else 2)

    with BadServer({PATH: BODY}, {PATH: [Reply(claim="")]}) as server:
        assert forked([lambda: child(f"{server.url}/{PATH}")]) == [0]
        assert server.count(PATH) == 1
    assert left(config) == []


def test_folder_that_cannot_be_made(config: RemoteConfig) -> None:
    config.cache.write_bytes(b"")
    with pytest.raises(Sr3dError, match="cache: found Not a directory while fetching"):
        fetch("http://127.0.0.1:1/x", config)


def test_without_file_locks(config: RemoteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with BadServer(numbered(3)) as server, pytest.warns(UserWarning, match="no file locks"):
        for i in range(3):
            path = fetch(f"{server.url}/{i}.tar", replace(config, cache_gb=2e-6), size=1000)
            assert path.read_bytes() == bytes([i]) * 1000
    assert len(left(config)) == 2


def length(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def forked(calls: list[Callable[[], object]]) -> list[int | None]:
    """Exit codes of processes that make one call each."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=call) for call in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def test_processes_download_once(config: RemoteConfig) -> None:
    counters = Counters()

    def child() -> None:
        for _ in range(3):
            with fetch_open(f"{server.url}/{PATH}", config, size=len(BODY), sha256=SHA, counters=counters) as file:
                assert file.read() == BODY

    with BadServer({PATH: BODY}, {PATH: [Reply(cut=100_000), Reply(status=503)]}) as server:
        assert forked([child] * 4) == [0] * 4
        assert server.count(PATH) == 3
    assert counters.total() == {"retries": 2, "downloads": 1, "bytes": len(BODY)}


def test_processes_in_a_cache_that_is_too_small(config: RemoteConfig) -> None:
    """Everyone gets every file, and the folder never holds more than it may."""
    config = replace(config, cache_gb=2.5e-6)
    shards = config.cache / "shards"
    worst, done = 0, threading.Event()

    def child(seed: int) -> None:
        order = list(range(6))
        random.Random(seed).shuffle(order)
        for i in order * 2:
            with fetch_open(f"{server.url}/{i}.tar", config, size=1000) as file:
                assert file.read() == bytes([i]) * 1000

    def watch() -> None:
        nonlocal worst
        while not done.is_set():
            # Under the lock that those hold who make room or rename.
            if shards.is_dir():
                with lock(shards / "cache"):
                    files = [(p.name.lstrip(".")[:69], length(p)) for p in list(shards.iterdir())]
                worst = max(worst, 1000 * len({name for name, size in files if size}))
            time.sleep(0.005)

    with BadServer(numbered(6)) as server:
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            assert forked([partial(child, seed) for seed in range(4)]) == [0] * 4
        finally:
            done.set()
            watcher.join()
    assert 1000 <= worst <= 2000 and 1 <= len(left(config)) <= 2


def test_lock_is_not_left_to_a_forked_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may fork at any time, also between taking a lock and seeing that its file was removed."""
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))

    def same(descriptor: int, name: Path) -> bool:
        if process.pid is None:
            process.start()
            return False
        return True

    monkeypatch.setattr(cache, "_same", same)
    try:
        with lock(tmp_path / "x", wait=False) as free:
            assert free
        with lock(tmp_path / "x", wait=False) as free:
            assert free
    finally:
        process.kill()
        process.join()


def test_room_of_a_running_download_is_waited_for(config: RemoteConfig) -> None:
    config = replace(config, cache_gb=1.5e-6)
    other = config.cache / "shards" / f"{'0' * 64}-other.tar"
    other.parent.mkdir(parents=True)
    running = other.with_name(f".{other.name}.{'0' * 32}.part")
    got: list[Path] = []
    with BadServer(numbered(1)) as server:
        thread = threading.Thread(target=lambda: got.append(fetch(f"{server.url}/0.tar", config, size=1000)))
        with lock(other):
            running.write_bytes(bytes(1000))
            thread.start()
            thread.join(0.3)
            assert thread.is_alive() and got == [] and running.exists() and server.requests == []
        # The other process was killed: its lock is free, its file stays.
        thread.join(20)
    assert got[0].read_bytes() == bytes(1000) and not running.exists() and left(config) == [got[0].name]


@pytest.mark.parametrize("size", [len(BODY), None])
def test_killed_download(config: RemoteConfig, size: int | None) -> None:
    context = multiprocessing.get_context("fork")
    with BadServer({PATH: BODY}, {PATH: [Reply(stall=True, cut=100_000)]}) as server:
        url = f"{server.url}/{PATH}"
        process = context.Process(target=lambda: fetch(url, config, size=size, sha256=SHA))
        process.start()
        until = time.monotonic() + 20
        while not any(p.stat().st_blocks for p in (config.cache / "shards").glob(".*.part")):
            assert time.monotonic() < until
            time.sleep(0.01)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        assert [name[0] for name in left(config)] == ["."]
        path = fetch(url, replace(config, cache_gb=len(BODY) / 1e9), size=size, sha256=SHA)
        assert path.read_bytes() == BODY and left(config) == [path.name] and server.count(PATH) == 2


class Fetching(Dataset[int]):
    """Sample i is the length of the i-th file."""

    def __init__(self, url: str, config: RemoteConfig) -> None:
        self.url, self.config, self.counters = url, config, Counters(workers=2)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> int:
        return len(fetch(f"{self.url}/{i}.tar", self.config, counters=self.counters).read_bytes())


@pytest.mark.parametrize("start", [None, "fork", "spawn"])
def test_counters_across_workers(config: RemoteConfig, start: str | None) -> None:
    script = {f"{i}.tar": [Reply(status=503)] * (i % 3) for i in range(4)}
    with BadServer(numbered(4), script) as server:
        dataset = Fetching(server.url, config)
        workers = {None: 0, "fork": 2, "spawn": 1}[start]
        loader = DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context=start)
        assert list(loader) == [1000] * 4
    assert dataset.counters.total() == {"retries": 3, "downloads": 4, "bytes": 4000}
    assert (dataset.counters.counts.sum(1) > 0).tolist() == [start is None, start is not None, start == "fork"]


def test_more_workers_than_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    class Info:
        id = 2

    monkeypatch.setattr("sr3d.io.remote.get_worker_info", lambda: Info())
    Counters(workers=3).add(retries=1)
    with pytest.raises(Sr3dError, match="worker: found 2; expected below 2"):
        Counters(workers=2).add(retries=1)
