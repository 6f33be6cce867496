"""Opening a container with FFmpeg so that no file makes it reach further, or take more, than the limits allow."""

from __future__ import annotations

from typing import IO, Any

import av

from .limits import Limits

MEMORY_BUFFER, WEB_BUFFER = 1 << 20, 1 << 16
"""Read at a time: from what is there, and from what has to be fetched."""
NO_STREAMS_YET = "stream_options were provided"
"""How PyAV says that a format tells its streams only while it is being read: FLV, MPEG-PS."""
CAN_SAY_SO = tuple(map(int, av.__version__.split(".")[:2])) >= (17, 1)
"""Up to PyAV 17.0.1 the process crashes instead, as it does for any options for decoders of such a format."""
WITH_HEADERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")
"""Formats that name every stream before it is read."""


def opened(path: str | None, file: IO[bytes] | None, name: str, limits: Limits) -> Any:
    """A container over `path`, or over `file`. Raises SourceError, LimitError, or FFmpeg's own errors."""
    whitelists = {"protocol_whitelist": "file" if path is not None else "none"}
    if limits.formats is not None:
        whitelists["format_whitelist"] = ",".join(sorted(limits.formats))
    if limits.codecs is not None:
        whitelists["codec_whitelist"] = ",".join(sorted(limits.codecs))
    decoding = decoder_options(limits)
    container = _open_if_streams_are_told(path, file, whitelists, decoding)
    if container is None:
        kind = _look_blindly(path, file, name, whitelists, limits)
        container = _open(path, file, whitelists, options=decoding if CAN_SAY_SO or kind in WITH_HEADERS else {})
    for stream in container.streams.video:
        if stream.codec_context is not None:
            stream.codec_context.options = decoding
    return container


def decoder_options(limits: Limits) -> dict[str, str]:
    """What a decoder has to be told before it is opened."""
    return {} if limits.frame_pixels is None else {"max_pixels": str(limits.frame_pixels)}


def _open_if_streams_are_told(
    path: str | None, file: IO[bytes] | None, whitelists: dict[str, str], decoding: dict[str, str]
) -> Any:
    """A container whose decoders get the options, or None where that cannot be known.

    Given options for single streams, PyAV refuses formats whose decoders would not get the others either.
    """
    if not CAN_SAY_SO:
        return None
    try:
        return _open(path, file, whitelists, options=decoding, stream_options=[{}])
    except ValueError as error:
        if NO_STREAMS_YET not in str(error):
            raise
        return None


def _look_blindly(
    path: str | None, file: IO[bytes] | None, name: str, whitelists: dict[str, str], limits: Limits
) -> str:
    """Check sizes before anything is decoded: with no decoder allowed, FFmpeg learns them from the headers alone.

    Returns:
        The format's name.
    """
    with _open(path, file, {**whitelists, "codec_whitelist": "none"}) as container:
        for stream in container.streams.video:
            if stream.codec_context is not None:
                limits.check_size(name, stream.codec_context.height, stream.codec_context.width)
        return str(container.format.name)


def _open(path: str | None, file: IO[bytes] | None, whitelists: dict[str, str], **options: Any) -> Any:
    arguments = {"metadata_errors": "replace", "container_options": whitelists, **options}
    if path is not None:  # the "file:" prefix keeps a name such as "http:x.mp4" from being a protocol
        return av.open("file:" + path, **arguments)
    assert file is not None
    file.seek(0)
    buffer = WEB_BUFFER if getattr(file, "fetches", False) else MEMORY_BUFFER
    return av.open(file, buffer_size=buffer, **arguments)
