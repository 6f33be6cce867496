"""Which frames a file holds and at which key frames decoding can start, from its packets or its own tables.

There are four ways to number frames, from cheap to sure; a reader that finds one wrong turns to the next:

    TABLE     the file's own tables (MP4, Matroska), nothing demuxed
    PACKETS   a demux of the whole file: sorted by pts, the shown packets ARE the frames of a sequential decode,
              provided that the container states pts faithfully and the decoder reorders as far as they do
    COUNTING  a decode from the start; packets tell how many frames to expect, and decoding finds out
    DECODING  a decode of the whole file before any frame is chosen
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from .clock import UNKNOWN, Flags, Ints, jumps

SEEKABLE_CODECS = frozenset(
    {
        *("h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "libaom-av1", "mpeg4", "mpeg2video", "mpeg1video"),
        *("wmv1", "wmv2", "msmpeg4", "msmpeg4v2", "flv", "h263"),
    }
)
"""Decoding from a key frame on is exact; so it is for codecs whose every frame stands alone."""
STAND_ALONE_CODECS = frozenset({"ffv1", "png"})
"""Like those that FFmpeg calls intra-only, though not called so: FFV1 can do otherwise, but marks its key frames."""
FAITHFUL_CONTAINERS = frozenset({"mov", "mp4", "matroska", "webm", "mpegts", "flv"})
IN_ORDER_CONTAINERS = frozenset({"avi", "mxf", "asf"})
"""Their times are those of decoding: faithful where frames come in the order of their packets."""
STATES_DURATIONS = frozenset({"mov", "mp4", "matroska", "webm"})
DECODE_ORDER_CONTAINERS = frozenset({"mov", "mp4"})
"""Where seeks go by dts; elsewhere they go by pts."""
VP8_SHOW_FRAME = 0x10


class Way(IntEnum):
    """How the frames of a file were numbered."""

    TABLE = 0
    PACKETS = 1
    COUNTING = 2
    DECODING = 3


@dataclass(frozen=True)
class Codec:
    """What numbering has to know about a decoder."""

    name: str
    intra_only: bool
    """Every frame marked as a key stands alone, and frames come in the order of their packets."""
    reorders: bool
    """Whether frames may come in another order than their packets."""
    delay: int
    """How many packets it takes in before the first frame comes out: how far it reorders."""


@dataclass(frozen=True, repr=False)
class Packets:
    """The packets of a video stream in decode order; times in stream time base units, or UNKNOWN."""

    pts: Ints
    dts: Ints
    key: Flags
    shown: Flags
    """Whether a frame comes out for it: not for those that an edit list hides, nor for VP8's hidden references."""
    durations: Ints
    """0 where unknown."""

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def start_unordered(self) -> bool:
        """Whether pictures of the first group are shown before its key frame, which decoders may drop."""
        later_keys = np.flatnonzero(self.key[1:])
        stop = int(later_keys[0]) + 1 if len(later_keys) else len(self)
        return bool(self.pts[:stop].min() < self.pts[0])

    @property
    def reordering(self) -> int:
        """By how many packets the latest frame lags behind its turn; what a decoder's delay must make up for."""
        pts = self.pts[self.shown]
        positions = np.argsort(pts, kind="stable")
        return int((np.maximum.accumulate(positions) - np.arange(len(pts))).max(initial=0))


@dataclass(frozen=True, repr=False)
class FrameIndex:
    """Times in stream time base units; positions count video packets in decode order."""

    frame_pts: Ints
    """(num_frames,) presentation times in display order."""
    positions: Ints
    """(num_frames,) where each frame's packet is."""
    packets: Packets
    keys: Ints
    """(num_keys,) positions of key packets, ascending."""
    key_times: Ints
    """(num_keys,) what a seek asks for, and what shows that the right key packet was found."""
    by_dts: bool
    """Whether key_times are dts."""
    order_stated: bool
    """Whether pts are known to tell the order of frames; else each group is decoded whole, which shows it."""
    end_pts: int
    """Where the last frame ends."""

    @property
    def num_frames(self) -> int:
        return len(self.frame_pts)

    @property
    def num_packets(self) -> int:
        return len(self.packets)

    @property
    def key_pts(self) -> Ints:
        """(num_keys,) presentation times."""
        return self.packets.pts[self.keys]


