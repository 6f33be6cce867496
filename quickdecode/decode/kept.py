"""Decoders that stay open between reads, so that a small read does not pay for opening the file again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock

from ..index.media import Media
from ..index.packets import FrameIndex
from ..threads.stop import Stop
from .block import SegmentDecoder

MOST_IDLE = 8


class Decoders:
    """Open decoders of one file that nobody uses right now."""

    def __init__(self) -> None:
        self._process, self._lock = os.getpid(), Lock()
        self._idle: list[_Kept] = []

    @contextmanager
    def lend(self, media: Media, index: FrameIndex, threads: int, stop: Stop) -> Iterator[SegmentDecoder]:
        """A decoder of `media`, kept or new; kept afterwards unless it fails."""
        kept = self._taken(index, threads) or _Kept(media, index, threads)
        try:
            kept.stop.now = stop
            yield kept.decoder
        except BaseException:
            kept.close()
            raise
        with self._lock:
            full = len(self._idle) >= MOST_IDLE
            if not full:
                self._idle.append(kept)
        if full:
            kept.close()

    def close(self) -> None:
        """Close what is idle."""
        idle: list[_Kept] = []
        if os.getpid() == self._process:
            with self._lock:
                idle, self._idle = self._idle, []
        for kept in idle:
            kept.close()

    def _taken(self, index: FrameIndex, threads: int) -> _Kept | None:
        if os.getpid() != self._process:
            _left_behind.extend(self._idle)
            self._process, self._lock, self._idle = os.getpid(), Lock(), []
        with self._lock:
            for kept in self._idle:
                if kept.index is index and kept.threads == threads:
                    self._idle.remove(kept)
                    return kept
        return None


_left_behind: list[_Kept] = []
"""In a forked process: decoders of its parent. To close them would wait for threads that are not there."""


@contextmanager
def decoder(
    decoders: Decoders | None, media: Media, index: FrameIndex, threads: int, stop: Stop
) -> Iterator[SegmentDecoder]:
    """One of `decoders`, or without those a new one, closed on exit."""
    if decoders is None:
        with media.source.open(stop) as container:
            yield SegmentDecoder(container, media, index, threads=threads, stop=stop)
    else:
        with decoders.lend(media, index, threads, stop) as lent:
            yield lent


class _Kept:
    """A decoder, what it decodes, and what has to be closed with it."""

    def __init__(self, media: Media, index: FrameIndex, threads: int) -> None:
        self.index, self.threads, self.stop = index, threads, _Relay()
        self._open = ExitStack()
        container = self._open.enter_context(media.source.open(self.stop))
        self.decoder = SegmentDecoder(container, media, index, threads=threads, stop=self.stop)

    def close(self) -> None:
        self._open.close()


class _Relay(Stop):
    """Stands for the `stop` of the read that is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.now = Stop()

    def is_set(self) -> bool:
        return self.now.is_set()

    def at_most(self, seconds: float) -> float:
        return self.now.at_most(seconds)

    @contextmanager
    def waking(self, wake: Callable[[], None]) -> Iterator[None]:
        with self.now.waking(wake):
            yield
