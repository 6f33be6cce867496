"""Telling threads to end, also those that wait for a server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class Stop(threading.Event):
    """An Event. Whoever waits where no event is seen says how to be woken when it is set."""

    def __init__(self, end: float | None = None) -> None:
        """`end`: when it will be set at the latest, on time.monotonic()'s clock; None: nobody knows."""
        super().__init__()
        self._end = end
        self._wakers: list[Callable[[], None]] = []

    def at_most(self, seconds: float) -> float:
        """`seconds`, or as long as is left."""
        return seconds if self._end is None else max(min(seconds, self._end - time.monotonic()), 0.001)

    def set(self) -> None:
        """Set it, and wake everybody."""
        super().set()
        for wake in list(self._wakers):
            with suppress(OSError):
                wake()

    @contextmanager
    def waking(self, wake: Callable[[], None]) -> Iterator[None]:
        """While the block runs, set() calls `wake`, on another thread; at once if it is set already."""
        self._wakers.append(wake)
        try:
            if self.is_set():
                wake()
            yield
        finally:
            self._wakers.remove(wake)
