"""on_error="nearest": what to show instead of frames that a damaged file cannot give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import av

from ..plan.blocks import Segment


def nearest_frames(
    decode: Callable[[int], Iterator[Any]], segment: Segment, num_keys: int
) -> tuple[dict[int, int], Iterator[tuple[Any, list[int]]]]:
    """For every row of `segment` the frame nearest in time: wanted pts -> pts of the frame given, and frames with rows.

    `decode(key)` yields what can be decoded of a group of pictures, passing over errors. The segment's own group
    is tried first, then the ones before it, then the ones after it. Empty if the whole file gives nothing.
    """
    for key in [*range(segment.key, -1, -1), *range(segment.key + 1, num_keys)]:
        there = [frame.pts for frame in decode(key) if frame.pts is not None]
        if there:
            break
    else:
        return {}, iter(())
    chosen = {pts: min(there, key=lambda other, pts=pts: abs(other - pts)) for pts in segment.rows}  # type: ignore[misc]

    def frames() -> Iterator[tuple[Any, list[int]]]:
        for frame in decode(key):
            rows = [row for pts, rows in segment.rows.items() if chosen[pts] == frame.pts for row in rows]
            if rows:
                yield frame, rows

    return chosen, frames()


def tolerant(decode: Callable[[Any], list[Any]], packets: Iterator[Any]) -> Iterator[Any]:
    """The frames that come out of `packets` and of the final drain, errors passed over."""
    for packet in [*packets, None]:
        try:
            frames = decode(packet)
        except av.FFmpegError:
            continue
        yield from frames
