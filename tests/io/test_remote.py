from __future__ import annotations

import errno
import hashlib
import mmap
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from bad_server import BadServer, Reply
from torch.utils.data import DataLoader, Dataset

from sr3d import Sr3dError
from sr3d.io import transfer
from sr3d.io.cache import lock
from sr3d.io.remote import Counters, RemoteConfig, expand, fetch, fetch_open, is_remote, join, read_bytes

BODY = random.Random(0).randbytes(300_000)
SHA = hashlib.sha256(BODY).hexdigest()
PATH = "data/shard-000000.tar"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RemoteConfig:
    monkeypatch.setenv("no_proxy", "*")
    return RemoteConfig(cache=tmp_path / "cache", retries=3, timeout=20.0, backoff=0.0)


def left(config: RemoteConfig) -> list[str]:
    """What lies in the cache, besides locks."""
    return sorted(p.name for p in (config.cache / "shards").glob("*") if p.suffix != ".lock")


# --- One server, one file -------------------------------------------------------------------------------------------


def test_downloaded_once(config: RemoteConfig) -> None:
    counters, reasons = Counters(), list[str]()
    with BadServer({PATH: BODY}) as server:
        for _ in range(3):
            path = fetch(f"{server.url}/{PATH}", config, size=len(BODY), sha256=SHA, counters=counters)
        # The same shard behind a signed URL.
        again = fetch(f"{server.url}/{PATH}?sig=1&e=2", config, sha256=SHA, on_retry=reasons.append)
    assert path.read_bytes() == BODY and path == again and server.requests == [(PATH, "")] and reasons == []
    assert left(config) == [path.name] and path.name.endswith("-shard-000000.tar")
    assert counters.total() == {"retries": 0, "downloads": 1, "bytes": len(BODY)}


RESUMED, RESTARTED = [(PATH, ""), (PATH, "bytes=100000-")], [(PATH, "")] * 2
BAD = {
    "dropped": ([Reply(cut=100_000)], RESUMED),
    "dropped before the body": ([Reply(cut=0)], RESTARTED),
    "dropped before the answer": ([Reply(hang_up=True)], RESTARTED),
    "dropped twice": ([Reply(cut=100_000), Reply(cut=50_000)], [*RESUMED, (PATH, "bytes=150000-")]),
    "ranges are ignored": ([Reply(cut=100_000), Reply(ranges=False)], RESUMED),
    "another range": ([Reply(cut=100_000), Reply(start=5)], [*RESUMED, (PATH, "")]),
    "range that is no number": (
        [Reply(cut=100_000), Reply(headers={"Content-Range": "bytes x-y/z"})],
        [*RESUMED, (PATH, "bytes=100000-")],
    ),
    "range of a longer file": (
        [Reply(cut=100_000), Reply(headers={"Content-Range": "bytes 100000-299999/300001"})],
        [*RESUMED, (PATH, "bytes=100000-")],
    ),
    "range refused": ([Reply(cut=100_000), Reply(status=416)], [*RESUMED, (PATH, "")]),
    "no length, cut": ([Reply(claim="", cut=100_000)], RESUMED),
    "length too long": ([Reply(claim="300001")], RESTARTED),
    "length too short": ([Reply(claim="299999")], RESTARTED),
    "length of 10^18": ([Reply(claim=str(10**18))], RESTARTED),
    "no number as length": ([Reply(claim="many", cut=100_000)], RESUMED),
    "too much, no length": ([Reply(claim="", body=BODY + b"x")], RESTARTED),
    "chunk cut": ([Reply(chunked=True, cut=100_000)], RESUMED),
    "chunked": ([Reply(chunked=True)], [(PATH, "")]),
    "other bytes": ([Reply(body=BODY[:-1] + b"x")], RESTARTED),
    "other bytes before a drop": (
        [Reply(body=b"x" * len(BODY), cut=100_000), Reply()],
        [*RESUMED, (PATH, "")],
    ),
    "a login page": ([Reply(body=b"<html>")], RESTARTED),
    "compressed": ([Reply(headers={"Content-Encoding": "gzip"})], RESTARTED),
    "204": ([Reply(status=204)], RESTARTED),
    "408": ([Reply(status=408)], RESTARTED),
    "429": ([Reply(status=429)], RESTARTED),
    "503, 500, 502": ([Reply(status=503), Reply(status=500), Reply(status=502)], [(PATH, "")] * 4),
}


