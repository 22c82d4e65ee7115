from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from remote_files import BODY, SHA, left, quick_config

from sr3d import Sr3dError
from sr3d.io.remote import Counters, RemoteConfig, expand, fetch, is_remote, join, read_bytes


@pytest.fixture
def config(tmp_path: Path) -> RemoteConfig:
    return quick_config(tmp_path)


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
