"""One pass over a file's packets: as far as the first frame, and on to the end only if that is asked for."""

from __future__ import annotations

from threading import Event
from typing import Any

import av

from ..errors import SourceError
from ..threads.pool import Cancelled
from .packets import PacketLog, Packets


class Scan:
    """Reads packets of one stream, and decodes them until the first frame comes out."""

    def __init__(self, container: Any, stream: Any, name: str, stop: Event) -> None:
        """Raises SourceError if no frame can be decoded."""
        self._log = PacketLog(stream.codec_context.name)
        self._packets = container.demux(stream)
        self._stop = stop
        self._sent = 0
        self.first: Any = self._first_frame()
        if self.first is None:
            raise SourceError(f"{name}: no video frame can be decoded; the file is damaged or truncated.")
        self.delay: int = getattr(stream.codec_context, "reorder_depth", self._sent - 1)
        """By how many packets the decoder is set to reorder."""

    def _first_frame(self) -> Any | None:
        for packet in self._packets:
            self._add(packet)
            try:
                frames = packet.decode()
            except av.FFmpegError:  # a recording may start in the middle of a group of pictures
                continue
            self._sent += 1
            if frames:
                return frames[0]
        return None

    @property
    def packets(self) -> Packets:
        """Those that were read so far."""
        return self._log.packets()

    def to_the_end(self) -> Packets:
        """All of them."""
        for packet in self._packets:
            self._add(packet)
        return self.packets

    def _add(self, packet: Any) -> None:
        if self._stop.is_set():
            raise Cancelled
        if packet.size:
            self._log.add(packet)
