"""The samples of a fragmented MP4, from the "moof" boxes before each piece of data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .boxes import EMPTY, at, boxes, number
from .clock import Flags, Ints

NOT_A_KEY = 0x10000 | 0x1000000
"""Flags of a sample: it is no sync sample; it depends on others."""
LATEST = 1 << 60
"""A time beyond which sums would overflow."""
DURATION, SIZE, FLAGS, SHIFT = 0x100, 0x200, 0x400, 0x800
"""Columns that a run may have."""
TFHD_FIELDS = ((0x1, 8, 0), (0x2, 4, 0), (0x8, 4, DURATION), (0x10, 4, SIZE), (0x20, 4, FLAGS))
"""Bit that says that a fragment's head has the field, its bytes, and the column that it is the default of."""


@dataclass(frozen=True, repr=False)
class Run:
    """Consecutive samples; times in the track's units."""

    begin: int | None
    """dts of the first; None where it goes on from the run before."""
    durations: Ints
    shifts: Ints
    """pts - dts."""
    key: Flags


class Runs:
    """Collects the runs of one track, fragment by fragment."""

    def __init__(self, track_id: int, room: int) -> None:
        """`room`: how many samples the file can hold at most."""
        self._track_id, self._room = track_id, room
        self.runs: list[Run] = []
        self.unclear = False
        """Whether any fragment was not understood."""

    def add(self, moof: memoryview, mvex: memoryview) -> None:
        """Read one fragment; `mvex` holds the defaults for all of them."""
        for kind, traf in boxes(moof):
            tfhd = at(traf, b"tfhd")
            if kind != b"traf" or number(tfhd, 4) != self._track_id:
                continue
            defaults = _defaults(tfhd, mvex, self._track_id)
            tfdt = at(traf, b"tfdt")
            begin = number(tfdt, 4, size=8 if number(tfdt, 0, size=1) else 4) if tfdt else None
            for inner, trun in boxes(traf):
                if inner == b"trun":
                    self._add(_run(trun, begin, defaults, self._room))
                    begin = None

    def _add(self, run: Run | None) -> None:
        if run is None:
            self.unclear = True
        else:
            self.runs.append(run)
            self._room -= len(run.key)


def _defaults(tfhd: memoryview, mvex: memoryview, track_id: int) -> dict[int, int]:
    """Duration, size, flags and shift of samples that do not state their own."""
    trex = next((each for kind, each in boxes(mvex) if kind == b"trex" and number(each, 4) == track_id), EMPTY)
    values = {DURATION: number(trex, 12), SIZE: number(trex, 16), FLAGS: number(trex, 20), SHIFT: 0}
    given, place = number(tfhd, 0) & 0xFFFFFF, 8
    for bit, width, column in TFHD_FIELDS:
        if given & bit:
            if column in values:
                values[column] = number(tfhd, place)
            place += width
    return values


def _run(trun: memoryview, begin: int | None, defaults: dict[int, int], room: int) -> Run | None:
    given, count, place = number(trun, 0) & 0xFFFFFF, number(trun, 4), 8
    place += 4 if given & 0x1 else 0
    first_flags = number(trun, place) if given & 0x4 else None
    place += 4 if given & 0x4 else 0
    columns = [bit for bit in defaults if given & bit]
    end = place + count * len(columns) * 4
    if not 0 < count <= room or len(trun) < end or (begin or 0) > LATEST:
        return None
    rows = np.frombuffer(trun[place:end], ">u4").astype(np.int64).reshape(count, len(columns))
    cells = {bit: np.full(count, default) for bit, default in defaults.items()}
    cells.update(zip(columns, rows.T, strict=True))
    if (cells[SIZE] == 0).any():
        return None
    if first_flags is not None and not given & FLAGS:
        cells[FLAGS][0] = first_flags
    return Run(begin, cells[DURATION], cells[SHIFT], cells[FLAGS] & NOT_A_KEY == 0)
