"""Every packet of an MP4 or MOV track, read from the tables of its "moov" box.

FFmpeg has read them too, but hands them over entry by entry: a third of a second for an hour of video, which a few
frames of it do not take to decode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from .boxes import EMPTY, at, boxes, content, number, reader, table, top_level
from .clock import Flags, Ints
from .fragments import Run, Runs
from .packets import Packets

SIGN = 1 << 31
"""Bit 31 of a composition offset is a sign, in either version of the table."""
LEAST_BYTES = 4
"""No picture is stored in less."""
KEY_GROUPS = (b"rap ", b"sync")
"""Sample groups that say more about key frames than the table of them does."""


@dataclass(frozen=True, repr=False)
class Samples:
    """A track's samples in decode order; times in the track's units, the first dts being 0."""

    dts: Ints
    pts: Ints
    key: Flags
    durations: Ints
    offsets: Ints
    """Where in the file each begins; empty where fragments hold them."""
    sizes: Ints
    edits: Ints
    """(k, 2) duration in the track's units and media time of the edit list's entries; a media time of -1 is a pause."""

    def __len__(self) -> int:
        return len(self.dts)


def read_samples(file: IO[bytes], size: int, track_id: int) -> Samples | str | None:
    """The samples of the track, None if they are not plain to see, or why the file is cut short."""
    moov, pieces = EMPTY, Runs(track_id, size // LEAST_BYTES)
    read = reader(file)
    for kind, start, end in top_level(read, size):
        if end > size:
            return f"a box of it ends at byte {end:,}, the file at {size:,}"
        if kind == b"moov":
            moov = content(read, start, end)
        elif kind == b"moof":
            pieces.add(content(read, start, end), at(moov, b"mvex"))
    tracks = [inner for kind, inner in boxes(moov) if kind == b"trak"]
    ours = next((each for each in tracks if _track_id(at(each, b"tkhd")) == track_id), None)
    if ours is None or pieces.unclear:
        return None
    media, edits = at(ours, b"mdia", b"minf", b"stbl"), _edits(ours, moov)
    if pieces.runs:
        plain = len(table(at(media, b"stts"), 2)) == 0
        return _from_fragments(pieces.runs, edits) if plain else None
    samples = _from_tables(media, edits, size)
    if samples is None:
        return None
    last = int((samples.offsets + samples.sizes).max(initial=0))
    return f"its table names data up to byte {last:,}, the file ends at {size:,}" if last > size else samples


def hidden(samples: Samples) -> bool:
    """Whether the edit list does more than to shift the track."""
    playing = samples.edits[samples.edits[:, 1] >= 0]
    if len(samples.edits) == 0:
        return False
    if len(playing) != 1 or samples.edits[-1, 1] < 0:
        return True
    duration, begin = playing[0]
    return bool(samples.pts.min() < begin or samples.pts.max() >= begin + duration)


def packets(samples: Samples, first_pts: int, first_dts: int) -> Packets:
    """The packets of samples that are all shown, given the times of the first of them."""
    shown = np.ones(len(samples), bool)
    pts, dts = samples.pts - samples.pts[0] + first_pts, samples.dts - samples.dts[0] + first_dts
    return Packets(pts, dts, samples.key, shown, samples.durations)


def edited_packets(samples: Samples, entries: Any, first_pts: int) -> Packets | None:
    """The packets that FFmpeg makes of an edit list: `entries` say which samples, in which order and when."""
    order = np.argsort(samples.offsets, kind="stable")
    rows = [(each.pos, each.timestamp, each.is_keyframe, each.is_discard) for each in entries]
    positions, dts, key, discard = np.array(rows, np.int64).reshape(-1, 4).T
    found = np.searchsorted(samples.offsets, positions, sorter=order)
    if len(rows) == 0 or found.max() == len(order):
        return None
    numbers = order[found]
    if (samples.offsets[numbers] != positions).any():
        return None
    pts = dts + (samples.pts - samples.dts)[numbers]
    return Packets(pts - pts[0] + first_pts, dts, key.astype(bool), ~discard.astype(bool), samples.durations[numbers])


def _from_tables(stbl: memoryview, edits: Ints, file_size: int) -> Samples | None:
    runs = table(at(stbl, b"stts"), 2)
    count = int(runs[:, 0].sum())
    if not 0 < count <= file_size // LEAST_BYTES:
        return None
    sizes = _sizes(at(stbl, b"stsz"), count)
    if sizes is None or (sizes == 0).any():
        return None
    durations = np.repeat(runs[:, 1], runs[:, 0])
    dts = np.concatenate([[0], np.cumsum(durations)[:-1]])
    shifts = table(at(stbl, b"ctts"), 2)
    if int(shifts[:, 0].sum()) not in (0, count):
        return None
    pts = dts + np.repeat(_signed(shifts[:, 1]), shifts[:, 0]) if len(shifts) else dts
    keys = table(at(stbl, b"stss"), 1)[:, 0] - 1
    key = np.full(count, len(at(stbl, b"stss")) == 0)
    if len(keys) and not 0 <= keys.min() <= keys.max() < count:
        return None
    key[keys] = True
    offsets = _offsets(stbl, sizes)
    groups = (inner[4:8] for kind, inner in boxes(stbl) if kind == b"sgpd")
    if offsets is None or any(group in KEY_GROUPS for group in groups):
        return None
    return Samples(dts, pts, key, durations, offsets, sizes, edits)


def _from_fragments(runs: list[Run], edits: Ints) -> Samples | None:
    starts, clock = [], 0
    for run in runs:
        clock = clock if run.begin is None else run.begin
        starts.append(clock + np.concatenate([[0], np.cumsum(run.durations)[:-1]]))
        clock += int(run.durations.sum())
    dts = np.concatenate(starts)
    pts = dts + _signed(np.concatenate([run.shifts for run in runs]))
    key = np.concatenate([run.key for run in runs])
    none = np.empty(0, np.int64)
    return Samples(dts, pts, key, np.concatenate([run.durations for run in runs]), none, none, edits[:0])


def _sizes(stsz: memoryview, count: int) -> Ints | None:
    if number(stsz, 8, absent=-1) != count:
        return None
    constant = number(stsz, 4)
    sizes = np.full(count, constant) if constant else table(stsz, 1, place=12)[:, 0]
    return sizes if len(sizes) == count else None


def _offsets(stbl: memoryview, sizes: Ints) -> Ints | None:
    """Where each sample begins, from the chunks that hold them one behind the other."""
    wide = at(stbl, b"co64")
    chunks = table(wide, 1, kind=">u8")[:, 0] if wide else table(at(stbl, b"stco"), 1)[:, 0]
    groups = table(at(stbl, b"stsc"), 3)
    if len(groups) == 0 or len(chunks) == 0 or groups[0, 0] != 1 or (np.diff(groups[:, 0]) <= 0).any():
        return None
    lengths = np.diff(np.append(groups[:, 0] - 1, len(chunks)))
    if (lengths < 0).any() or int((lengths * groups[:, 1]).sum()) != len(sizes):
        return None
    per_chunk = np.repeat(groups[:, 1], lengths)
    if (per_chunk == 0).any():
        return None
    ends = np.cumsum(sizes)
    first = np.cumsum(per_chunk) - per_chunk
    before: Ints = ends - sizes
    offsets: Ints = before + np.repeat(chunks - before[first], per_chunk)
    return offsets


def _edits(track: memoryview, moov: memoryview) -> Ints:
    """The edit list, durations in the units of the track."""
    elst, mvhd, mdhd = at(track, b"edts", b"elst"), at(moov, b"mvhd"), at(track, b"mdia", b"mdhd")
    wide = number(elst, 0, size=1) == 1
    if wide:
        rows = table(elst, 5)
        rows = np.stack([rows[:, 0] << 32 | rows[:, 1], rows[:, 2] << 32 | rows[:, 3]], 1)
    else:
        rows = table(elst, 3)[:, :2].copy()
        rows[:, 1] = _signed(rows[:, 1])
    movie, ours = (number(head, 20 if number(head, 0, size=1) == 1 else 12) for head in (mvhd, mdhd))
    rows[:, 0] = rows[:, 0] * ours // max(movie, 1)
    return rows


def _track_id(tkhd: memoryview) -> int:
    return number(tkhd, 20 if number(tkhd, 0, size=1) == 1 else 12)


def _signed(values: Ints) -> Ints:
    """32-bit numbers with a sign, read without one."""
    return np.where(values >= SIGN, values - 2 * SIGN, values)