class PacketLog:
    """Collects the packets of one stream while a container is being demuxed."""

    def __init__(self, codec: str) -> None:
        self._rows: list[tuple[int, int, int, bool, bool]] = []
        self._vp8 = codec == "vp8"

    def add(self, packet: Any) -> None:
        shown = not packet.is_discard and not (self._vp8 and not bytes(packet)[0] & VP8_SHOW_FRAME)
        pts, dts = (UNKNOWN if time is None else time for time in (packet.pts, packet.dts))
        self._rows.append((pts, dts, packet.duration or 0, packet.is_keyframe, shown))

    def packets(self) -> Packets:
        """What was collected."""
        pts, dts, durations, key, shown = np.array(self._rows, np.int64).reshape(-1, 5).T
        return Packets(pts, dts, key.astype(bool), shown.astype(bool), durations)


def numbered(packets: Packets, container: str, codec: Codec, ticks_per_second: float) -> FrameIndex | str:
    """The index, or the reason why these packets do not tell which frame they hold."""
    kind = set(container.split(","))
    if not _faithful(kind, codec):
        return f"{container} files do not state presentation times faithfully"
    if codec.name not in SEEKABLE_CODECS and not codec.intra_only:
        return f"random access in {codec.name} is not proven exact"
    reason = _irregular(packets, codec, container, ticks_per_second)
    if reason:
        return reason
    pts, dts, shown = packets.pts, packets.dts, np.flatnonzero(packets.shown)
    order = shown[np.argsort(pts[shown], kind="stable")]
    keys = np.flatnonzero(packets.key)
    by_dts = bool(DECODE_ORDER_CONTAINERS & kind) and bool((dts != UNKNOWN).all())
    key_times = (dts if by_dts else pts)[keys]
    if (np.diff(key_times) <= 0).any():
        return "the times of key frames do not ascend"
    return FrameIndex(
        frame_pts=pts[order],
        positions=order,
        packets=packets,
        keys=keys,
        key_times=key_times,
        by_dts=by_dts,
        order_stated=codec.delay == 0 or packets.reordering > 0,
        end_pts=int(pts[order[-1]]) + last_duration(packets, pts[order], int(order[-1]), kind),
    )


def _faithful(kind: set[str], codec: Codec) -> bool:
    if kind & IN_ORDER_CONTAINERS:
        return codec.intra_only or not codec.reorders
    return bool(kind & FAITHFUL_CONTAINERS)


def last_duration(packets: Packets, frame_pts: Ints, position: int, kind: set[str]) -> int:
    """How long the last frame, which is packet `position`, is shown."""
    stated = int(packets.durations[position]) if STATES_DURATIONS & kind else 0
    if stated > 0 or len(frame_pts) < 2:
        return max(stated, 1)
    return max(int(np.median(np.diff(frame_pts))), 1)


def _irregular(packets: Packets, codec: Codec, container: str, ticks_per_second: float) -> str | None:
    if not packets.shown.any():
        return "no packet is shown"
    if not packets.key[0]:
        return "the stream does not start with a key frame"
    if (packets.pts == UNKNOWN).any():
        return "packets without presentation times"
    times = packets.pts[packets.shown]
    if len(np.unique(times)) != len(times):
        return "presentation times repeat"
    if jumps(np.sort(times), container, ticks_per_second).any():
        return "its clock jumps or starts again"
    if packets.reordering > codec.delay:
        return "frames are further out of order than the decoder expects, or the clock starts again"
    if packets.start_unordered:
        return "the first key frame has leading pictures, which decoders may drop"
    return None
