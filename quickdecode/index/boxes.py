"""The boxes that an MP4 or MOV file consists of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO

import numpy as np

from .clock import Ints

LARGEST_BYTES = 64 << 20
"""A day of video has tables of some 40 MB."""
MOST_BOXES = 1_000_000
EMPTY = memoryview(b"")


Read = Callable[[int, int], bytes]
"""Where, and how many bytes."""


def reader(file: IO[bytes]) -> Read:
    """Reads from `file` no more than is asked for."""
    raw = getattr(file, "raw", file)  # a buffer would read what lies between, too

    def read(place: int, count: int) -> bytes:
        raw.seek(place)
        data: bytes = raw.read(count)
        return data

    return read


def top_level(read: Read, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start of the content and end of each of the file's boxes; the last may end beyond `size`."""
    place = 0
    for _ in range(MOST_BOXES):
        if place + 8 > size:
            return
        length, kind, header = _head(read(place, 16), size - place)
        if length < header:
            return
        yield kind, place + header, place + length
        place += length


def content(read: Read, start: int, end: int) -> memoryview:
    """The bytes of a box; empty if they are too many."""
    return memoryview(read(start, end - start)) if end - start <= LARGEST_BYTES else EMPTY


def boxes(inside: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and content of the boxes that `inside` consists of, as far as they are whole."""
    place = 0
    while place + 8 <= len(inside):
        length, kind, header = _head(bytes(inside[place : place + 16]), len(inside) - place)
        if length < header or place + length > len(inside):
            return
        yield kind, inside[place + header : place + length]
        place += length


def _head(start: bytes, rest: int) -> tuple[int, bytes, int]:
    """Length, kind, and how much of the length is the head itself; `rest` is what a length of 0 means."""
    length, kind = int.from_bytes(start[:4], "big"), start[4:8]
    if length == 1:
        return int.from_bytes(start[8:], "big"), kind, 16
    return length or rest, kind, 8


def at(inside: memoryview, *path: bytes) -> memoryview:
    """The content of the box at `path`; empty if there is none."""
    for step in path:
        inside = next((inner for kind, inner in boxes(inside) if kind == step), EMPTY)
    return inside


def number(inside: memoryview, place: int, *, size: int = 4, absent: int = 0) -> int:
    """`size` bytes at `place`."""
    return int.from_bytes(inside[place : place + size], "big") if len(inside) >= place + size else absent


def table(inside: memoryview, columns: int, *, place: int = 8, kind: str = ">u4") -> Ints:
    """(rows, columns) of a table that is announced by its number of rows, four bytes before `place`."""
    cell = np.dtype(kind)
    announced, room = number(inside, place - 4), max(len(inside) - place, 0) // (columns * cell.itemsize)
    rows = min(announced, room)
    cells = np.frombuffer(inside[place : place + rows * columns * cell.itemsize], cell)
    return cells.astype(np.int64).reshape(rows, columns)