@pytest.mark.parametrize("case", BAD)
def test_misbehaviour(config: RemoteConfig, case: str) -> None:
    replies, requests = BAD[case]
    counters, reasons = Counters(), list[str]()
    with BadServer({PATH: BODY}, {PATH: replies}) as server:
        url = f"{server.url}/{PATH}"
        path = fetch(url, config, size=len(BODY), sha256=SHA, on_retry=reasons.append, counters=counters)
    assert path.read_bytes() == BODY and left(config) == [path.name]
    assert server.requests == requests and len(reasons) == len(requests) - 1
    assert counters.total() == {"retries": len(reasons), "downloads": 1, "bytes": len(BODY)}


@pytest.mark.parametrize("reply", [Reply(stall=True, cut=100_000), Reply(stall=True, cut=0)])
def test_silent_server(config: RemoteConfig, reply: Reply) -> None:
    reasons: list[str] = []
    with BadServer({PATH: BODY}, {PATH: [reply]}) as server:
        quick = replace(config, timeout=0.5)
        path = fetch(f"{server.url}/{PATH}", quick, size=len(BODY), sha256=SHA, on_retry=reasons.append)
        # What came before the silence is kept.
        assert server.requests[1] == (PATH, "bytes=100000-" if reply.cut else "")
    assert path.read_bytes() == BODY and reasons[0] == "nothing received for 0.5 s"


@pytest.mark.parametrize(
    ("replies", "ranges"),
    [
        ([Reply(cut=100_000)], ["", ""]),
        ([Reply(cut=100_000, headers={"ETag": 'W/"1"'})], ["", ""]),
        ([Reply(cut=100_000, headers={"ETag": '"1"'})], ["", "bytes=100000-"]),
    ],
)
def test_resumed_only_where_it_is_the_same_file(config: RemoteConfig, replies: list[Reply], ranges: list[str]) -> None:
    with BadServer({PATH: BODY}, {PATH: replies}) as server:
        assert fetch(f"{server.url}/{PATH}", config).read_bytes() == BODY
    assert [r for _, r in server.requests] == ranges


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_refused_at_once(config: RemoteConfig, status: int) -> None:
    with BadServer({PATH: BODY}, {PATH: [Reply(status=status)]}) as server:
        url = f"{server.url}/{PATH}"
        with pytest.raises(Sr3dError, match=rf"{url}: download: found {status} .* \(1 try\); expected the whole file"):
            fetch(f"{url}?secret", config, size=len(BODY), sha256=SHA)
    assert server.count(PATH) == 1 and list((config.cache / "shards").iterdir()) == []


@pytest.mark.parametrize("reply", [Reply(status=503), Reply(cut=1000), Reply(hang_up=True), Reply(body=b"x" * 300_000)])
def test_given_up(config: RemoteConfig, reply: Reply) -> None:
    reasons: list[str] = []
    with BadServer({PATH: BODY}, {PATH: [replace(reply, ranges=False)] * 4}) as server:
        url = f"{server.url}/{PATH}"
        with pytest.raises(Sr3dError, match=rf"{url}: download: found .*\(4 tries\); expected") as caught:
            fetch(url, config, size=len(BODY), sha256=SHA, on_retry=reasons.append)
        assert server.count(PATH) == 4 and len(reasons) == 3 and reasons[-1] in str(caught.value)
        assert list((config.cache / "shards").iterdir()) == []
        assert fetch(url, config, size=len(BODY), sha256=SHA).read_bytes() == BODY


