"""Decoded frames on their way from the one thread that decodes them to those that write them into rows."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from threading import Event
from typing import Any

from ..threads.pool import POLL_SECONDS, Cancelled

ROOM_PER_WRITER = 2
"""Frames that may wait for each thread that writes them."""


class Handover:
    """A short queue of frames with the rows that they are to fill, from one thread to the others."""

    def __init__(self, writers: int) -> None:
        self._queue: queue.Queue[tuple[Any, list[int]] | None] = queue.Queue(writers * ROOM_PER_WRITER)

    def give(self, frame: Any, rows: list[int], stop: Event) -> None:
        """Waits until there is room. Raises Cancelled once `stop` is set."""
        self._put((frame, rows), stop)

    def end(self, stop: Event) -> None:
        """No frame will follow."""
        self._put(None, stop)

    def taken(self, stop: Event) -> Iterator[tuple[Any, list[int]]]:
        """Frames as they come, shared with whoever else takes some. Raises Cancelled once `stop` is set."""
        while not stop.is_set():
            try:
                given = self._queue.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if given is None:
                self._put(None, stop)  # for the others
                return
            yield given
        raise Cancelled

    def _put(self, given: tuple[Any, list[int]] | None, stop: Event) -> None:
        while not stop.is_set():
            try:
                return self._queue.put(given, timeout=POLL_SECONDS)
            except queue.Full:
                continue
        raise Cancelled
