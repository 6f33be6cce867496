"""The errors a read can end in, and the one place where FFmpeg's errors are translated into them.

    QuickDecodeError
        SourceError      the file cannot be opened, or holds no video
        RequestError     the arguments ask for something the file does not have (also a ValueError)
            FrameIndexError  a number of a frame that the file does not have (also an IndexError)
        DecodeError      a wanted frame cannot be decoded; names the file, the frame and its time
        LimitError       the file, or what was asked of it, is larger than the limits of the call
        ReadTimeoutError the call took longer than its timeout_seconds (also a TimeoutError)
        HostError        register() does not find what it has to patch (also a RuntimeError)

Every message says what was given, what is allowed and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import av


class QuickDecodeError(Exception):
    """Anything that quickdecode refuses or fails to do."""


class SourceError(QuickDecodeError):
    """The source is missing, empty, unreadable, or contains no video stream."""


class RequestError(QuickDecodeError, ValueError):
    """An argument is out of range for this video."""


class FrameIndexError(RequestError, IndexError):
    """The number of a frame is beyond those of this video."""


class DecodeError(QuickDecodeError):
    """A frame that was asked for cannot be decoded from this file."""


class LimitError(QuickDecodeError):
    """The file, or what was asked of it, exceeds a limit, or the memory that is free."""


class ReadTimeoutError(QuickDecodeError, TimeoutError):
    """The read was given up after timeout_seconds."""


class HostError(QuickDecodeError, RuntimeError):
    """A library that register() was to patch is missing, or lacks the attribute that is to be patched."""


FOREIGN_ERRORS = (av.FFmpegError, OSError, EOFError, UnicodeError, IndexError, OverflowError, ValueError)
"""What PyAV raises on damaged files: FFmpeg's errors, and slips of its own, such as on a stream that appears late."""


def reason(error: BaseException) -> str:
    """The foreign error in a few words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextmanager
def translated(name: str, doing: str) -> Iterator[None]:
    """Turn FFmpeg's exceptions inside the block into a SourceError about the source called `name`."""
    try:
        yield
    except QuickDecodeError:
        raise
    except FOREIGN_ERRORS as error:
        raise SourceError(
            f"{name}: FFmpeg failed while {doing} ({reason(error)}). The file is damaged, "
            "truncated, or not a video; check it with a player, or re-encode it."
        ) from error
