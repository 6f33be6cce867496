"""Which frames are meant: one request, turned into frame numbers."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import RequestError
from ..index.probe import Media


@dataclass(frozen=True)
class Request:
    """What read_video was asked for: at most one of num_frames, fps and indices; none means every frame."""

    num_frames: int | None = None
    fps: float | None = None
    indices: tuple[int, ...] | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None

    @staticmethod
    def of(
        num_frames: int | None,
        fps: float | None,
        indices: Iterable[int] | None,
        start_seconds: float | None,
        end_seconds: float | None,
    ) -> Request:
        """Check everything that can be checked without a file. Raises RequestError."""
        given = {"num_frames": num_frames, "fps": fps, "indices": indices}
        named = [name for name, value in given.items() if value is not None]
        if len(named) > 1:
            raise RequestError(f"{' and '.join(named)} were given; pass one of num_frames, fps and indices.")
        if indices is not None and (start_seconds is not None or end_seconds is not None):
            raise RequestError("indices count from the start of the file; leave out start_seconds and end_seconds.")
        if num_frames is not None:
            num_frames = whole_number("num_frames", num_frames, at_least=1)
        if fps is not None and not (is_number(fps) and 0 < fps < math.inf):
            raise RequestError(f"fps={fps!r}; it must be a finite number above 0.")
        wanted = None if indices is None else tuple(whole_number("an index", i, at_least=0) for i in indices)
        if wanted == ():
            raise RequestError("indices is empty; name at least one frame.")
        for name, value in (("start_seconds", start_seconds), ("end_seconds", end_seconds)):
            if value is not None and not (is_number(value) and 0 <= value < math.inf):
                raise RequestError(f"{name}={value!r}; it must be a finite number of seconds, 0 or more.")
        return Request(num_frames, fps, wanted, start_seconds, end_seconds)


def whole_number(name: str, value: Any, *, at_least: int) -> int:
    """`value` as an int. Raises RequestError unless it is a whole number of `at_least` or more."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < at_least:
        raise RequestError(f"{name} is {value!r}; it must be a whole number, {at_least} or more.")
    return int(value)


def is_number(value: Any) -> bool:
    """Whether `value` is a real number; True and False are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def frame_indices(request: Request, media: Media, *, clamp: bool = False) -> list[int]:
    """The frame numbers that `request` means in this file, in the order in which they are to be delivered.

    num_frames: evenly spaced from the first to the last frame of the range, both included, rounded to frames.
    fps: the frame on screen at start, start + 1/fps, ...: by time, so variable frame rates come out right.
    `clamp` lets indices beyond the last frame through, for the caller to replace.
    """
    if request.indices is not None:
        return list(request.indices) if clamp else _checked(request.indices, media)
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


def _checked(indices: tuple[int, ...], media: Media) -> list[int]:
    total = media.info.num_frames
    beyond = [i for i in indices if i >= total]
    if beyond:
        raise RequestError(
            f"{media.info.name}: index {beyond[0]} was asked for, but the file has {total} frames; "
            f"the last one has index {total - 1}."
        )
    return list(indices)


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


EPSILON = 1e-6
"""Seconds; far below any frame duration, far above the rounding of a float."""


def _on_screen(request: Request, media: Media, first: int, last: int) -> list[int]:
    fps = float(request.fps or 0.0)
    begin = max(request.start_seconds or 0.0, float(media.seconds[first]))
    end = media.info.duration_seconds
    if request.end_seconds is not None:
        end = min(end, request.end_seconds)
    count = max(math.ceil((end - begin) * fps - EPSILON), 1)
    times = begin + np.arange(count) / fps
    found = np.searchsorted(media.seconds, times + EPSILON, side="right") - 1
    return [int(i) for i in np.clip(found, first, last)]


def _in_range(request: Request) -> str:
    if request.start_seconds is None and request.end_seconds is None:
        return ""
    return " in the given time range"
