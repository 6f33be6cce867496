"""From a source to a Media, within the deadline: what every way of reading does first, and its options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from .decode.block import Mismatch
from .decode.picture import INTERPOLATIONS
from .decode.resize import ANTIALIASED, RESIZES, torchvision_resize
from .errors import DecodeError, LimitError, QuickDecodeError, ReadTimeoutError, RequestError, SourceError
from .index.media import Media
from .index.packets import Way
from .index.probe import inspect
from .plan.sample import is_number, whole_number
from .source.limits import DEFAULT_LIMITS, LESS, Limits
from .source.source import Source, VideoSource, describe, resolve
from .threads.cores import usable_cores
from .threads.pool import Cancelled, Deadline, call

ON_ERROR = ("raise", "nearest")


@dataclass(frozen=True)
class Options:
    """How to read, whatever is read."""

    workers: int | None
    """None: what the process's cores allow when decoding begins."""
    on_error: str
    deadline: Deadline
    limits: Limits
    interpolation: str
    stream: int
    resize: str

    @staticmethod
    def of(
        workers: int | None = None,
        on_error: str = "raise",
        timeout_seconds: float | None = None,
        limits: Limits = DEFAULT_LIMITS,
        interpolation: str = "bicubic",
        stream: int = 0,
        resize: str = "fast",
    ) -> Options:
        """Check the arguments of the same names. Raises RequestError."""
        if workers is None:
            usable_cores()  # raises if its variable is malformed
        else:
            workers = whole_number("workers", workers, at_least=1)
        if on_error not in ON_ERROR:
            raise RequestError(f"on_error={on_error!r}; it must be one of {', '.join(ON_ERROR)}.")
        if timeout_seconds is not None and not (is_number(timeout_seconds) and timeout_seconds > 0):
            raise RequestError(f"timeout_seconds={timeout_seconds!r}; it must be a number above 0, or None.")
        if interpolation not in INTERPOLATIONS:
            raise RequestError(f"interpolation={interpolation!r}; it must be one of {', '.join(INTERPOLATIONS)}.")
        if not isinstance(limits, Limits):
            raise RequestError(f"limits={limits!r}; it must be a quickdecode.Limits.")
        stream = whole_number("stream", stream, at_least=0)
        check_resize(resize, interpolation)
        return Options(workers, on_error, Deadline(timeout_seconds), limits, interpolation, stream, resize)

    def restarted(self) -> Options:
        """The same with as much time as in the beginning."""
        return replace(self, deadline=Deadline(self.deadline.seconds))


def check_resize(resize: str, interpolation: str = "bicubic") -> None:
    """Raises RequestError if there is no such way of resizing, or it cannot be used here."""
    if resize not in RESIZES:
        raise RequestError(f"resize={resize!r}; it must be one of {', '.join(RESIZES)}.")
    if resize == "fast":
        return
    if interpolation not in ANTIALIASED:
        raise RequestError(
            f"interpolation={interpolation!r} with resize={resize!r}; torchvision's antialiased resize is one of "
            f'{", ".join(ANTIALIASED)}; ask for one of these, or for resize="fast".'
        )
    torchvision_resize(resize, interpolation)


def checked_size(size: tuple[int, int] | None) -> tuple[int, int] | None:
    """`size` as given. Raises RequestError unless it is two whole numbers above 0, or None."""
    if size is None:
        return None
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise RequestError(f"size={size!r}; it must be (height, width) in pixels, or None for the file's own size.")
    height, width = (whole_number("a side of size", side, at_least=1) for side in size)
    return height, width


@contextmanager
def in_time(source: VideoSource, options: Options) -> Iterator[None]:
    """Turn a missed deadline into a ReadTimeoutError, want of memory into a LimitError; so every error is ours."""
    try:
        yield
    except ReadTimeoutError:
        raise
    except TimeoutError as error:
        raise ReadTimeoutError(
            f"{describe(source)}: not read within timeout_seconds={options.deadline.seconds}; allow more time, ask "
            "for fewer frames, or check whether the file is damaged."
        ) from error
    except Cancelled as error:
        raise QuickDecodeError(f"{describe(source)}: given up, since the program is ending.") from error
    except MemoryError as error:
        raise LimitError(f"{describe(source)}: out of memory; {LESS}.") from error


def resolved_in_time(source: VideoSource, options: Options) -> Source:
    """resolve() on a thread of its own, since it may be a download."""
    return call(lambda stop: resolve(source, limits=options.limits, stream=options.stream, stop=stop), options.deadline)


def look(source: Source, at_least: Way, why: str | None, options: Options) -> Media:
    """inspect() on a thread of its own, since FFmpeg may get stuck."""
    return call(
        lambda stop: inspect(source, at_least=at_least, why=why, limits=options.limits, stop=stop),
        options.deadline,
    )


def look_closer(media: Media, mismatch: Mismatch, options: Options) -> Media:
    """The Media with frames numbered in a surer way. Raises DecodeError if there is none."""
    if media.way == Way.DECODING:
        name = media.source.name
        raise DecodeError(f"{name}: {mismatch}; the file is damaged, re-encode it.") from mismatch
    return look(media.source, Way(media.way + 1), str(mismatch), options)


def look_wholly(media: Media, why: str, options: Options) -> Media:
    """The Media with every frame decoded and counted, where packets only suggest how many there are."""
    return look(media.source, Way.DECODING, why, options)


def check_whole(media: Media, options: Options) -> None:
    """Raises SourceError if the file is known to be cut short, unless what is left of it is asked for."""
    info = media.info
    if info.truncated is not None and options.on_error != "nearest":
        raise SourceError(
            f"{info.name}: the file is cut short ({info.truncated}); download or copy it again, or pass "
            f'on_error="nearest" to read the {info.num_frames} frames that are left, or name frames by their indices.'
        )
