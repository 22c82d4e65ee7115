"""Bytes behind http(s), s3 and gs URLs: which URLs are taken, one try to receive them, and trying again.

http(s) goes through urllib; s3 and gs through the programs that webdataset uses for them (`aws`, `gsutil`), started
without a shell. Nothing that is received is trusted before its length and SHA-256 are those that were asked for.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import random
import re
import selectors
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

from sr3d.errors import Sr3dError

_CHUNK = 1 << 20
_LONGEST_WAIT = 60.0
_HOST = r"(?=[^/?]{1,255}(?:[/?]|\Z))\w[\w-]{0,62}(?:\.\w[\w-]{0,62})*(?::(?P<port>[0-9]{1,5}))?"
_HTTP = re.compile(rf"(?i:https?)://{_HOST}(?:/[\w.~%!*+,=:@&/-]*)?(?:\?[\w.~%!*+,=:@&/?-]*)?", re.ASCII)
_BUCKET = re.compile(r"(?:s3|gs)://[a-z0-9][a-z0-9._-]*(?:/[\w.~+,=@-]+)+", re.ASCII)
_FILE = re.compile(r"file:(?://(?:localhost)?)?(/(?!/)[^\0]+)", re.DOTALL)
# Program, arguments before and after the URL.
_PROGRAMS = {"s3": ("aws", ["s3", "cp", "--only-show-errors"], ["-"]), "gs": ("gsutil", ["-q", "cat"], [])}
# What the two programs print where a new try cannot help.
_HOPELESS = re.compile(r"\b(40[134]|NoSuch\w+|AccessDenied\w*|No URLs matched|Unable to locate credentials)\b")


def _default_cache() -> Path:
    return Path(os.environ.get("SR3D_CACHE") or "~/.cache/sr3d")


@dataclass(kw_only=True)
class RemoteConfig:
    """How remote shards are fetched and kept.

    Args:
        cache: Folder of the local copies; by default $SR3D_CACHE, else ~/.cache/sr3d. May be shared by processes.
        cache_gb: Most that the copies may take together, in GB (1e9 bytes). The least recently used go first.
        retries: Further tries after the first one has failed.
        timeout: Seconds without any byte after which a try has failed.
        backoff: Seconds before the first retry; doubles with every retry, times 0.5 to 1.5, at most 60 s.
    """

    cache: Path = field(default_factory=_default_cache)
    cache_gb: float = 50.0
    retries: int = 5
    timeout: float = 30.0
    backoff: float = 1.0

    def __post_init__(self) -> None:
        self.cache = self.cache.expanduser()
        for name, good, expected in (
            ("cache_gb", 0 < self.cache_gb < float("inf"), "a number above 0"),
            ("retries", self.retries >= 0, "0 or more"),
            ("timeout", 0 < self.timeout < float("inf"), "seconds above 0"),
            ("backoff", 0 <= self.backoff < float("inf"), "seconds, 0 or more"),
        ):
            if not good:
                raise Sr3dError("sr3d.io.remote.RemoteConfig", name, getattr(self, name), expected)


def shown(url: str) -> str:
    """The URL as errors name it: without passwords and signed queries, printable, at most 200 characters."""
    return printable(re.sub(r"//[^/]*@", "//", url.split("?")[0]))


def printable(text: str) -> str:
    """Text of unknown origin, fit for one line of a message."""
    return "".join(c if c.isprintable() else "?" for c in text)[:200]


def check_url(url: str) -> str:
    """Scheme of a URL that may be fetched: "http", "https", "s3", "gs" or "file".

    Raises:
        Sr3dError: Any other scheme (`pipe:` among them), or a character that a URL of this scheme has no need of.
    """
    scheme = url.partition(":")[0].lower()
    if scheme in ("http", "https"):
        good, expected = _HTTP.fullmatch(url), "http(s)://host/path, other characters percent-encoded, no password"
        good = good if good and int(good["port"] or 80) < 65536 else None
    elif scheme in _PROGRAMS:
        good, expected = _BUCKET.fullmatch(url), f"{scheme}://bucket/key of letters, digits and ._~+,=@-"
    elif scheme == "file":
        good, expected = _FILE.fullmatch(url), "file:///path"
    else:
        good, expected = None, "http://, https://, s3://, gs:// or file:///"
    if not good:
        raise Sr3dError(shown(url), "URL", repr(shown(url)), expected)
    return scheme


def local_path(url: str) -> Path:
    """Path that a checked file: URL names."""
    found = _FILE.fullmatch(url)
    assert found is not None
    return Path(url2pathname(found[1]))


class Failure(Exception):
    """A try that failed.

    Args:
        reason: Why, in a few words.
        final: No further try can help.
        wait: Seconds the server asks to be left alone.
    """

    def __init__(self, reason: str, *, final: bool = False, wait: float = 0.0) -> None:
        super().__init__(printable(reason))
        self.final, self.wait = final, wait


class Partial:
    """What has been received of one file: kept from try to try, so that a dropped connection can be resumed.

    Args:
        file: Open for writing, empty, unbuffered.
        reserve: Called with the length in bytes that the file is about to have; raises where that is too much.
        size: Length the file must get, if known.
        sha256: Digest it must get, if known.
    """

    def __init__(
        self, file: io.RawIOBase | io.BytesIO, reserve: Callable[[int], None], size: int | None, sha256: str | None
    ) -> None:
        self.file, self.reserve, self.size, self.sha256 = file, reserve, size, sha256
        self.etag: str | None = None
        self.restart()

    def restart(self) -> None:
        """Forget what has been received."""
        self.file.seek(0)
        self.have, self.total, self._digest = 0, self.size, hashlib.sha256()

    def announce(self, total: int) -> None:
        """The sender says how long the file is."""
        if self.size is not None and total != self.size:
            raise Failure(f"{total} bytes announced, not {self.size}")
        self.total = total
        with self._disk():
            self.reserve(total)

    def add(self, data: bytes) -> None:
        """Append received bytes."""
        if self.total is not None and self.have + len(data) > self.total:
            self.restart()
            raise Failure(f"more than {self.total} bytes")
        self._digest.update(data)
        left = memoryview(data)
        with self._disk():
            self.reserve(self.have + len(data))
            while left:
                left = left[self.file.write(left) or 0 :]
        self.have += len(data)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """An error of this machine's disk is none of the connection: no retry helps."""
        try:
            yield
        except OSError as error:
            name = getattr(self.file, "name", "memory")
            raise Sr3dError(name, "disk", error.strerror or error, "room for one more shard") from None

    def check_whole(self) -> None:
        """Raise `Failure` unless this is the whole file, byte for byte."""
        if self.total is not None and self.have != self.total:
            raise Failure(f"{self.have} of {self.total} bytes")
        if self.sha256 is not None and self._digest.hexdigest() != self.sha256:
            found = self._digest.hexdigest()
            self.restart()
            raise Failure(f"SHA-256 {found[:12]}..., not {self.sha256[:12]}...")


