"""Ring: a buffer of a few rows that decoding threads fill and one reader empties, in order."""

from __future__ import annotations

import math
from threading import Condition

import numpy as np

from ..threads.pool import Cancelled
from .picture import Pixels

READ_AHEAD_BYTES = 64 << 20
"""How far decoding may run ahead of the reader, in bytes of pictures."""
LEAST_BLOCKS = 2
"""... but at least this many of the reader's blocks."""


def ring_bytes(picture: tuple[int, int, int], num_rows: int, block_rows: int) -> int:
    """What a Ring of these takes."""
    each = math.prod(picture)
    return min(max(READ_AHEAD_BYTES // each, LEAST_BLOCKS * block_rows), num_rows) * each


class Ring:
    """Rows [taken, taken + size) of a video; a writer of a later row waits until the reader has taken enough.

    Row r lies in slot r % size. The lowest row not yet written always has room, so writers cannot wait for each other.
    """

    def __init__(self, picture: tuple[int, int, int], num_rows: int, block_rows: int, workers: int) -> None:
        """
        Args:
            picture: (3, H, W).
            num_rows: rows of the whole video.
            block_rows: how many rows the reader takes at a time.
            workers: threads that write.
        """
        self.size = ring_bytes(picture, num_rows, block_rows) // math.prod(picture)
        self.most_rows = max(self.size // (2 * workers), 1)
        """Rows that one block should fill at most, so that each worker has one in reach."""
        self._slots = np.empty((self.size, *picture), np.uint8)
        self._written = np.zeros(self.size, bool)
        self._taken = 0
        self._closed = False
        self._room = Condition()

    @property
    def nbytes(self) -> int:
        """Bytes of pictures that it can hold."""
        return self._slots.nbytes

    def has_room(self, row: int) -> bool:
        """Whether place(row) would return at once."""
        return row < self._taken + self.size

    def place(self, row: int) -> Pixels:
        """(3, H, W) to write the row into; waits until there is room. Raises Cancelled once the ring is closed."""
        with self._room:
            self._room.wait_for(lambda: self._closed or self.has_room(row))
            if self._closed:
                raise Cancelled
            if row < self._taken:  # decoded a second time, after the reader has it
                return np.empty(self._slots.shape[1:], np.uint8)
        picture: Pixels = self._slots[row % self.size]
        return picture

    def fill(self, rows: list[int]) -> None:
        """Note that these rows are written; called by the reader."""
        self._written[[row % self.size for row in rows if row >= self._taken]] = True

    def ready(self, most: int) -> int:
        """How many rows, `most` at most, can be taken without a gap."""
        most = min(most, self.size)
        written = self._written[np.arange(self._taken, self._taken + most) % self.size]
        return most if written.all() else int(written.argmin())

    def take(self, out: Pixels) -> None:
        """Move the next len(out) rows, which must be ready, to `out`, (t, 3, H, W)."""
        slots = np.arange(self._taken, self._taken + len(out)) % self.size
        for picture, slot in zip(out, slots, strict=True):
            picture[...] = self._slots[slot]
        self._written[slots] = False
        with self._room:
            self._taken += len(out)
            self._room.notify_all()

    def close(self) -> None:
        """Let nobody wait any longer."""
        with self._room:
            self._closed = True
            self._room.notify_all()
