"""Which frames are meant: one request, turned into frame numbers."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import FrameIndexError, RequestError
from ..index.media import Media


@dataclass(frozen=True)
class Request:
    """What read_video was asked for: at most one of num_frames, fps, indices and at_seconds; none: every frame."""

    num_frames: int | None = None
    fps: float | None = None
    indices: tuple[int, ...] | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None
    at_seconds: tuple[float, ...] | None = None

    @property
    def by_number(self) -> bool:
        """Whether it does not depend on how long the video is."""
        return self.indices is not None and min(self.indices) >= 0

    @staticmethod
    def of(
        num_frames: int | None = None,
        fps: float | None = None,
        indices: Iterable[int] | None = None,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        at_seconds: Iterable[float] | None = None,
    ) -> Request:
        """Check everything that can be checked without a file. Raises RequestError."""
        given = {"num_frames": num_frames, "fps": fps, "indices": indices, "at_seconds": at_seconds}
        named = [name for name, value in given.items() if value is not None]
        if len(named) > 1:
            raise RequestError(f"{' and '.join(named)} were given; pass one of {', '.join(given)}.")
        for name, one in (("indices", indices), ("at_seconds", at_seconds)):
            if one is not None and (start_seconds is not None or end_seconds is not None):
                raise RequestError(f"{name} count from the start of the file; leave out start_seconds and end_seconds.")
        if num_frames is not None:
            num_frames = whole_number("num_frames", num_frames, at_least=1)
        if fps is not None and not (is_number(fps) and 0 < fps < math.inf):
            raise RequestError(f"fps={fps!r}; it must be a finite number above 0.")
        wanted = None if indices is None else tuple(whole_number("an index", i) for i in _listed("indices", indices))
        times = None if at_seconds is None else tuple(_moment(time) for time in _listed("at_seconds", at_seconds))
        for name, value in (("start_seconds", start_seconds), ("end_seconds", end_seconds)):
            if value is not None and not (is_number(value) and 0 <= value < math.inf):
                raise RequestError(f"{name}={value!r}; it must be a finite number of seconds, 0 or more.")
        return Request(num_frames, fps, wanted, start_seconds, end_seconds, times)


def _listed(name: str, values: Any) -> list[Any]:
    """The entries of a list, an array, a tensor of one dimension, or anything else that can be iterated over."""
    try:
        listed = list(values.tolist() if hasattr(values, "tolist") else values)
    except TypeError:
        raise RequestError(f"{name}={values!r}; it must be a list, or a tensor of one dimension.") from None
    if not listed:
        raise RequestError(f"{name} is empty; name at least one frame.")
    return listed


def _moment(value: Any) -> float:
    if not is_number(value) or not 0 <= value < math.inf:
        raise RequestError(f"a time of at_seconds is {value!r}; it must be a finite number of seconds, 0 or more.")
    return float(value)


def whole_number(name: str, value: Any, *, at_least: int | None = None) -> int:
    """`value` as an int. Raises RequestError unless it is a whole number of `at_least` or more."""
    small = at_least is not None and isinstance(value, numbers.Integral) and value < at_least
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or small:
        raise RequestError(
            f"{name} is {value!r}; it must be a whole number{'' if at_least is None else f', {at_least} or more'}."
        )
    return int(value)


def is_number(value: Any) -> bool:
    """Whether `value` is a real number; True and False are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def frame_indices(request: Request, media: Media, *, clamp: bool = False) -> list[int]:
    """The frame numbers that `request` means in this file, in the order in which they are to be delivered.

    num_frames: evenly spaced from the first to the last frame of the range, both included, rounded to frames.
    fps: the frame on screen at start, start + 1/fps, ...: by time, so variable frame rates come out right.
    indices: those below 0 count from the end. at_seconds: the frames on screen then.
    `clamp` lets indices beyond the file's frames through, for the caller to replace, and takes the last frame for
    later times.
    """
    if request.indices is not None:
        return _numbered(request.indices, media, clamp)
    if request.at_seconds is not None:
        return _shown(request.at_seconds, media, clamp)
    first, last = _range(request, media)
    available = last - first + 1
    if request.num_frames is not None:
        if request.num_frames > available:
            raise RequestError(
                f"{media.info.name}: num_frames={request.num_frames}, but the file has {available} frames"
                f"{_in_range(request)}; ask for {available} or fewer."
            )
        return [int(i) for i in np.linspace(first, last, request.num_frames).round()]
    if request.fps is not None:
        return _on_screen(request, media, first, last)
    return list(range(first, last + 1))


def _numbered(indices: tuple[int, ...], media: Media, clamp: bool) -> list[int]:
    total = media.info.num_frames
    if min(indices) < 0 and not media.info.num_frames_exact:
        raise RequestError(f"{media.info.name}: index {min(indices)} counts from an end that is not known yet.")
    beyond = [i for i in indices if not -total <= i < total]
    if beyond and not clamp:
        raise FrameIndexError(
            f"{media.info.name}: index {beyond[0]} was asked for, but the file has {total} frames; "
            f"the last one has index {total - 1}, or -1, the first one 0, or -{total}."
        )
    return [i + total if -total <= i < 0 else i for i in indices]


def _shown(times: tuple[float, ...], media: Media, clamp: bool) -> list[int]:
    """The frames on screen at these times."""
    late = [time for time in times if time > media.info.duration_seconds + EPSILON]
    if late and not clamp:
        raise RequestError(
            f"{media.info.name}: the frame at {late[0]:g} s was asked for, but the video runs from 0 s to "
            f"{media.info.duration_seconds:g} s; choose times inside it."
        )
    found = np.searchsorted(media.seconds, np.array(times) + EPSILON, side="right") - 1
    return [int(i) for i in found.clip(0, media.info.num_frames - 1)]


def _range(request: Request, media: Media) -> tuple[int, int]:
    """First and last frame that start inside [start_seconds, end_seconds]."""
    start = request.start_seconds or 0.0
    duration = media.info.duration_seconds
    end = duration if request.end_seconds is None else request.end_seconds
    first = int(np.searchsorted(media.seconds, start - EPSILON, side="left"))
    last = int(np.searchsorted(media.seconds, end + EPSILON, side="right")) - 1
    if start > end or first > last:
        raise RequestError(
            f"{media.info.name}: no frame starts between {start:g} s and {end:g} s; the video runs from "
            f"0 s to {duration:g} s. Choose start_seconds and end_seconds inside it."
        )
    return first, last


LEAST_FRAME_BYTES = 100
"""What a frame to deliver takes at least, its number and time included."""
EPSILON = 1e-6
"""Seconds; far below any frame duration, far above the rounding of a float."""


def _on_screen(request: Request, media: Media, first: int, last: int) -> list[int]:
    fps = float(request.fps or 0.0)
    begin = max(request.start_seconds or 0.0, float(media.seconds[first]))
    end = media.info.duration_seconds
    if request.end_seconds is not None:
        end = min(end, request.end_seconds)
    count = max(math.ceil((end - begin) * fps - EPSILON), 1)
    media.source.limits.check_count(media.info.name, count)
    media.source.limits.check_delivered(media.info.name, count * LEAST_FRAME_BYTES)
    times = begin + np.arange(count) / fps
    found = np.searchsorted(media.seconds, times + EPSILON, side="right") - 1
    return [int(i) for i in np.clip(found, first, last)]


def _in_range(request: Request) -> str:
    if request.start_seconds is None and request.end_seconds is None:
        return ""
    return " in the given time range"
