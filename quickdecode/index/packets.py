"""Which frames a file holds and at which key frames decoding can start, from its packets or its own table.

There are three ways to number frames, from cheap to sure; a reader that finds one wrong turns to the next:

    TABLE     the sample table of an MP4, nothing demuxed: enough if frames are evenly spaced in time
    PACKETS   a demux of the whole file: sorted by pts, the shown packets ARE the frames of a sequential decode,
              provided that the container states pts faithfully
    COUNTING  a decode of the whole file
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from ..source.source import Source
from .mp4 import even_step

Ints = npt.NDArray[np.int64]

SEEKABLE_CODECS = frozenset({"h264", "hevc", "vp9", "av1", "libdav1d", "libaom-av1", "mjpeg", "mpeg4"})
FAITHFUL_CONTAINERS = frozenset({"mov", "mp4", "matroska", "webm", "mpegts", "flv"})
STATES_DURATIONS = frozenset({"mov", "mp4", "matroska", "webm"})
DECODE_ORDER_CONTAINERS = frozenset({"mov", "mp4"})
"""Where seeks go by dts; elsewhere they go by pts."""


class Way(IntEnum):
    """How the frames of a file were numbered."""

    TABLE = 0
    PACKETS = 1
    COUNTING = 2


@dataclass(frozen=True, repr=False)
class FrameIndex:
    """Times in stream time base units; positions count video packets in decode order."""

    frame_pts: Ints
    """(num_frames,) presentation times in display order."""
    positions: Ints
    """(num_frames,) where each frame's packet is; the frame's own number when only the table was read."""
    keys: Ints
    """(num_keys,) positions of key packets, ascending."""
    key_times: Ints
    """(num_keys,) what a seek asks for, and what shows that the right key packet was found."""
    key_pts: Ints | None
    """(num_keys,) presentation times; unknown when only the table was read."""
    by_dts: bool
    """Whether key_times are dts."""
    num_packets: int
    end_pts: int
    """Where the last frame ends."""

    @property
    def num_frames(self) -> int:
        return len(self.frame_pts)


class PacketLog:
    """Collects the packets of one stream while a container is being demuxed."""

    def __init__(self) -> None:
        self._rows: list[tuple[int | None, int | None, int, bool, bool]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, packet: Any) -> None:
        self._rows.append((packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe, not packet.is_discard))

    def index(self, container: str, codec: str) -> FrameIndex | str:
        """The index, or the reason why these packets do not tell which frame they hold."""
        kind = set(container.split(","))
        if not FAITHFUL_CONTAINERS & kind:
            return f"{container} files do not state presentation times faithfully"
        if codec not in SEEKABLE_CODECS:
            return f"random access in {codec} is not proven exact"
        if any(row[0] is None for row in self._rows):
            return "packets without presentation times"
        pts = np.array([row[0] for row in self._rows], np.int64)
        keys = np.flatnonzero([row[3] for row in self._rows])
        shown = np.flatnonzero([row[4] for row in self._rows])
        reason = _irregular(pts, keys, shown)
        if reason:
            return reason
        order = shown[np.argsort(pts[shown], kind="stable")]
        by_dts = bool(DECODE_ORDER_CONTAINERS & kind) and all(row[1] is not None for row in self._rows)
        dts = np.array([row[1] for row in self._rows], np.int64) if by_dts else pts
        return FrameIndex(
            frame_pts=pts[order],
            positions=order,
            keys=keys,
            key_times=dts[keys],
            key_pts=pts[keys],
            by_dts=by_dts,
            num_packets=len(pts),
            end_pts=int(pts[order[-1]]) + self._last_duration(pts[order], int(order[-1]), kind),
        )

    def _last_duration(self, frame_pts: Ints, position: int, kind: set[str]) -> int:
        stated = self._rows[position][2] if STATES_DURATIONS & kind else 0
        if stated > 0 or len(frame_pts) < 2:
            return max(stated, 1)
        return max(int(np.median(np.diff(frame_pts))), 1)


def _irregular(pts: Ints, keys: Ints, shown: Ints) -> str | None:
    if len(keys) == 0 or keys[0] != 0:
        return "the stream does not start with a key frame"
    if len(shown) == 0:
        return "no packet is shown"
    if len(np.unique(pts)) != len(pts):
        return "presentation times repeat"
    stop = int(keys[1]) if len(keys) > 1 else len(pts)
    if pts[:stop].min() < pts[0]:
        return "the first key frame has leading pictures, which decoders may drop"
    return None


def table_index(stream: Any, source: Source, container: str, first_pts: int) -> FrameIndex | None:
    """The index from an MP4's sample table; None unless the table is whole and evenly spaced.

    `first_pts` is the first decoded frame's. Frames are then assumed at first_pts + i * step; whoever decodes
    them checks.
    """
    entries = getattr(stream, "index_entries", None)
    kind = DECODE_ORDER_CONTAINERS & set(container.split(","))
    if not kind or entries is None or len(entries) < 2 or stream.frames != len(entries):
        return None
    if stream.codec_context.name not in SEEKABLE_CODECS:
        return None
    with source.file() as file:
        step = even_step(file, source.size, len(entries))
    keys = _key_entries(entries)
    if not step or len(keys) == 0 or keys[0] != 0 or _cut_off(entries, keys, source.size):
        return None
    numbers = np.arange(len(entries), dtype=np.int64)
    key_times = np.array([entries[int(key)].timestamp for key in keys], np.int64)
    begin = int(key_times[0])
    if (key_times != begin + keys * step).any() or entries[-1].timestamp != begin + numbers[-1] * step:
        return None
    frame_pts = first_pts + numbers * step
    return FrameIndex(
        frame_pts=frame_pts,
        positions=numbers,
        keys=keys,
        key_times=key_times,
        key_pts=None,
        by_dts=True,
        num_packets=len(numbers),
        end_pts=int(frame_pts[-1] + step),
    )


def _key_entries(entries: Any) -> Ints:
    """Where the key frames are, found by jumping from one to the next."""
    keys: list[int] = []
    following = 0 if entries[0].is_keyframe else -1
    while following >= 0 and (not keys or following > keys[-1]):
        keys.append(following)
        following = entries.search_timestamp(entries[following].timestamp + 1, backward=False)
    return np.array(keys, np.int64)


def _cut_off(entries: Any, keys: Ints, file_size: int) -> bool:
    """Whether an edit list hides frames at either end, or the file ends before its data does."""
    first, last = (entries[: int(keys[1])], entries[int(keys[-2]) :]) if len(keys) > 1 else (entries[:], [])
    tail = entries[-LAST_ENTRIES:]
    return any(entry.is_discard for entry in [*first, *last]) or max(e.pos + e.size for e in tail) > file_size


LAST_ENTRIES = 64
"""A truncated file lacks the data of its last entries."""
