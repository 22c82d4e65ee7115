"""A local HTTP server that misbehaves as told, request by request."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from unittest import mock


@dataclass(kw_only=True)
class Reply:
    """One answer; the default is the right one.

    Args:
        status: Anything but 200 is answered without the file.
        cut: Bytes of the body after which it ends.
        stall: Do not close the connection where the body ends, but keep silent until the server stops.
        hang_up: Close the connection without any answer.
        claim: Content-Length to claim; none at all if "".
        ranges: Honour a Range request.
        body: Sent in place of the file.
        start: First byte to answer a Range request with, whatever was asked for.
        chunked: Send the body in one chunk, and no Content-Length.
        headers: Further headers.
    """

    status: int = 200
    cut: int | None = None
    stall: bool = False
    hang_up: bool = False
    claim: str | None = None
    ranges: bool = True
    body: bytes | None = None
    start: int | None = None
    chunked: bool = False
    headers: dict[str, str] = field(default_factory=dict)


class BadServer:
    """Serves files on a free port of 127.0.0.1 while the `with` block runs.

    Args:
        files: Contents by path (without the first "/"), or a folder.
        script: Replies by path to the first, second, ... request for it; the right one after the last.

    `requests` lists (path, Range header or "") in the order of arrival.
    """

    def __init__(self, files: Mapping[str, bytes] | Path, script: Mapping[str, Iterable[Reply]] | None = None) -> None:
        self.files = files
        self.script = {path: list(replies) for path, replies in (script or {}).items()}
        self.requests: list[tuple[str, str]] = []
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0][1:]
                server._answer(self, path, server._next(path, self.headers.get("Range", "")))

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._no_proxy = mock.patch.dict(os.environ, no_proxy="*")
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> BadServer:
        self._no_proxy.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        self._no_proxy.stop()

    def count(self, path: str) -> int:
        """Requests for a path so far."""
        return sum(p == path for p, _ in self.requests)

    def _next(self, path: str, asked: str) -> Reply:
        with self._lock:
            self.requests.append((path, asked))
            replies = self.script.get(path)
            return replies.pop(0) if replies else Reply()

    def _content(self, path: str) -> bytes | None:
        if isinstance(self.files, Path):
            file = self.files / path
            return file.read_bytes() if ".." not in path and file.is_file() else None
        return self.files.get(path)

    def _answer(self, handler: BaseHTTPRequestHandler, path: str, reply: Reply) -> None:
        content = reply.body if reply.body is not None else self._content(path)
        status = 404 if content is None and reply.status == 200 else reply.status
        if not reply.hang_up:
            body, headers = content or b"", dict(reply.headers)
            asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
            if status != 200:
                body = b"no"
            elif reply.ranges and (asked or reply.start is not None):
                start = int(asked[1]) if asked and reply.start is None else reply.start or 0
                status, body = 206, body[start:]
                headers.setdefault("Content-Range", f"bytes {start}-{start + len(body) - 1}/{start + len(body)}")
            if reply.chunked:
                headers["Transfer-Encoding"] = "chunked"
            elif reply.claim != "":
                headers["Content-Length"] = reply.claim or str(len(body))
            body = body[: reply.cut]
            # Clients hang up too.
            with suppress(OSError):
                self._send(handler, status, headers, body, reply)
        handler.close_connection = True

    def _send(
        self, handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes, reply: Reply
    ) -> None:
        if reply.chunked:
            handler.protocol_version = "HTTP/1.1"
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if reply.chunked:
            whole = reply.cut is None
            handler.wfile.write(b"%x\r\n%b%b" % (len(body) + (not whole), body, b"\r\n0\r\n\r\n" if whole else b""))
        else:
            handler.wfile.write(body)
        handler.wfile.flush()
        if reply.stall:
            self.stopping.wait()
