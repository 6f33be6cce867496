"""A server on this machine behind a slow link, for decode.py's files by URL.

All connections share one link of `BYTES_PER_SECOND`, and every request waits `DELAY_SECONDS` for its answer, as over
a distance. It gives parts of files (HTTP Range) and keeps connections open.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BYTES_PER_SECOND = 12.5e6
DELAY_SECONDS = 0.02
PIECE = 1 << 15


class Link:
    """What goes through, one piece after another; `sent` counts bytes."""

    def __init__(self) -> None:
        self.sent = 0
        self._lock = threading.Lock()
        self._free = 0.0

    def carry(self, size: int) -> None:
        """Return when `size` more bytes have gone through."""
        with self._lock:
            self._free = max(self._free, time.monotonic()) + size / BYTES_PER_SECOND
            arrival = self._free
            self.sent += size
        time.sleep(max(arrival - time.monotonic(), 0.0))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path, link: Link) -> None:
        self.folder, self.link = folder, link
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may hang up as they like."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        time.sleep(DELAY_SECONDS)
        path = self.server.folder / Path(self.path).name
        size = path.stat().st_size if path.is_file() else 0
        begin, end = part(self.headers.get("Range"), size)
        if begin >= end:
            self.send_response(416 if size else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - begin))
        if self.close_connection:  # FFmpeg would use it again, although it asked for its end
            self.send_header("Connection", "close")
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        self.end_headers()
        if body:
            self._send(path, begin, end)

    def _send(self, path: Path, begin: int, end: int) -> None:
        with path.open("rb") as file:
            file.seek(begin)
            while begin < end:
                piece = file.read(min(PIECE, end - begin))
                self.server.link.carry(len(piece))
                self.wfile.write(piece)
                begin += len(piece)

    def log_message(self, *_: object) -> None:
        pass


def part(wanted: str | None, size: int) -> tuple[int, int]:
    """First byte, and the one behind the last, that a Range header asks for; the whole file without one."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
    if match is None:
        return 0, size
    first, last = match.groups()
    if not first:
        return max(size - int(last or 0), 0), size
    return min(int(first), size), min(int(last) + 1, size) if last else size


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, Link]]:
    """The address of a server of the files in `folder`, and its link, while the block runs."""
    link = Link()
    with _Server(folder, link) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", link
        finally:
            server.shutdown()
            thread.join()
