"""Bytes on disk that nobody else sees, and a file object over bytes that are fetched as they are asked for."""

from __future__ import annotations

import io
import os
import tempfile
import threading
import weakref
from typing import Any, Protocol


class Store:
    """A temporary file without a name: any number of threads may read it, also those of a forked process."""

    def __init__(self) -> None:
        self._file: Any = tempfile.TemporaryFile(buffering=0, prefix="quickdecode-")  # noqa: SIM115
        self._lock = threading.Lock()
        self.size = 0
        """Where the last byte written so far ends."""
        weakref.finalize(self, self._file.close)

    def write(self, part: bytes, at: int | None = None) -> None:
        """Put `part` at a place, by default behind the last one. Raises OSError if the disk is full."""
        at = self.size if at is None else at
        view = memoryview(part)
        while view:
            done = os.pwrite(self._file.fileno(), view, at) if hasattr(os, "pwrite") else self._write(view, at)
            view, at = view[done:], at + done
        self.size = max(self.size, at)

    def read(self, at: int, count: int) -> bytes:
        """`count` bytes, fewer only at the end."""
        if hasattr(os, "pread"):  # does not move the place that a forked process shares
            return os.pread(self._file.fileno(), count, at)
        with self._lock:
            self._file.seek(at)
            part: bytes = self._file.read(count)
            return part

    def _write(self, view: memoryview, at: int) -> int:
        with self._lock:
            self._file.seek(at)
            return int(self._file.write(view))


class Readable(Protocol):
    """Bytes of which any part may be asked for."""

    @property
    def size(self) -> int:
        """How many there are."""

    def read(self, at: int, count: int) -> bytes:
        """`count` bytes at a place, fewer only at the end."""


class View(io.RawIOBase):
    """A file object over something Readable; belongs to one thread."""

    def __init__(self, content: Readable) -> None:
        super().__init__()
        self._content, self._place = content, 0
        self.fetches = not isinstance(content, Store)
        """Whether reading costs more than what is read."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._content.size}[whence]
        self._place = max(base + offset, 0)
        return self._place

    def read(self, size: int = -1) -> bytes:
        left = max(self._content.size - self._place, 0)
        count = left if size < 0 else min(size, left)
        part = self._content.read(self._place, count) if count else b""
        self._place += len(part)
        return part

    def readinto(self, buffer: Any) -> int:
        part = self.read(len(buffer))
        buffer[: len(part)] = part
        return len(part)