def download(url: str, part: Partial, config: RemoteConfig, on_retry: Callable[[str], None]) -> None:
    """Receive a whole file, in as many tries as the configuration allows.

    Args:
        url: http, https, s3 or gs.
        part: Takes the bytes.
        config: Tries and times.
        on_retry: Called with the reason before every retry.

    Raises:
        Sr3dError: See `check_url`; no try succeeded, or none can (an answer such as 404, no `aws`, a full disk).
    """
    receive = _receive_program if check_url(url) in _PROGRAMS else _receive_http
    for tries in range(1, config.retries + 2):
        try:
            receive(url, part, config.timeout)
            part.check_whole()
            return
        except Failure as error:
            failure = error
        except Sr3dError:
            raise
        except (OSError, ValueError, http.client.HTTPException, subprocess.TimeoutExpired) as error:
            failure = _failure(error, config.timeout)
        if failure.final or tries > config.retries:
            found = f"{failure} ({tries} {'try' if tries == 1 else 'tries'})"
            raise Sr3dError(shown(url), "download", found, "the whole file")
        on_retry(str(failure))
        jitter = 0.5 + random.Random(f"{url} {tries}").random()
        time.sleep(min(max(config.backoff * 2 ** (tries - 1) * jitter, failure.wait), _LONGEST_WAIT))


def _failure(error: Exception, timeout: float) -> Failure:
    """What a library's error says of a try."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError | subprocess.TimeoutExpired):
        return Failure(f"nothing received for {timeout:g} s")
    return Failure(
        f"{type(cause).__name__}: {cause}" if isinstance(cause, Exception) else str(cause),
        final=isinstance(cause, ssl.SSLCertVerificationError),
    )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http(s) only."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if newurl[:7].lower() != "http://" and newurl[:8].lower() != "https://":
            raise Failure(f"{code}: redirected to {shown(newurl)!r}", final=True)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _receive_http(url: str, part: Partial, timeout: float) -> None:
    """One request; goes on where the last one stopped, if the server can and it is certain to be the same file."""
    headers = {"User-Agent": "sr3d"}
    if part.have and (part.sha256 or part.etag):
        headers["Range"] = f"bytes={part.have}-"
        if part.etag:
            headers["If-Range"] = part.etag
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.build_opener(_Redirects).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            ranged, asked = error.code == 416 and part.have > 0, error.headers.get("Retry-After", "")
        if ranged:
            part.restart()
        final = 300 <= error.code < 500 and error.code not in (408, 429) and not ranged
        wait = float(asked) if re.fullmatch("[0-9]{1,6}", asked) else 0.0
        raise Failure(f"{error.code} {error.reason}", final=final, wait=wait) from None
    with response:
        start, total = _span(response)
        if start == 0:
            part.restart()
        elif start != part.have:
            part.restart()
            raise Failure("another part of the file than asked for")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise Failure("an encoding that was not asked for")
        etag = response.headers.get("ETag", "")
        part.etag = etag if etag.startswith('"') else None
        if total is not None:
            part.announce(total)
        while data := response.read1(_CHUNK):
            part.add(data)


def _span(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """First byte of an answer's body in the file, and the file's length if told."""
    if response.status == 200:
        return 0, response.length
    found = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)", response.headers.get("Content-Range", ""))
    if response.status != 206 or found is None:
        raise Failure(f"{response.status} {response.reason}")
    start = int(found[1])
    if found[2] != "*":
        return start, int(found[2])
    return start, None if response.length is None else start + response.length


def _receive_program(url: str, part: Partial, timeout: float) -> None:
    """One run of the scheme's own program, which writes the file to its standard output."""
    program, before, after = _PROGRAMS[url[:2]]
    if shutil.which(program) is None:
        raise Sr3dError(shown(url), "program", f"no `{program}` on the PATH", f"`{program}` for {url[:2]}:// URLs")
    part.restart()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [program, *before, url, *after],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        with process:
            try:
                while data := _read(process, timeout):
                    part.add(data)
                code = process.wait(timeout)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        if code:
            errors.seek(0)
            said = errors.read(_CHUNK).decode(errors="replace").strip() or "no message"
            last = said.splitlines()[-1]
            raise Failure(f"`{program}` exited with {code}: {last}", final=_HOPELESS.search(said) is not None)


def _read(process: subprocess.Popen[bytes], timeout: float) -> bytes:
    """Next bytes a program writes; none at its end."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(timeout):
            raise TimeoutError
    return os.read(process.stdout.fileno(), _CHUNK)
