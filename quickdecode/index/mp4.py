"""How an MP4 spaces its frames, read from its own tables.

FFmpeg has read them too, but hands them over entry by entry: a third of a second for an hour of video, which a few
frames of it do not take to decode.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

LARGEST_BYTES = 64 << 20
"""A day of video has tables of some 40 MB."""
EMPTY = memoryview(b"")


def even_step(file: IO[bytes], size: int, samples: int) -> int | None:
    """Ticks from frame to frame, if the file's only video track has `samples` of them at even distances.

    None if it has not, if an edit list does more than to shift the track or to cut off its ends, and wherever that
    is not plain to see.
    """
    movie = _movie(file, size)
    if movie is None or any(kind == b"mvex" for kind, _ in _boxes(movie)):
        return None
    tracks = [track for kind, track in _boxes(movie) if kind == b"trak"]
    videos = [track for track in tracks if bytes(_at(track, b"mdia", b"hdlr")[8:12]) == b"vide"]
    if len(videos) != 1 or _number(_at(videos[0], b"edts", b"elst"), 4, absent=1) != 1:
        return None
    times = _at(videos[0], b"mdia", b"minf", b"stbl", b"stts")
    runs, count, step = (_number(times, place) for place in (4, 8, 12))
    if runs == 2 and _number(times, 16) == 1:  # only the last frame is shorter or longer
        runs, count = 1, count + 1
    return step if (runs, count) == (1, samples) else None


def _movie(file: IO[bytes], size: int) -> memoryview | None:
    """The content of the file's "moov" box."""
    place = 0
    while place + 8 <= size:
        file.seek(place)
        length, kind, header = _head(file.read(16), size - place)
        if length < header or place + length > size:
            return None
        if kind == b"moov":
            file.seek(place + header)
            return memoryview(file.read(length - header)) if length <= LARGEST_BYTES else None
        place += length
    return None


def _boxes(content: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and content of the boxes that `content` consists of, as far as they are whole."""
    place = 0
    while place + 8 <= len(content):
        length, kind, header = _head(bytes(content[place : place + 16]), len(content) - place)
        if length < header or place + length > len(content):
            return
        yield kind, content[place + header : place + length]
        place += length


def _head(start: bytes, rest: int) -> tuple[int, bytes, int]:
    """Length, kind, and how much of the length is the head itself; `rest` is what a length of 0 means."""
    length, kind = int.from_bytes(start[:4], "big"), start[4:8]
    if length == 1:
        return int.from_bytes(start[8:], "big"), kind, 16
    return length or rest, kind, 8


def _at(content: memoryview, *path: bytes) -> memoryview:
    """The content of the box at `path`; empty if there is none."""
    for step in path:
        content = next((inner for kind, inner in _boxes(content) if kind == step), EMPTY)
    return content


def _number(content: memoryview, place: int, *, absent: int = 0) -> int:
    """Four bytes at `place`."""
    return int.from_bytes(content[place : place + 4], "big") if len(content) >= place + 4 else absent
