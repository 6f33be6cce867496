"""Tables of an MP4 that claim more samples than the file can hold: refused before FFmpeg makes room for them.

FFmpeg keeps some 70 bytes for every sample that a table claims, and a table of samples of one size is 20 bytes long
however many it claims. It also finds tables in places where they do not belong, so they are looked for everywhere
outside the media data, and not by the path at which a well-formed file has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from ..errors import SourceError
from .limits import Limits

BOXES = frozenset(
    b"ftyp styp moov moof mdat free skip wide hoov meta uuid sidx ssix mfra emsg prft pdin udta udat pnot junk trak "
    b"pict ediw prfl".split()
)
PASSED_OVER = frozenset((b"mdat", b"free", b"skip", b"wide", b"sidx", b"mfra"))
LARGEST_BYTES = 256 << 20
"""A day of video has tables of some 40 MB."""
LEAST_SAMPLE_BYTES = 16
"""No picture is coded in less, where all are of one size; samples of sound may be one byte."""
FIELDS = (0x100, 0x200, 0x400, 0x800)
"""Flags of a fragment's table: four bytes a sample for each."""


@dataclass(frozen=True)
class Table:
    """What a table of samples claims."""

    kind: str
    count: int
    least: float
    """Bytes of the file that each sample must take."""
    kept: bool = True
    """Whether FFmpeg keeps something for each; not for uncompressed sound."""


def refuse_false_tables(name: str, file: IO[bytes], size: int, limits: Limits) -> None:
    """Raises SourceError if a table claims more samples than `size` bytes can be, LimitError if all claim too many."""
    claimed = 0
    for content in _headers(name, file, size):
        for table in _tables(content):
            if table.count * table.least > size:
                raise SourceError(
                    f"{name}: a table ({table.kind}) claims {table.count:,} samples, more than a file of {size:,} "
                    "bytes can hold; it is damaged, truncated or made to harm. Re-encode it."
                )
            claimed += table.count * table.kept
    limits.check_samples(name, claimed)


def _headers(name: str, file: IO[bytes], size: int) -> Iterator[bytes]:
    """Everything between boxes of media data; nothing if the file is no MP4."""
    place = 0
    while place + 8 <= size:
        file.seek(place)
        start = file.read(24)
        length, kind, head = int.from_bytes(start[:4], "big"), start[4:8], 8
        if length == 1:
            length, head = int.from_bytes(start[8:16], "big"), 16
        if kind not in BOXES and not (place and _is_word(kind)):
            return
        if length and length < head:
            return
        end = min(place + length, size) if length else size
        hidden = kind in (b"free", b"skip") and start[head + 4 : head + 8] == b"moov"
        if kind not in PASSED_OVER or hidden:
            if end - place > LARGEST_BYTES:
                raise SourceError(f"{name}: a header ({_word(kind)}) of {end - place:,} bytes; re-encode it.")
            file.seek(place)
            content = file.read(end - place)
            if b"cmov" in content[:64]:
                raise SourceError(f"{name}: its header is compressed, which is not supported; remux or re-encode it.")
            yield content
        place = end


def _tables(content: bytes) -> Iterator[Table]:
    for place in _found(content, b"stsz"):
        each, count = _number(content, place + 12), _number(content, place + 16)
        if not each:
            yield Table("stsz", count, 4)
        elif _is_plain_sound(content, place):
            yield Table("stsz", count, 1, kept=False)
        else:
            yield Table("stsz", count, LEAST_SAMPLE_BYTES)
    for place in _found(content, b"stz2"):
        yield Table("stz2", _number(content, place + 16), 0.5)
    for place in _found(content, b"trun"):
        fields = sum(1 for field in FIELDS if _number(content, place + 8) & field)
        yield Table("trun", _number(content, place + 12), max(4 * fields, 1))


def _is_plain_sound(content: bytes, place: int) -> bool:
    """Whether the table at `place` is of a track of sound whose samples last one tick each: FFmpeg takes it whole."""
    begin, end = content.rfind(b"trak", 0, place), content.find(b"trak", place)
    track = content[max(begin, 0) : end if end >= 0 else len(content)]
    kinds = {track[found.end() + 8 : found.end() + 12] for found in re.finditer(b"hdlr", track)}
    times = track.find(b"stts")
    plain = times >= 0 and _number(track, times + 8) == 1 and _number(track, times + 16) == 1
    return plain and b"soun" in kinds and b"vide" not in kinds


def _found(content: bytes, kind: bytes) -> Iterator[int]:
    """Where tables of a kind begin: its four letters behind a length that is possible, or before flags that are."""
    place = content.find(kind, 4)
    while place >= 0:
        length = _number(content, place - 4)
        if length <= 1 or 16 <= length <= len(content) - place + 4 or _number(content, place + 4) == 0:
            yield place - 4
        place = content.find(kind, place + 1)


def _number(content: bytes, place: int) -> int:
    return int.from_bytes(content[place : place + 4], "big")


def _is_word(kind: bytes) -> bool:
    return len(kind) == 4 and all(32 <= letter < 127 or letter == 0xA9 for letter in kind)


def _word(kind: bytes) -> str:
    return kind.decode("latin-1")
