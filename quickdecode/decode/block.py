"""Decode segments: seek to the key packet, check it, feed packets, hand over the wanted frames."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event
from typing import Any

from ..index.packets import FrameIndex
from ..index.probe import Media
from ..index.sequential import all_frames, set_threads, video_stream
from ..plan.blocks import Segment
from ..threads.pool import Cancelled
from .salvage import tolerant

READ_AHEAD_PACKETS = 2000
"""MPEG-TS seeks overshoot; below this distance reading on is cheaper than seeking back and forth."""
SEEK_BACK_SECONDS = (0.0, 2.0, 10.0)


class Mismatch(Exception):
    """The file does not behave as its index says; the caller turns to a surer way of numbering frames."""


class Damaged(Exception):
    """A picture was concealed; what it shows depends on the pictures that were left out."""


class SegmentDecoder:
    """Reads one container; belongs to one thread. Yields (pts, frame) for the wanted frames of a segment."""

    def __init__(self, container: Any, media: Media, index: FrameIndex, *, threads: int, stop: Event) -> None:
        self._container = container
        self._index = index
        self._stop = stop
        self._stream = video_stream(container, media.source)
        self._context = self._stream.codec_context
        set_threads(self._context, threads)
        self._packets = container.demux(self._stream)
        self._position = 0
        self._reads_on = "mpegts" in media.info.container
        self._skips = media.skips_unreferenced
        self._skipping = False

    def decode(self, segment: Segment, *, skip: bool = True) -> Iterator[tuple[int, Any]]:
        """Frames come in display order. Raises Mismatch if one of them does not come, or packets differ.

        `skip=False` decodes also the pictures that nothing refers to, as a sequential decode does; without it,
        Damaged is raised where that makes a difference.
        """
        missing = set(segment.rows)
        last_pts: int | None = None
        skipping = skip and self._skips
        for frame in self._frames(segment, skipping):
            if frame.pts is None or (last_pts is not None and frame.pts <= last_pts):
                raise Mismatch(f"frame times do not ascend around {last_pts}")
            last_pts = frame.pts
            if frame.is_corrupt and skipping:
                raise Damaged
            if frame.pts in missing:
                missing.remove(frame.pts)
                yield frame.pts, frame
        if missing:
            raise Mismatch(f"no frame with pts {min(missing)} came out of its group")

    def whatever_decodes(self, key: int) -> Iterator[Any]:
        """The frames of one group of pictures, errors passed over."""
        group = Segment(key=key, stop=self._end_of(key), cost=0, rows={})
        self._context.flush_buffers()
        self._skip_unreferenced(False)
        try:
            yield from tolerant(self._context.decode, self._packets_of(group))
        except Mismatch:
            return

    def _end_of(self, key: int) -> int:
        keys = self._index.keys
        return int(keys[key + 1]) if key + 1 < len(keys) else self._index.num_packets

    def _frames(self, segment: Segment, skip: bool) -> Iterator[Any]:
        unsent = set(segment.rows)
        self._context.flush_buffers()
        for packet in self._packets_of(segment):
            self._skip_unreferenced(skip and packet.pts not in unsent)
            unsent.discard(packet.pts)
            yield from self._context.decode(packet)
            if not unsent:
                break
        else:
            raise Mismatch(f"no packet with pts {min(unsent)} in its group")
        yield from self._context.decode(None)

    def _skip_unreferenced(self, skip: bool) -> None:
        if skip is not self._skipping:
            self._context.skip_frame = "NONREF" if skip else "DEFAULT"
            self._skipping = skip

    def _packets_of(self, segment: Segment) -> Iterator[Any]:
        """From the key packet on, up to segment.stop; from an earlier one if a wanted picture is shown before it."""
        key = segment.key
        packet = self._key_packet(key)
        while key > 0 and packet.pts > min(segment.rows, default=packet.pts):
            key -= 1
            packet = self._key_packet(key)
        yield packet
        while self._position < segment.stop:
            if self._stop.is_set():
                raise Cancelled
            following = self._next()
            if following is None:
                return
            yield following

    def _next(self) -> Any | None:
        for packet in self._packets:
            if packet.size:
                self._position += 1
                return packet
        return None

    def _key_packet(self, key: int) -> Any:
        """Read the key packet, from where the reading stands or after a seek."""
        ahead = int(self._index.keys[key]) - self._position
        if ahead != 0 and not (self._reads_on and 0 < ahead < READ_AHEAD_PACKETS):
            packet = self._sought(key)
            if packet is not None:
                return packet
            ahead = self._rewound(key)
        for _ in range(ahead):
            self._next()
        packet = self._next()
        if packet is None or not self._is_key(packet, key):
            raise Mismatch(f"packet {self._position} differs from the index")
        return packet

    def _is_key(self, packet: Any, key: int) -> bool:
        time = packet.dts if self._index.by_dts else packet.pts
        return bool(packet.is_keyframe and time == self._index.key_times[key])

    def _sought(self, key: int) -> Any | None:
        """Seek to the key packet and read it; None if the container does not find it."""
        target = int(self._index.key_times[key])
        for back in SEEK_BACK_SECONDS:
            try:
                time = target - int(back / self._stream.time_base)
                self._container.seek(time, stream=self._stream, backward=True)
            except OSError:
                continue
            packet = self._read_up_to(key, target)
            if packet is not None:
                self._position = int(self._index.keys[key]) + 1
                return packet
        return None

    def _read_up_to(self, key: int, target: int) -> Any | None:
        """Drop packets before the target; None after overshooting it."""
        self._packets = self._container.demux(self._stream)
        while (packet := self._next()) is not None:
            if self._is_key(packet, key):
                return packet
            time = packet.dts if self._index.by_dts else packet.pts
            if packet.is_keyframe and (time is None or time > target):
                return None
        return None

    def _rewound(self, key: int) -> int:
        """Go back to the start of the file; how many packets lie before the key packet."""
        first = int(min(self._index.key_times[0], self._index.frame_pts[0]))
        self._container.seek(first, stream=self._stream, backward=True)
        self._packets = self._container.demux(self._stream)
        self._position = 0
        return int(self._index.keys[key])


class CountingDecoder:
    """Decodes from the start and counts; for files whose packets do not say which frame they hold."""

    def __init__(self, container: Any, media: Media, *, threads: int, stop: Event) -> None:
        self._container = container
        self._stop = stop
        self._stream = video_stream(container, media.source)
        set_threads(self._stream.codec_context, threads)

    def decode(self, segment: Segment, *, tolerant: bool = False) -> Iterator[tuple[int, Any]]:
        """Like SegmentDecoder.decode, `segment.rows` being keyed by frame number."""
        frames = all_frames(self._container, self._stream, self._stop, tolerant=tolerant)
        for number, frame in enumerate(frames):
            if number in segment.rows:
                yield number, frame
            if number + 1 >= segment.stop:
                return
        raise Mismatch("fewer frames came than were counted")
