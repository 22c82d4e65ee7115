from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from bad_server import BadServer, Reply
from remote_files import BODY, PATH, SHA, left, quick_config

from sr3d import Sr3dError
from sr3d.io import transfer
from sr3d.io.remote import Counters, RemoteConfig, fetch, read_bytes


@pytest.fixture
def config(tmp_path: Path) -> RemoteConfig:
    return quick_config(tmp_path)


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


ETAG = {"ETag": '"1"'}


@pytest.mark.parametrize(
    ("replies", "ranges"),
    [
        ([Reply(cut=100_000)], ["", ""]),
        ([Reply(cut=100_000, headers={"ETag": 'W/"1"'})], ["", ""]),
        ([Reply(cut=100_000, headers=ETAG)], ["", "bytes=100000-"]),
        ([Reply(cut=100_000, headers=ETAG), Reply(start=150_000, headers=ETAG)], ["", "bytes=100000-", ""]),
    ],
)
def test_resumed_only_where_it_is_the_same_file(config: RemoteConfig, replies: list[Reply], ranges: list[str]) -> None:
    with BadServer({PATH: BODY}, {PATH: replies}) as server:
        assert fetch(f"{server.url}/{PATH}", config).read_bytes() == BODY
    assert [r for _, r in server.requests] == ranges


@pytest.mark.parametrize("reply", [Reply(claim=""), Reply(chunked=True), Reply(claim="", cut=100_000)])
def test_nobody_knows_the_length(config: RemoteConfig, reply: Reply) -> None:
    with BadServer({PATH: BODY}, {PATH: [reply]}) as server:
        assert fetch(f"{server.url}/{PATH}", config, sha256=SHA).read_bytes() == BODY


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
