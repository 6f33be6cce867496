"""Asking a server, in a way that a deadline or Ctrl-C ends at once, and that tells nobody who asked for what."""

from __future__ import annotations

import functools
import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from typing import Any

import httpx

from ..errors import SourceError
from ..threads.pool import THREADS, Cancelled
from ..threads.stop import Stop

SILENCE_SECONDS = 60.0
"""How long a server may say nothing."""
CONNECT_SECONDS = 15.0
REDIRECTS = 10


class Connection:
    """A client whose calls end when `stop` is set; belongs to one thread."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._streams: list[Any] = []
        self._client: httpx.Client | None = None

    @contextmanager
    def get(self, address: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """The answer, its body not read yet. Raises Cancelled once `stop` is set."""
        if self._stop.is_set():
            raise Cancelled
        if self._client is None:
            self._client = _client(self._stop)
        try:
            with self._stop.waking(self._hang_up):
                request = self._client.build_request("GET", address, headers=headers)
                request.extensions["trace"] = self._note
                answer = self._client.send(request, stream=True)
                try:
                    yield answer
                finally:
                    answer.close()
        except (httpx.HTTPError, httpx.StreamError):
            if self._stop.is_set():
                raise Cancelled from None
            raise

    def _note(self, event: str, info: dict[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._streams.append(info["return_value"])
            if self._stop.is_set():  # while it was being made
                self._hang_up()

    def _hang_up(self) -> None:
        for stream in list(self._streams):
            with suppress(OSError):  # closed already
                socket.socket.shutdown(stream.get_extra_info("socket"), socket.SHUT_RDWR)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: object) -> None:
        if self._client is not None:
            self._client.close()


@contextmanager
def in_our_words(name: str) -> Iterator[None]:
    """Turn what goes wrong on the way to a server, or to the disk, into a SourceError about the source `name`."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
        why = str(error) or type(error).__name__
        raise SourceError(f"{name}: the download failed ({why}); check the address, or pass a local file.") from error


def _client(stop: Stop) -> httpx.Client:
    for library in ("httpx", "httpcore.http11"):
        logging.getLogger(library).addFilter(_not_ours)
    return httpx.Client(
        headers={"User-Agent": _user_agent(), "Accept": "*/*", "Accept-Encoding": "identity"},
        follow_redirects=True,
        max_redirects=REDIRECTS,
        timeout=httpx.Timeout(SILENCE_SECONDS, connect=stop.at_most(CONNECT_SECONDS)),
        verify=_certificates(),
    )


def _not_ours(record: logging.LogRecord) -> bool:
    """The library logs whole addresses, signatures included; what other threads log is none of our business."""
    return not threading.current_thread().name.startswith(THREADS)


@functools.cache
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context()


@functools.cache
def _user_agent() -> str:
    try:
        version = metadata.version("quickvideo")
    except metadata.PackageNotFoundError:
        version = "0"
    return f"quickdecode/{version} httpx/{httpx.__version__}"
