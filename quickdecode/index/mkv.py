"""Every packet of a Matroska or WebM track, read from the heads of its blocks; what lies between is not read.

Cues alone do not suffice: they say where key frames are, but not how many frames lie between two of them, and a
gap there would move every later number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

import numpy as np

from .boxes import Read, reader
from .clock import UNKNOWN
from .packets import VP8_SHOW_FRAME, Packets

EBML, SEGMENT, CLUSTER, TRACKS, INFO, SEEK_HEAD = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0x1654AE6B, 0x1549A966, 0x114D9B74
TIME, SIMPLE_BLOCK, BLOCK_GROUP, BLOCK, REFERENCE, DURATION = 0xE7, 0xA3, 0xA0, 0xA1, 0xFB, 0x9B
TRACK, TRACK_NUMBER, TRACK_KIND, CODEC, DEFAULT_DURATION = 0xAE, 0xD7, 0x83, 0x86, 0x23E383
TRACK_SCALE, ENCODINGS, DELAY, TIME_SCALE = 0x23314F, 0x6D80, 0x56AA, 0x2AD7B1
VIDEO = 1
SIMPLE = b"\xa3"
KEY, LACING = 0x80, 0x06
HEAD_BYTES = 24
"""Enough for the head of an element and of the block in it."""
LARGEST_HEADER = 16 << 20
LEVEL_1 = frozenset({CLUSTER, TRACKS, INFO, SEEK_HEAD, 0x1C53BB6B, 0x1254C367, 0x1941A469, 0x1043A770})
"""Elements of a segment: where one of them begins, a cluster of unknown size ends."""


class Unclear(Exception):
    """The file is damaged, or uses what is not understood here."""


@dataclass
class Walk:
    """What is found on the way through the blocks of the only video track."""

    track: int
    vp8: bool
    duration: int
    rows: list[tuple[int, int, bool, bool]] = field(default_factory=list)
    """pts, duration, key, shown."""

    def simple(self, cluster_time: int, head: bytes, place: int, size: int) -> int:
        """The simple block at `place`, what nearly all blocks are: where it ends. Written out, since there are many."""
        width = 9 - head[1].bit_length()
        begin = 1 + width
        end = place + begin + (int.from_bytes(head[1:begin], "big") & (1 << 7 * width) - 1)
        if width > 8 or end > size:
            raise Unclear
        if head[begin] == self.track | 0x80:
            time = int.from_bytes(head[begin + 1 : begin + 3], "big", signed=True)
            self._note(cluster_time + time, head[begin + 3], head[begin + 4], None, 0)
        elif not head[begin] & 0x80:  # a track number of several bytes
            self.add(cluster_time, head[begin:], key=None, duration=0)
        return end

    def add(self, cluster_time: int, head: bytes, *, key: bool | None, duration: int) -> None:
        """The block that starts with `head`; `key` None: its own flag says so."""
        number, place = vint(head, 0)
        if number != self.track:
            return
        if len(head) < place + 4:
            raise Unclear
        time = int.from_bytes(head[place : place + 2], "big", signed=True)
        self._note(cluster_time + time, head[place + 2], head[place + 3], key, duration)

    def _note(self, time: int, flags: int, first: int, key: bool | None, duration: int) -> None:
        if flags & LACING:
            raise Unclear
        shown = not self.vp8 or bool(first & VP8_SHOW_FRAME)
        self.rows.append((time, duration or self.duration, bool(flags & KEY) if key is None else key, shown))


def read_packets(file: IO[bytes], size: int) -> Packets | str | None:
    """The packets of the file's only video track, None if they are not plain to see, or why it is cut short."""
    try:
        return _packets(reader(file), size)
    except Unclear:
        return None


def _packets(read: Read, size: int) -> Packets | str | None:
    kind, start, end = _element(read(0, HEAD_BYTES), 0)
    if kind != EBML or end is None:
        return None
    kind, start, end = _element(read(end, HEAD_BYTES), end)
    if kind != SEGMENT:
        return None
    if end is not None and end > size:
        return f"its segment ends at byte {end:,}, the file at {size:,}"
    scale, walk = 1_000_000, None
    place = start
    while place < (size if end is None else end):
        kind, begin, stop = _element(read(place, HEAD_BYTES), place)
        if kind == CLUSTER:
            if walk is None:
                return None
            place = _cluster(read, begin, stop, size, walk)
            continue
        if stop is None:
            return None
        if kind == INFO:
            scale = dict(_children(_whole(read, begin, stop))).get(TIME_SCALE, scale)
        elif kind == TRACKS:
            walk = _walk(_whole(read, begin, stop), scale)
        place = stop
    if walk is None or not walk.rows:
        return None
    pts, durations, key, shown = np.array(walk.rows, np.int64).T
    unknown = np.full(len(pts), UNKNOWN)
    return Packets(pts, unknown, key.astype(bool), shown.astype(bool), durations)


