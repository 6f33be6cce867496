"""Decode segments: seek to the key packet, check it, feed packets, hand over the wanted frames."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event
from typing import Any

import numpy as np
from av.video.frame import PictureType

from ..index.media import Media
from ..index.packets import FrameIndex
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
        self._pts = index.packets.pts
        self._start: int | None = None
        """pts of the key packet whose frame has not come out yet."""

    def decode(self, segment: Segment, *, skip: bool = True) -> Iterator[tuple[int, Any]]:
        """Frames come in display order. Raises Mismatch if one of them does not come, or packets differ.

        `skip=False` decodes also the pictures that nothing refers to, as a sequential decode does; without it,
        Damaged is raised where that makes a difference.
        """
        missing = set(segment.rows)
        last_pts: int | None = None
        skipping = skip and self._skips and self._index.order_stated
        for frame in self._frames(segment, skipping):
            if frame.pts is None or (last_pts is not None and frame.pts <= last_pts):
                raise Mismatch(f"frame times do not ascend around {last_pts}")
            if self._start is not None and frame.pts >= self._start:
                self._check_start(frame)
            elif not skipping and last_pts is not None and self._start is None:
                self._check_next(last_pts, frame.pts)
            last_pts = frame.pts
            if frame.is_corrupt and skipping:
                raise Damaged
            if frame.pts in missing:
                missing.remove(frame.pts)
                yield frame.pts, frame
        if missing:
            raise Mismatch(f"no frame with pts {min(missing)} came out of its group")

    def _check_start(self, frame: Any) -> None:
        """Raises Mismatch unless the group's key frame stands alone."""
        if frame.pts != self._start or not (frame.key_frame or frame.pict_type == PictureType.I):
            raise Mismatch(f"decoding does not start at the key frame with pts {self._start}")
        self._start = None

    def _check_next(self, last_pts: int, pts: int) -> None:
        """Raises Mismatch if a picture between the two did not come out."""
        last, number = np.searchsorted(self._index.frame_pts, (last_pts, pts))
        if number != last + 1:
            raise Mismatch(f"no picture came out for frame {last + 1}")

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
        self._start = None
        for packet in self._packets_of(segment):
            self._skip_unreferenced(skip and packet.pts not in unsent)
            unsent.discard(packet.pts)
            yield from self._context.decode(packet)
            if not unsent and self._index.order_stated:
                break
        if unsent:
            raise Mismatch(f"no packet with pts {min(unsent)} in its group")
        if self._position == self._index.num_packets and self._next() is not None:
            raise Mismatch(f"there are more than {self._index.num_packets} packets")
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
        self._start = packet.pts if self._index.packets.shown[self._index.keys[key]] else None
        yield packet
        while self._position < segment.stop:
            if self._stop.is_set():
                raise Cancelled
            following = self._next()
            if following is None:
                return
            if following.pts != self._pts[self._position - 1]:
                raise Mismatch(f"packet {self._position - 1} has another time than the index says")
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
        there = packet.is_keyframe and time == self._index.key_times[key]
        return bool(there and packet.pts == self._pts[self._index.keys[key]])

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
        self._media = media
        self._stop = stop
        self._stream = video_stream(container, media.source)
        set_threads(self._stream.codec_context, threads, kind="AUTO")

    def decode(self, segment: Segment, *, tolerant: bool = False) -> Iterator[tuple[int, Any]]:
        """Like SegmentDecoder.decode, `segment.rows` being keyed by frame number."""
        frames = all_frames(self._container, self._stream, self._stop, tolerant=tolerant)
        total = self._media.info.num_frames
        number = -1
        for number, frame in enumerate(frames):
            self._check(number, frame)
            if number in segment.rows:
                yield number, frame
            if number + 1 >= segment.stop and number + 1 < total:  # at the last frame, whether another one comes
                return
        if number + 1 < segment.stop:
            raise Mismatch(f"{number + 1} frames came, where {total} were expected")

    def _check(self, number: int, frame: Any) -> None:
        expected = self._media.expected_pts
        if number >= self._media.info.num_frames:
            raise Mismatch(f"more frames came than the {number} that were expected")
        if expected is not None and frame.pts != expected[number]:
            raise Mismatch(f"frame {number} has another time than its packet")
