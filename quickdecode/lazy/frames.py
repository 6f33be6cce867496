"""A VideoStream as a tensor: LazyTensor rows are frames, decoded ahead of whoever takes them in order."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import RLock
from typing import Any

import torch

from ..decoded import DecodedVideo
from ..index.media import Media
from ..opening import Options
from ..read import Choice, read_chosen
from ..source.source import VideoSource
from ..stream import Reading, VideoStream
from .rows import Piece
from .tensor import LazyTensor
from .transfer import to_device, wants_pinned

CPU = torch.device("cpu")
BLOCK_FRAMES = 16
"""How many frames a reader takes at a time, where it has not said so yet."""


def read_or_stream(
    source: VideoSource, choose: Callable[[Media], Choice], options: Options, *, stream: bool, resized: bool = False
) -> DecodedVideo:
    """read_chosen, or with `stream`, where that is possible, the same with frames that are still being decoded.

    `resized`: only if `choose` names a size.
    """
    if stream:
        video = VideoStream(source, choose, BLOCK_FRAMES, options)
        if video.ascending and (video.chosen_size is not None or not resized):
            return DecodedVideo(lazy_frames(video), video.indices, video.timestamps, video.info)
    return read_chosen(source, choose, options)


def lazy_frames(stream: VideoStream) -> LazyTensor:
    """(T, 3, H, W) uint8 on the CPU. Decoding starts now, unless another video is already being decoded ahead."""
    source = FrameSource(stream)
    source.start()
    return LazyTensor((Piece(source, 0, len(stream)),), (len(stream), 3, *stream.size), torch.uint8, CPU)


class FrameSource:
    """Frames of a stream. Whoever does not take them in order has them decoded again from where he asks."""

    step = 1
    _ahead: weakref.ref[FrameSource] | None = None

    def __init__(self, stream: VideoStream) -> None:
        self._stream = stream
        self._reading: Reading | None = None
        self._process = os.getpid()
        self._lock: AbstractContextManager[Any] = RLock()

    def start(self) -> None:
        """Decode ahead. Only one source does so before it is asked: many inputs may be prepared before one is used."""
        other = None if FrameSource._ahead is None else FrameSource._ahead()
        if other is None or other._reading is None:
            self._reading = Reading(self._stream, same=True)
            FrameSource._ahead = weakref.ref(self)

    def take(self, start: int, stop: int, device: torch.device) -> torch.Tensor:
        """(stop - start, 3, H, W) uint8. Raises what read_video raises."""
        with self._mine():
            if self._reading is None or self._reading.position != start:
                self.close()
                self._reading = Reading(self._stream, start, same=True)
            try:
                here = device.type == "cpu"
                frames = self._reading.take(stop - start, pinned=wants_pinned(device), give_way=here)
            except BaseException:
                self.close()
                raise
            if stop == len(self._stream):
                self.close()
        return to_device(frames, device)

    def close(self) -> None:
        """Stop decoding."""
        with self._mine():
            if self._reading is not None:
                self._reading.close()
                self._reading = None

    def _mine(self) -> AbstractContextManager[Any]:
        """The lock; in a forked process, which has none of the threads, a new one."""
        if self._process != os.getpid():
            self._process, self._lock, self._reading = os.getpid(), RLock(), None
        return self._lock
