"""VideoReader: one file, opened once, for many small reads."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from .decode.kept import Decoders
from .decoded import DecodedVideo
from .errors import RequestError
from .index.media import VideoInfo
from .index.packets import Way
from .opening import Options, check_whole, checked_size, in_time, look, look_wholly, resolved_in_time
from .plan.sample import Request
from .read import read_media, requested
from .source.limits import DEFAULT_LIMITS, Limits
from .source.source import VideoSource


class VideoReader:
    """A video that is looked at once and stays open, so that each of many small reads costs what it decodes.

    >>> with VideoReader("talk.mp4", size=(252, 448)) as video:  # doctest: +SKIP
    ...     video[0], video[-16:], video[[3, 5, 8]]  # (3, 252, 448), (16, 3, 252, 448), (3, 3, 252, 448) uint8
    ...     video.read(at_seconds=[1.5, 2.5]).timestamps

    It may be read from several threads. A forked process, and whoever gets a pickle of it, opens the file anew.
    """

    def __init__(
        self,
        source: VideoSource,
        *,
        size: tuple[int, int] | None = None,
        interpolation: str = "bicubic",
        resize: str = "fast",
        stream: int = 0,
        workers: int | None = None,
        on_error: str = "raise",
        timeout_seconds: float | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """Arguments and errors are those of read_video; `timeout_seconds` bounds each read, and the opening."""
        self._options = Options.of(workers, on_error, timeout_seconds, limits, interpolation, stream, resize)
        self._size = checked_size(size)
        with in_time(source, self._options):
            media = look(resolved_in_time(source, self._options), Way.TABLE, None, self._options)
            check_whole(media, self._options)
            if not media.info.num_frames_exact:  # len() is a promise
                media = look_wholly(media, media.info.counted or "", self._options)
            self._media = media
        self._again = functools.partial(
            VideoReader,
            self._media.source.path or source,
            size=size,
            interpolation=interpolation,
            resize=resize,
            stream=stream,
            workers=workers,
            on_error=on_error,
            timeout_seconds=timeout_seconds,
            limits=limits,
        )
        self._decoders = Decoders()
        self.close = weakref.finalize(self, self._decoders.close)
        """Close the file; reading afterwards is an error. Also done on leaving a `with` block, and when dropped."""

    @property
    def info(self) -> VideoInfo:
        """What probe() gives."""
        return self._media.info

    def __len__(self) -> int:
        """Number of frames."""
        return self.info.num_frames

    def __getitem__(self, index: Any) -> torch.Tensor:
        """(3, H, W) uint8 for a number, (T, 3, H, W) for a slice, a list, an array or a tensor of numbers."""
        if isinstance(index, slice):
            numbers: Any = range(*index.indices(len(self)))
            if not numbers:
                raise RequestError(f"{self.info.name}: frames {index} are none of {len(self)}; name at least one.")
            return self.read(indices=numbers).frames
        if hasattr(index, "__iter__") and getattr(index, "ndim", None) != 0:
            return self.read(indices=index).frames
        if getattr(index, "ndim", None) == 0:
            index = index.item()
        return self.read(indices=[index]).frames[0]

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Every frame, (3, H, W) uint8, one at a time; stream_video decodes ahead meanwhile."""
        for index in range(len(self)):
            yield self[index]

    def read(
        self,
        *,
        num_frames: int | None = None,
        fps: float | None = None,
        indices: Iterable[int] | None = None,
        at_seconds: Iterable[float] | None = None,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
    ) -> DecodedVideo:
        """What read_video gives for these arguments. Raises what it raises."""
        if not self.close.alive:
            raise RequestError(f"{self.info.name}: this VideoReader is closed; make a new one.")
        request = Request.of(num_frames, fps, indices, start_seconds, end_seconds, at_seconds)
        options = self._options.restarted()
        with in_time(self.info.name, options):
            choose = requested(request, self._size, options)
            video, self._media = read_media(self._media, choose, options, self._decoders)
        return video

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle opens the source again, in a DataLoader's spawned workers, say."""
        return self._again, ()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"VideoReader({self.info.name!r}: {len(self)} frames of {self.info.height} x {self.info.width})"
