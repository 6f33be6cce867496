"""stream_video: the frames of read_video a few at a time, while later ones are still being decoded."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from .decode.block import Mismatch
from .decode.fill import Order, fill
from .decode.ring import Ring, ring_bytes
from .decode.room import empty_frames
from .decoded import FrameBlock
from .errors import DecodeError, RequestError
from .index.media import Media, VideoInfo
from .index.packets import Way
from .opening import Options, check_whole, checked_size, in_time, look, look_closer, look_wholly, resolved_in_time
from .plan.sample import Request, whole_number
from .read import Choice, requested, settle
from .source.limits import DEFAULT_LIMITS, Limits
from .source.source import VideoSource
from .threads.cores import shared_cores
from .threads.pool import Crew


class VideoStream:
    """What stream_video returns: facts that are known at once, and the frames, in order, by iterating."""

    def __init__(
        self,
        source: VideoSource,
        choose: Callable[[Media], Choice],
        block_frames: int,
        options: Options,
        *,
        by_number: bool = False,
    ) -> None:
        """
        Args:
            choose: names the frames, in ascending order, and their size once the file is known; asked again if its
                frames have to be numbered in a surer way.
            block_frames: how many frames the reader will take at a time, about.
            by_number: as of read_chosen.
        """
        self.source, self.options, self.block_frames = source, options, block_frames
        self._choose = choose
        with in_time(source, options):
            resolved = resolved_in_time(source, options)
            media = look(resolved, Way.TABLE, None, options)
            if not by_number:
                check_whole(media, options)
            if media.irregular:  # once frames are delivered it is late to find that there are more, or fewer
                media = look_wholly(media, media.info.counted or "", options)
            self.media, (self.indices, self.chosen_size) = settle(media, choose, options)
        """(T,) numbers of the frames to come, ascending; and the size that was asked for, None for the file's own."""
        self.replaced: dict[int, int] = {}
        """Frames that are there -> those given instead, as far as it is known."""
        options.limits.check_size(self.info.name, *self.size)
        options.limits.check_count(self.info.name, len(self.indices))

    @property
    def info(self) -> VideoInfo:
        return self.media.info

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames."""
        return self.chosen_size or (self.info.height, self.info.width)

    @property
    def ascending(self) -> bool:
        """Whether the frames were chosen in the order in which the file gives them; others cannot be streamed."""
        return self.indices == sorted(self.indices)

    @property
    def timestamps(self) -> list[float]:
        """(T,) start of each frame in seconds after the start of the first frame of the file."""
        return self.seconds(0, len(self))

    def seconds(self, begin: int, end: int) -> list[float]:
        """Timestamps of rows [begin, end)."""
        seconds: list[float] = self.media.seconds[self.indices[begin:end]].tolist()
        return seconds

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.indices)

    def __iter__(self) -> Iterator[FrameBlock]:
        """Blocks of block_frames frames (the last may be shorter). Raises what read_video raises."""
        with Reading(self) as reading:
            while (begin := reading.position) < len(self):
                frames = reading.take(min(self.block_frames, len(self) - begin))
                if len(frames):
                    yield self._block(frames, begin)

    def _block(self, frames: torch.Tensor, begin: int) -> FrameBlock:
        asked = self.indices[begin : begin + len(frames)]
        last = self.info.num_frames - 1
        given = [min(max(frame, 0), last) for frame in asked]
        indices = [self.replaced.get(frame, frame) for frame in given]
        replaced = {frame: shown for frame, shown in zip(asked, indices, strict=True) if frame != shown}
        seconds: list[float] = self.media.seconds[indices].tolist()
        return FrameBlock(frames, indices, seconds, replaced)

    def look_closer(self, mismatch: Mismatch, done: int, *, same: bool) -> None:
        """Number the frames in a surer way and choose again; those delivered cannot be taken back.

        `same`: neither can the others. Raises DecodeError if the new choice does not fit.
        """
        self.media = look_closer(self.media, mismatch, self.options)
        indices, size = self._choose(self.media)
        given, promised = (indices, self.indices) if same else (indices[:done], self.indices[:done])
        if given != promised or size != self.chosen_size:
            raise DecodeError(
                f"{self.info.name}: its table of frames turned out wrong after {done} frames were delivered; "
                "read it without streaming (read_video, or register() without stream=True), which can start again."
            )
        self.indices = indices


class Reading:
    """One pass over a stream's frames from row `first` on. Threads decode ahead from the moment it is made.

    They stop at the last frame, after an error, on close(), and when the reading is dropped.
    """

    def __init__(self, stream: VideoStream, first: int = 0, *, same: bool = False) -> None:
        """`same`: the stream's frame numbers have been promised to somebody, so they must stay what they are."""
        self.stream, self._same = stream, same
        self.position = first
        """The next row."""
        self._start()

    def _start(self) -> None:
        stream, options = self.stream, self.stream.options
        wanted = [min(max(frame, 0), stream.info.num_frames - 1) for frame in stream.indices[self.position :]]
        picture = (3, *stream.size)
        options.limits.check_delivered(stream.info.name, ring_bytes(picture, len(wanted), stream.block_frames))
        with in_time(stream.source, options), shared_cores(options.workers) as workers:
            self.ring = Ring(picture, len(wanted), stream.block_frames, workers)
            how = options.resize, options.interpolation, options.on_error == "nearest"
            order = Order(stream.media, wanted, stream.size, self.ring, *how, stream.replaced)
            self._crew = fill(order, workers=workers, deadline=options.deadline)
        self._reports = iter(self._crew)
        self._process = os.getpid()
        self.close = weakref.finalize(self, _stop, self.ring, self._crew, os.getpid())

    def take(self, count: int, *, pinned: bool = False, give_way: bool = False) -> torch.Tensor:
        """The next `count` frames, (count, 3, H, W) uint8; fewer where the file turns out to have fewer.

        Args:
            pinned: put them in page-locked memory.
            give_way: what the caller does with them needs the cores more than decoding the next ones does.
        """
        if os.getpid() != self._process:
            raise RequestError(
                f"{self.stream.info.name}: this stream was begun in another process, whose threads a fork leaves "
                "behind; call stream_video in the process that reads it."
            )
        if give_way:
            self._crew.give_way()
        options = self.stream.options
        out = empty_frames(self.stream.info.name, (count, 3, *self.stream.size), options.limits, pinned=pinned)
        try:
            with in_time(self.stream.source, options):
                out = out[: self._take(out)]
        except BaseException:
            self.close()
            raise
        if self.position == len(self.stream):
            self.close()
        return out

    def _take(self, out: torch.Tensor) -> int:
        pictures, taken = out.numpy(), 0
        while taken < len(pictures) and self.position < len(self.stream):
            ready = self.ring.ready(len(pictures) - taken)
            if ready:
                self.ring.take(pictures[taken : taken + ready])
                taken += ready
                self.position += ready
                continue
            try:
                self.ring.fill(next(self._reports))
            except Mismatch as mismatch:
                self.close()
                self.stream.look_closer(mismatch, self.position, same=self._same)
                if self.position < len(self.stream):
                    self._start()
        return taken

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _stop(ring: Ring, crew: Crew[Any, Any], process: int) -> None:
    if os.getpid() == process:  # a forked process has neither the threads nor, perhaps, the ring's lock
        ring.close()
        crew.close()


