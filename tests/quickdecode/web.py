"""A server on this machine that behaves as it is told to."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from tests.clips import write_clip

Answer = Callable[[Any], None]


@dataclass
class Server:
    """Paths -> what to do with a request for them, and what has been asked for and sent."""

    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    sent: int = 0
    """Bytes of bodies."""
    end: threading.Event = field(default_factory=threading.Event)
    address: str = ""


class _Quiet(ThreadingHTTPServer):
    """Says nothing of clients that hang up."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving() -> Iterator[Server]:
    """A server while the block runs."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.asked.append((self.path, dict(self.headers)))
            try:
                server.answers.get(self.path, absent)(self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    Handler.server_facts = server  # type: ignore[attr-defined]
    with _Quiet(("127.0.0.1", 0), Handler) as httpd:
        server.address = f"http://127.0.0.1:{httpd.server_port}"
        thread = threading.Thread(target=httpd.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.end.set()
        httpd.shutdown()
        thread.join()


def absent(handler: Any) -> None:
    head(handler, 404, {"Content-Length": "0"})


def head(handler: Any, status: int, headers: dict[str, str]) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()


def body(handler: Any, content: bytes) -> None:
    handler.wfile.write(content)
    handler.server_facts.sent += len(content)


def whole(content: bytes, *, stated: int | None = None) -> Answer:
    """All of it, whatever part is asked for; `stated`: a length that is not true."""

    def answer(handler: Any) -> None:
        head(handler, 200, {"Content-Length": str(len(content) if stated is None else stated)})
        body(handler, content)
        handler.close_connection = True

    return answer


def parts(content: bytes, *, tag: str = '"one"', broken_after: int | None = None, most: int = 1 << 60) -> Answer:
    """The part that is asked for, or its first `most` bytes.

    The connection breaks after so many bytes of an answer, the first time.
    """
    left = [1] if broken_after is not None else []

    def answer(handler: Any) -> None:
        if "Range" not in handler.headers:
            return whole(content)(handler)
        first, last = handler.headers["Range"].removeprefix("bytes=").split("-")
        begin, end = int(first), min(int(last) + 1, len(content), int(first) + most)
        if handler.headers.get("If-Range", tag) != tag:
            return whole(content)(handler)
        where = f"bytes {begin}-{end - 1}/{len(content)}"
        head(handler, 206, {"Content-Length": str(end - begin), "Content-Range": where, "ETag": tag})
        if begin and left:
            left.pop()
            body(handler, content[begin : begin + (broken_after or 0)])
            handler.close_connection = True
        else:
            body(handler, content[begin:end])
        return None

    return answer


def redirected(target: str) -> Answer:
    return lambda handler: head(handler, 302, {"Location": target, "Content-Length": "0"})


def dripping(content: bytes, *, stated: int | None = None) -> Answer:
    """A little of it every few milliseconds, for ever."""

    def answer(handler: Any) -> None:
        head(handler, 200, {"Content-Length": str(1 << 40 if stated is None else stated)})
        while not handler.server_facts.end.wait(0.01):
            body(handler, content)

    return answer


def silent(handler: Any) -> None:
    """Says nothing until the test ends."""
    handler.server_facts.end.wait(300)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Some megabytes, sixteen key frames."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    options = {"preset": "ultrafast", "qp": "16", "threads": "1"}
    return write_clip(path, frames=160, size=(160, 256), gop=10, options=options, draw=noise).read_bytes()


def noise(number: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (height, width, 3), np.uint8)