def _cluster(read: Read, place: int, stop: int | None, size: int, walk: Walk) -> int:
    """Walk through one cluster; where it ends."""
    time = 0
    while place < (size if stop is None else stop):
        head = read(place, HEAD_BYTES)
        if head[:1] == SIMPLE and len(head) == HEAD_BYTES:
            place = walk.simple(time, head, place, size)
            continue
        kind, begin, end = _element(head, place)
        if stop is None and kind in LEVEL_1:
            return place
        if end is None or end > size:
            raise Unclear
        inside = head[begin - place :]
        if kind == TIME:
            time = int.from_bytes(inside[: end - begin], "big")
        elif kind == SIMPLE_BLOCK:  # so short that the file ends within HEAD_BYTES
            walk.add(time, inside, key=None, duration=0)
        elif kind == BLOCK_GROUP:
            _group(read, begin, end, time, walk)
        place = end
    return place


def _group(read: Read, place: int, stop: int, time: int, walk: Walk) -> None:
    block, key, duration = b"", True, 0
    while place < stop:
        head = read(place, HEAD_BYTES)
        kind, begin, end = _element(head, place)
        if end is None:
            raise Unclear
        inside = head[begin - place :]
        if kind == BLOCK:
            block = inside
        elif kind == REFERENCE:
            key = False
        elif kind == DURATION:
            duration = int.from_bytes(inside[: end - begin], "big")
        place = end
    if block:
        walk.add(time, block, key=key, duration=duration)


def _walk(tracks: bytes, scale: int) -> Walk | None:
    """The walk to take for these tracks; None if there is not exactly one of pictures, plainly stored."""
    found = [dict(_children(content)) for kind, content in _raw_children(tracks) if kind == TRACK]
    videos = [track for track in found if track.get(TRACK_KIND) == VIDEO]
    if len(videos) != 1 or videos[0].keys() & {TRACK_SCALE, ENCODINGS, DELAY}:
        return None
    track = videos[0]
    vp8 = track.get(CODEC) == int.from_bytes(b"V_VP8", "big")
    return Walk(track.get(TRACK_NUMBER, 0), vp8, track.get(DEFAULT_DURATION, 0) // max(scale, 1))


def _whole(read: Read, begin: int, stop: int) -> bytes:
    if stop - begin > LARGEST_HEADER:
        raise Unclear
    return read(begin, stop - begin)


def _children(content: bytes) -> Iterator[tuple[int, int]]:
    """Kind and value of the elements in `content`, each read as a number."""
    return ((kind, int.from_bytes(inside, "big")) for kind, inside in _raw_children(content))


def _raw_children(content: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place < len(content):
        kind, begin, end = _element(content[place : place + HEAD_BYTES], place)
        if end is None or end > len(content):
            raise Unclear
        yield kind, content[begin:end]
        place = end


def _element(head: bytes, place: int) -> tuple[int, int, int | None]:
    """Kind of the element that starts with `head` at `place`, where its content begins and ends (None: unknown)."""
    width = 9 - head[0].bit_length() if head else 0
    if not 1 <= width <= 4 or len(head) <= width:
        raise Unclear
    kind = int.from_bytes(head[:width], "big")
    length, after = vint(head, width)
    unknown = length == (1 << 7 * (after - width)) - 1
    return kind, place + after, None if unknown else place + after + length


def vint(data: bytes, place: int) -> tuple[int, int]:
    """A number of variable length, and where it ends. Raises Unclear."""
    if place >= len(data) or data[place] == 0:
        raise Unclear
    width = 9 - data[place].bit_length()
    if place + width > len(data):
        raise Unclear
    return int.from_bytes(data[place : place + width], "big") & (1 << 7 * width) - 1, place + width
