"""The plain way through a file: its video stream, and every frame of it in order. This is what frame numbers mean."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event
from typing import Any

import av

from ..errors import SourceError
from ..threads.pool import Cancelled

ATTACHED_PICTURE = 0x0400


def video_stream(container: Any, name: str) -> Any:
    """The first real video stream (cover pictures do not count). Raises SourceError if there is none."""
    for stream in container.streams.video:
        if stream.disposition.value & ATTACHED_PICTURE:
            continue
        if stream.codec_context is None:
            raise SourceError(f"{name}: FFmpeg has no decoder for the video's codec; re-encode it, e.g. as H.264.")
        return stream
    kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
    raise SourceError(f"{name}: no video stream, only {', '.join(kinds)}; pass a file that has pictures.")


def set_threads(context: Any, threads: int) -> None:
    """Before the first packet: how many frames the decoder works on at a time."""
    context.thread_count = threads
    context.thread_type = "FRAME" if threads > 1 else "NONE"


def all_frames(
    container: Any, stream: Any, stop: Event, *, tolerant: bool, errors: list[Exception] | None = None
) -> Iterator[Any]:
    """A sequential decode; errors that are passed over are added to `errors`.

    Those before the first frame always are (a recording may start in the middle of a group of pictures), later
    ones only if `tolerant`.
    """
    started = False
    for packet in container.demux(stream):
        if stop.is_set():
            raise Cancelled
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            if started and not tolerant:
                raise
            if errors is not None:
                errors.append(error)
            continue
        started = started or bool(frames)
        yield from frames
