"""A file on the web: only the parts that are asked for, by HTTP Range, or all of it where the server gives no parts.

Nothing but http and https, also after a redirect. What has been fetched lies in a temporary file, so that nothing is
fetched twice and memory does not hold it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from ..errors import SourceError
from ..threads.stop import Stop
from .connection import Connection, in_our_words
from .limits import Limits
from .names import without_secrets
from .store import Store

BLOCK = 1 << 16
"""What has been fetched is remembered in blocks of this many bytes."""
LEAST_BYTES, MOST_BYTES = 4 * BLOCK, 128 * BLOCK
"""Asked for at a time: the least after a jump, twice as much each time the file is read on."""
RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


def fetch(url: str, limits: Limits, stop: Stop) -> WebFile | Store:
    """The file at `url`: its parts on demand, or if the server gives only the whole, that.

    Raises SourceError, or LimitError.
    """
    name = without_secrets(url)
    with in_our_words(name), Connection(stop) as connection:
        for headers in ({"Range": f"bytes=0-{LEAST_BYTES - 1}"}, {}):  # a part whose whole is not stated is no use
            with connection.get(url, headers) as answer:
                total = _total(answer, 0)
                if total is not None:
                    file = WebFile((str(answer.url), url), name, total, _validator(answer), limits)
                    file.take(answer, 0, min(total, LEAST_BYTES))
                    return file
                if answer.status_code == 200:
                    return _whole(answer, name, limits)
        raise SourceError(
            f"{name}: the download failed (the server answered {answer.status_code} {answer.reason_phrase}); "
            "check the address and whether it needs a login, or pass a local file."
        )


def _whole(answer: httpx.Response, name: str, limits: Limits) -> Store:
    """The body; httpx checks that it is as long as the server said."""
    stated = answer.headers.get("Content-Length", "")
    limits.check_download(name, int(stated) if stated.isdecimal() else 0)
    store = Store()
    for part in answer.iter_raw(BLOCK):
        limits.check_download(name, store.size + len(part))
        store.write(part)
    return store


class WebFile:
    """A file of which the server gives parts; any number of threads may read it."""

    def __init__(self, addresses: tuple[str, str], name: str, size: int, validator: str | None, limits: Limits) -> None:
        """
        Args:
            addresses: where redirects led, and where they started: the former may expire.
            validator: what the server calls this version of the file, if it says so.
        """
        self.addresses, self.name, self.size, self.validator = addresses, name, size, validator
        self.fetched = 0
        """Bytes, so far."""
        self.store = Store()
        self._limits = limits
        self._there = bytearray(-(-size // BLOCK))

    @contextmanager
    def reader(self, stop: Stop) -> Iterator[WebReader]:
        """What one thread reads with."""
        with Connection(stop) as connection:
            yield WebReader(self, connection)

    def missing(self, at: int, count: int) -> int | None:
        """Where the first block of [at, at + count) starts that has not been fetched yet; None if all are there."""
        block = self._there.find(0, at // BLOCK, -(-(at + count) // BLOCK))
        return None if block < 0 else block * BLOCK

    def take(self, answer: httpx.Response, begin: int, end: int) -> None:
        """Keep what `answer` brings of the bytes [begin, end); `begin` is the start of a block."""
        place = begin
        for part in answer.iter_raw(BLOCK):
            part = part[: end - place]
            self.fetched += len(part)
            self._limits.check_download(self.name, self.fetched)
            self.store.write(part, place)
            done, place = place // BLOCK, place + len(part)
            whole = len(self._there) if place == self.size else place // BLOCK
            self._there[done:whole] = b"\1" * (whole - done)
        if place < end and place // BLOCK == begin // BLOCK:  # a server may give less than it is asked for
            raise httpx.RemoteProtocolError(f"{place - begin:,} of {end - begin:,} bytes came")


class WebReader:
    """Reads a WebFile, more at a time the longer it reads on; belongs to one thread."""

    def __init__(self, file: WebFile, connection: Connection) -> None:
        self.size = file.size
        self._file, self._connection = file, connection
        self._next, self._amount = -1, LEAST_BYTES

    def read(self, at: int, count: int) -> bytes:
        """`count` bytes at a place. Raises SourceError if they cannot be had."""
        with in_our_words(self._file.name):
            while (begin := self._file.missing(at, count)) is not None:
                self._amount = min(self._amount * 2, MOST_BYTES) if begin == self._next else LEAST_BYTES
                end = min(-(-max(begin + self._amount, at + count) // BLOCK) * BLOCK, self.size)
                first, second = self._file.addresses
                if not self._fetched(first, begin, end):  # the connection or the address may be out of date
                    self._fetched(second, self._file.missing(begin, end - begin) or begin, end, last=True)
                self._next = end
        return self._file.store.read(at, count)

    def _fetched(self, address: str, begin: int, end: int, *, last: bool = False) -> bool:
        """Whether the bytes [begin, end) have come; with `last` that they have not is an error."""
        headers = {"Range": f"bytes={begin}-{end - 1}"}
        if self._file.validator is not None:
            headers["If-Range"] = self._file.validator
        try:
            with self._connection.get(address, headers) as answer:
                if _total(answer, begin) == self.size:
                    self._file.take(answer, begin, end)
                    return True
        except httpx.TransportError:
            if last:
                raise
            return False
        if last:
            raise SourceError(
                f"{self._file.name}: bytes {begin:,} to {end:,} of {self.size:,} were asked for, the server answered "
                f"{answer.status_code} {answer.reason_phrase}: the file has changed while it was read, or the address "
                "has expired. Read it again."
            )
        return False


def _total(answer: httpx.Response, begin: int) -> int | None:
    """Bytes of the whole file, if the answer is a part of it that starts at `begin`."""
    stated = RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if answer.status_code != 206 or stated is None or int(stated[1]) != begin:
        return None
    return int(stated[3])


def _validator(answer: httpx.Response) -> str | None:
    tag: str | None = answer.headers.get("ETag")
    if tag is not None and not tag.startswith("W/"):
        return tag
    modified: str | None = answer.headers.get("Last-Modified")
    return modified
