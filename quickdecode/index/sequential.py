"""The plain way through a file: its video stream, and every frame of it in order. This is what frame numbers mean."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event
from typing import Any

import av

from ..errors import RequestError, SourceError
from ..source.source import Source
from ..threads.pool import Cancelled

ATTACHED_PICTURE = 0x0400


def video_stream(container: Any, source: Source) -> Any:
    """The video stream that `source` names, cover pictures not counted.

    Raises SourceError if there is none or its decoder is not allowed, RequestError if there are fewer.
    """
    name = source.name
    streams = [each for each in container.streams.video if not each.disposition.value & ATTACHED_PICTURE]
    if not streams:
        kinds = sorted({each.type for each in container.streams}) or ["nothing"]
        raise SourceError(f"{name}: no video stream, only {', '.join(kinds)}; pass a file that has pictures.")
    if source.stream >= len(streams):
        raise RequestError(
            f"{name}: stream={source.stream}, but the file has {len(streams)} video stream(s); the last one is "
            f"{len(streams) - 1}."
        )
    stream = streams[source.stream]
    if stream.codec_context is None:
        raise SourceError(f"{name}: FFmpeg has no decoder for the video's codec; re-encode it, e.g. as H.264.")
    source.limits.check_codec(name, stream.codec_context.name)
    return stream


def set_threads(context: Any, threads: int, kind: str = "FRAME") -> None:
    """Before the first packet: how many frames (or with "AUTO", where that cannot be, slices) are decoded at a time."""
    context.thread_count = threads
    context.thread_type = kind if threads > 1 else "NONE"


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
