"""stream_video: the frames of read_video a few at a time, while later ones are still being decoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from threading import Semaphore
from typing import Any

import numpy as np
import torch

from .decode import Mismatch
from .errors import DecodeError, RequestError
from .fill import Order, fill
from .index import Way
from .limits import DEFAULT_LIMITS, Limits
from .picture import Pixels
from .plan import Block
from .probe import VideoInfo
from .read import Options, checked_size, in_time, look, look_closer, resolved_in_time
from .sample import Request, frame_indices, whole_number
from .source import VideoSource

BLOCKS_AHEAD_PER_WORKER = 4
"""How far decoding may run ahead of the consumer, in blocks of the plan; each holds the frames of a key frame or so."""


@dataclass(frozen=True, repr=False)
class FrameBlock:
    """Consecutive frames of a stream."""

    frames: torch.Tensor
    """(t, 3, H, W) uint8, RGB."""
    indices: list[int]
    """(t,) number of each frame in a sequential decode of the file."""
    timestamps: list[float]
    """(t,) start of each frame in seconds after the start of the first frame of the file."""

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return f"FrameBlock({len(self)} frames, {self.indices[0]} to {self.indices[-1]})"


class VideoStream:
    """What stream_video returns: facts that are known at once, and the frames, once, by iterating."""

    def __init__(self, source: VideoSource, request: Request, size: Any, block_frames: int, options: Options) -> None:
        self._source, self._request, self._options = source, request, options
        self._block_frames = block_frames
        with in_time(source, options):
            resolved = resolved_in_time(source, options)
            self._media = look(resolved, Way.TABLE, None, options)
        self._size: tuple[int, int] = size or (self.info.height, self.info.width)
        self.indices = frame_indices(request, self._media)
        """(T,) numbers of the frames to come, ascending."""
        options.limits.check_size(self.info.name, *self._size)
        options.limits.check_count(self.info.name, len(self.indices))
        if self.indices != sorted(self.indices):
            raise RequestError("indices are not in ascending order; sort them, or use read_video.")

    @property
    def info(self) -> VideoInfo:
        return self._media.info

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.indices)

    def __iter__(self) -> Iterator[FrameBlock]:
        """Blocks of block_frames frames (the last may be shorter). Raises what read_video raises."""
        held: list[Pixels] = []
        begin = ready = 0
        for pixels in self._in_order():
            held.append(pixels)
            ready += len(pixels)
            while ready - begin >= self._block_frames:
                yield self._block(held, begin, begin + self._block_frames)
                begin += self._block_frames
        if ready > begin:
            yield self._block(held, begin, ready)

    def _block(self, held: list[Pixels], begin: int, end: int) -> FrameBlock:
        """Take rows [begin, end) out of `held`, which starts with row `begin`."""
        frames = np.empty((end - begin, 3, *self._size), np.uint8)
        filled = 0
        while filled < len(frames):
            part = held[0][: len(frames) - filled]
            frames[filled : filled + len(part)] = part
            filled += len(part)
            held[0] = held[0][len(part) :]
            if not len(held[0]):
                held.pop(0)
        indices = self.indices[begin:end]
        return FrameBlock(torch.from_numpy(frames), indices, self._media.seconds[indices].tolist())

    def _in_order(self) -> Iterator[Pixels]:
        """Runs of frames, first to last; after a Mismatch it goes on where it was, frames numbered in a surer way."""
        done = 0
        with in_time(self._source, self._options):
            while done < len(self.indices):
                try:
                    for pixels in self._decoded(self.indices[done:]):
                        done += len(pixels)
                        yield pixels
                except Mismatch as mismatch:
                    self._media = look_closer(self._media, mismatch, self._options)
                    self._keep(done)

    def _decoded(self, wanted: list[int]) -> Iterator[Pixels]:
        workers = self._options.workers
        permits = Semaphore(workers * BLOCKS_AHEAD_PER_WORKER)
        buffers: dict[int, Pixels] = {}

        def buffer(block: Block) -> tuple[Pixels, int]:
            rows = block.rows
            buffers[rows[0]] = np.empty((len(rows), 3, *self._size), np.uint8)
            return buffers[rows[0]], rows[0]

        order = Order(self._media, wanted, self._size, buffer, self._options.interpolation)
        finished: set[int] = set()
        following = 0
        for block in fill(order, workers=workers, deadline=self._options.deadline, permits=permits):
            finished.add(block.rows[0])
            while following in finished:
                pixels = buffers.pop(following)
                following += len(pixels)
                permits.release()
                yield pixels

    def _keep(self, done: int) -> None:
        """Ask again which frames are wanted; those delivered cannot be taken back."""
        indices = frame_indices(self._request, self._media)
        if indices[:done] != self.indices[:done]:
            raise DecodeError(
                f"{self.info.name}: its table of frames turned out wrong after {done} frames were delivered; "
                "use read_video, which can start again."
            )
        self.indices = indices


def stream_video(
    source: VideoSource,
    *,
    block_frames: int = 16,
    num_frames: int | None = None,
    fps: float | None = None,
    indices: Iterable[int] | None = None,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    size: tuple[int, int] | None = None,
    interpolation: str = "bicubic",
    workers: int | None = None,
    timeout_seconds: float | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> VideoStream:
    """Decode like read_video, but deliver `block_frames` frames at a time, in order, as soon as they are there.

    Decoding runs ahead of the consumer by a bounded number of frames. Arguments and errors are those of
    read_video; indices must ascend, and `timeout_seconds` bounds the whole stream, the consumer's time included.

    >>> for block in stream_video("talk.mp4", fps=1, size=(252, 448)):  # doctest: +SKIP
    ...     encode(block.frames)  # (16, 3, 252, 448)
    """
    request = Request.of(num_frames, fps, indices, start_seconds, end_seconds)
    block_frames = whole_number("block_frames", block_frames, at_least=1)
    options = Options.of(workers, timeout_seconds=timeout_seconds, limits=limits, interpolation=interpolation)
    return VideoStream(source, request, checked_size(size), block_frames, options)