def stream_video(
    source: VideoSource,
    *,
    block_frames: int = 16,
    num_frames: int | None = None,
    fps: float | None = None,
    indices: Iterable[int] | None = None,
    at_seconds: Iterable[float] | None = None,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    size: tuple[int, int] | None = None,
    interpolation: str = "bicubic",
    resize: str = "fast",
    stream: int = 0,
    workers: int | None = None,
    on_error: str = "raise",
    timeout_seconds: float | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> VideoStream:
    """Decode like read_video, but deliver `block_frames` frames at a time, in order, as soon as they are there.

    Decoding runs ahead of the consumer by a bounded number of frames. Arguments and errors are those of
    read_video; indices must ascend, and `timeout_seconds` bounds the whole stream, the consumer's time included.

    >>> for block in stream_video("talk.mp4", fps=1, size=(252, 448)):  # doctest: +SKIP
    ...     encode(block.frames)  # (16, 3, 252, 448)
    """
    request = Request.of(num_frames, fps, indices, start_seconds, end_seconds, at_seconds)
    block_frames = whole_number("block_frames", block_frames, at_least=1)
    options = Options.of(workers, on_error, timeout_seconds, limits, interpolation, stream, resize)
    choose = requested(request, checked_size(size), options)
    video = VideoStream(source, choose, block_frames, options, by_number=request.by_number)
    if not video.ascending:
        raise RequestError("the frames asked for are not in ascending order; sort them, or use read_video.")
    return video