def test_nobody_answers(config: RemoteConfig) -> None:
    with BadServer({}) as server:
        url = server.url
    with pytest.raises(Sr3dError, match=r"ConnectionRefusedError.*\(4 tries\)"):
        fetch(f"{url}/{PATH}", config)


@pytest.mark.parametrize(
    ("target", "error"),
    [("/other", None), ("ftp://127.0.0.1/x", "ftp://"), ("file:///etc/passwd", "file:"), ("http://[bad", "ValueError")],
)
def test_redirects(config: RemoteConfig, target: str, error: str | None) -> None:
    moved = [Reply(status=302, headers={"Location": target})] * 4
    with BadServer({"other": BODY}, {PATH: moved}) as server:
        if error is None:
            assert fetch(f"{server.url}/{PATH}", config, sha256=SHA).read_bytes() == BODY
            assert server.requests == [(PATH, ""), ("other", "")]
        else:
            with pytest.raises(Sr3dError, match=error):
                fetch(f"{server.url}/{PATH}", config, sha256=SHA)


def test_waits(config: RemoteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(transfer.time, "sleep", waits.append)
    script = [Reply(status=503), Reply(status=503, headers={"Retry-After": "7"}), Reply(status=503)]
    with BadServer({PATH: BODY}, {PATH: [*script, Reply(), *script]}) as server:
        for _ in range(2):
            assert read_bytes(f"{server.url}/{PATH}", replace(config, backoff=0.5), 300_000) == BODY
    assert waits[:3] == waits[3:] and waits[1] == 7.0
    assert 0.25 <= waits[0] <= 0.75 and 1.0 <= waits[2] <= 3.0


def test_read_bytes(config: RemoteConfig) -> None:
    counters = Counters()
    with BadServer({PATH: BODY}, {PATH: [Reply(cut=7), Reply(status=503)]}) as server:
        url = f"{server.url}/{PATH}"
        assert read_bytes(url, config, 300_000, counters=counters) == BODY and server.count(PATH) == 3
        assert read_bytes(url, config, 300_000) == BODY and server.count(PATH) == 4
        for reply in (Reply(), Reply(claim=""), Reply(chunked=True)):
            server.script[PATH] = [reply]
            with pytest.raises(Sr3dError, match="length: found 300000 bytes or more; expected at most 299999"):
                read_bytes(url, config, 299_999)
    assert counters.total() == {"retries": 2, "downloads": 0, "bytes": 0} and not config.cache.exists()


# --- The cache ------------------------------------------------------------------------------------------------------


def numbered(count: int, length: int = 1000) -> dict[str, bytes]:
    return {f"{i}.tar": bytes([i]) * length for i in range(count)}


def test_least_recently_used_go_first(config: RemoteConfig) -> None:
    config = replace(config, cache_gb=3.5e-6)
    shards = config.cache / "shards"
    shards.mkdir(parents=True)
    (shards / "notes.txt").write_bytes(b"x" * 5000)
    sizes: list[int] = []
    with BadServer(numbered(6)) as server:

        def get(i: int) -> Path:
            path = fetch(f"{server.url}/{i}.tar", config, size=1000)
            os.utime(path, ns=(0, len(sizes) * 10**9))
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


# --- Many processes -------------------------------------------------------------------------------------------------


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
            # Under the lock that those who make room hold. A file that is just renamed may be seen twice.
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


# --- URLs -----------------------------------------------------------------------------------------------------------

HOSTILE = [
    "pipe:touch {}",
    "PIPE:touch {}",
    "s3://bucket/$(touch {})",
    "s3://bucket/`touch {}`",
    "s3://bucket/a;touch {}",
    "s3://bucket/a' ; touch {} ; '",
    's3://bucket/a" ; touch {} ; "',
    "s3://bucket/a\ntouch {}",
    "s3://bucket/a\n",
    "s3://bucket/a|touch${{IFS}}{}",
    "s3://--endpoint-url=http:{}",
    "s3://bucket",
    "S3://bucket/a",
    "gs://bucket/a*",
    "gs://bucket/$(touch {})",
    "gs://-h/a b",
    "http://host/$(touch {})",
    "http://host/a'b",
    "http://host/a;b",
    "http://host/a b",
    "http://host/a\r\nX: y",
    "http://host\t/a",
    "http://user:word@host/a",
    "http://host:99999/a",
    "http://ho..st/a",
    "http:///a",
    "http:a",
    "ftp://host/a",
    "hf://datasets/a/b",
    "htgs://bucket/a",
    "javascript:touch {}",
    "file://host/a",
    "file:relative",
    "/etc/passwd",
    "-",
    "",
]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes `aws` and `gsutil` that first log how they were called; gives the log."""
    folder, log = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def write(script: str) -> Path:
        for name in ("aws", "gsutil"):
            (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> "{log}"\n{script}\n')
            (folder / name).chmod(0o755)
        return log

    return write


@pytest.mark.parametrize("url", HOSTILE)
def test_hostile_urls(
    config: RemoteConfig, tmp_path: Path, url: str, programs: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    marker, log = tmp_path / "marker", programs("echo x")
    for starter in (subprocess, os):
        monkeypatch.setattr(starter, "Popen" if starter is subprocess else "system", None)
    for call in (lambda u: fetch(u, config), lambda u: read_bytes(u, config, 10)):
        with pytest.raises(Sr3dError) as caught:
            call(url.format(marker))
        assert caught.value.field == "URL" and "\n" not in str(caught.value) and "word" not in caught.value.source
    assert not marker.exists() and not log.exists() and not config.cache.exists()


@pytest.mark.parametrize("url", ["s3://bucket/a/b=c/shard-0.tar", "gs://bucket/shard-0.tar"])
def test_bucket(config: RemoteConfig, tmp_path: Path, url: str, programs: Callable[[str], Path]) -> None:
    content = tmp_path / "content"
    content.write_bytes(BODY)
    # The first call ends early, the second one fails after all was sent, the third one is right.
    log = programs(
        f'calls=$(wc -l < "{tmp_path}/calls")\n'
        f'[ $calls = 1 ] && head -c 1000 "{content}" && exit 0\n'
        f'cat "{content}"\n'
        f"[ $calls = 2 ] && echo broken pipe >&2 && exit 1\nexit 0"
    )
    counters, reasons = Counters(), list[str]()
    path = fetch(url, config, size=len(BODY), sha256=SHA, on_retry=reasons.append, counters=counters)
    program = "aws" if url.startswith("s3") else "gsutil"
    assert path.read_bytes() == BODY and left(config) == [path.name]
    assert reasons == ["1000 of 300000 bytes", f"`{program}` exited with 1: broken pipe"]
    assert counters.total() == {"retries": 2, "downloads": 1, "bytes": len(BODY)}
    whole = f"aws s3 cp --only-show-errors {url} -" if program == "aws" else f"gsutil -q cat {url}"
    assert log.read_text().splitlines() == [whole] * 3
    assert read_bytes(url, config, 300_000) == BODY


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("echo 'fatal error: An error occurred (404): Key does not exist' >&2; exit 1", r"404.*\(1 try\)"),
        ("echo 'Unable to locate credentials' >&2; exit 253", r"exited with 253: Unable to.*\(1 try\)"),
        ("exit 1", r"exited with 1: no message \(2 tries\)"),
        ("kill -9 $$", r"exited with -9: no message \(2 tries\)"),
        ("echo x; exec sleep 60", r"nothing received for 0.2 s \(2 tries\)"),
        ("exec >&-; exec sleep 60", r"nothing received for 0.2 s \(2 tries\)"),
        ("yes", "cache_gb: found 1e-05 GB"),
    ],
)
def test_bucket_errors(config: RemoteConfig, script: str, error: str, programs: Callable[[str], Path]) -> None:
    programs(script)
    with pytest.raises(Sr3dError, match=f"s3://bucket/a: .*{error}"):
        fetch("s3://bucket/a", replace(config, retries=1, timeout=0.2, cache_gb=1e-5))
    assert left(config) == []


@pytest.mark.parametrize(("url", "program"), [("s3://bucket/a", "aws"), ("gs://bucket/a", "gsutil")])
def test_program_missing(config: RemoteConfig, url: str, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(config.cache))
    with pytest.raises(Sr3dError, match=f"{url}: program: found no `{program}` on the PATH"):
        fetch(url, config)


def test_file_url(config: RemoteConfig, tmp_path: Path) -> None:
    path = tmp_path / "a b.tar"
    path.write_bytes(BODY)
    url = path.as_uri()
    assert "%20" in url and fetch(url, config, size=len(BODY)) == path and read_bytes(url, config, 300_000) == BODY
    with pytest.raises(Sr3dError, match="size: found 300000 bytes; expected 5 bytes"):
        fetch(url, config, size=5)
    with pytest.raises(Sr3dError, match="length: found 300000 bytes or more"):
        read_bytes(url, config, 299_999)
    with pytest.raises(Sr3dError, match="missing: file: found No such file"):
        fetch((tmp_path / "missing").as_uri(), config)
    assert not config.cache.exists()


def test_is_remote() -> None:
    for url in ("http://h/a", "https://h/a", "s3://b/a", "gs://b/a", "file:/a", "ftp://h", "pipe:ls"):
        assert is_remote(url)
    for path in ("a/b", "/a", "a:b", "C:/a", Path("http://h/a"), "./http://h"):
        assert not is_remote(path)


def test_expand() -> None:
    assert expand("http://h/s-{000009..000011}.tar") == [f"http://h/s-{i:06d}.tar" for i in (9, 10, 11)]
    assert expand("s3://b/{a,b}.tar::/c.tar") == ["s3://b/a.tar", "s3://b/b.tar", "/c.tar"]
    for wrong in ("s3://b/{a.tar", "a::", "", "http://h/${HOME}"):
        with pytest.raises(Sr3dError):
            expand(wrong)


def test_join() -> None:
    assert join("http://h:80/a/", "s-0.tar") == join("http://h:80/a", "s-0.tar") == "http://h:80/a/s-0.tar"
    assert join("https://h", "s.tar") == "https://h/s.tar" and join("s3://b", "s.tar") == "s3://b/s.tar"
    assert join("https://h/a?sig=1/2", "s.tar") == "https://h/a/s.tar?sig=1/2"
    assert join("file:///a?", "s.tar") == "file:///a?/s.tar"
    for base, name in [
        *(
            ("http://h/a", n)
            for n in ("../s.tar", "..", "", "/s", "a/s", "http://x/s", "a%2fs", "s.tar\n", "a?b", ".s")
        ),
        *((b, "s.tar") for b in ("pipe:ls", "a/b", "http://h/a\nb", "http://[::1]/a", "s3://b/$(ls)")),
    ]:
        with pytest.raises(Sr3dError):
            join(base, name)


def test_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SR3D_CACHE", str(tmp_path / "c"))
    assert RemoteConfig().cache == tmp_path / "c"
    monkeypatch.delenv("SR3D_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RemoteConfig().cache == tmp_path / ".cache" / "sr3d"
    for wrong in ({"cache_gb": 0.0}, {"cache_gb": float("nan")}, {"retries": -1}, {"timeout": 0.0}, {"backoff": -1.0}):
        with pytest.raises(Sr3dError, match=next(iter(wrong))):
            RemoteConfig(**wrong)
    for sha256 in ("ABC", SHA.upper(), f"../{SHA[3:]}"):
        with pytest.raises(Sr3dError, match=r"sha256: .*expected 64 hexadecimal digits"):
            fetch("http://h/a", RemoteConfig(), sha256=sha256)
