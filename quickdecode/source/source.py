"""What a caller may pass as a video, brought to one shape: a local path, bytes in memory, or a file that is fetched."""

from __future__ import annotations

import base64
import binascii
import io
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import IO, TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote, urlsplit

from av.container import InputContainer

from ..errors import LimitError, SourceError, translated
from ..threads.pool import Cancelled, current_stop
from ..threads.stop import Stop
from .container import opened
from .limits import DEFAULT_LIMITS, Limits
from .names import short, without_secrets
from .store import Store, View
from .tables import refuse_false_tables

if TYPE_CHECKING:
    from .web import WebFile

VideoSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]

ACCEPTED = "a path, file:// or http(s):// URL, bytes, a binary file object, or a base64 data: URI"
PART_BYTES = 1 << 20
MEMORY_BYTES = 64 << 20
"""What a file object gives beyond this lies in a temporary file."""


@dataclass(frozen=True)
class Source:
    """A resolved source: exactly one of `path`, `data`, `store` and `web` is set."""

    name: str
    """How error messages call it."""
    path: str | None = None
    """Absolute."""
    data: bytes | None = field(default=None, repr=False)
    store: Store | None = field(default=None, repr=False)
    web: WebFile | None = field(default=None, repr=False)
    limits: Limits = field(default=DEFAULT_LIMITS, repr=False)
    stream: int = 0
    """Which of the file's video streams, cover pictures not counted."""

    @contextmanager
    def open(self, stop: Stop | None = None) -> Iterator[InputContainer]:
        """A fresh container, for one thread only; closed on exit.

        What is fetched for it meanwhile ends with `stop`, by default that of the thread's crew.
        """
        with ExitStack() as open_things:
            with translated(self.name, "opening it"):
                file = None if self.path is not None else open_things.enter_context(self.file(stop))
                container = opened(self.path, file, self.name, self.limits)
            yield open_things.enter_context(container)

    @contextmanager
    def file(self, stop: Stop | None = None) -> Iterator[IO[bytes]]:
        """The bytes themselves, to read them without FFmpeg; `stop` as for open()."""
        with ExitStack() as open_things:
            if self.path is not None:
                yield open_things.enter_context(open(self.path, "rb"))
            elif self.web is not None:
                yield View(open_things.enter_context(self.web.reader(stop or current_stop())))  # type: ignore[misc]
            else:
                yield View(self.store) if self.store is not None else io.BytesIO(self.data or b"")  # type: ignore[misc]

    @property
    def size(self) -> int:
        """Bytes."""
        if self.path is not None:
            return os.path.getsize(self.path)
        held = self.web or self.store
        return held.size if held is not None else len(self.data or b"")

    def identity(self) -> tuple[object, ...] | None:
        """A key that changes when the file does; None for what has no identity, and for a file gone since.

        What is found in a file depends on the frames that decoders refuse.
        """
        if self.web is not None and self.web.validator is not None:
            return (self.web.addresses[-1], self.web.validator, self.web.size, self.stream, self.limits.frame_pixels)
        if self.path is None:
            return None
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return (self.path, status.st_ino, status.st_size, status.st_mtime_ns, self.stream, self.limits.frame_pixels)


def resolve(
    source: VideoSource, *, limits: Limits = DEFAULT_LIMITS, stream: int = 0, stop: Stop | None = None
) -> Source:
    """The Source that `source` means. Raises SourceError if it is missing, empty or of a wrong type.

    A file of another process, or of a server, is read here, as long as `stop` is not set.
    """
    found = replace(_resolved(source, limits, stop or current_stop()), limits=limits, stream=stream)
    with translated(found.name, "looking at its tables"), found.file(stop) as file:
        refuse_false_tables(found.name, file, found.size, limits)
    return found


def _resolved(source: VideoSource, limits: Limits, stop: Stop) -> Source:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(source), f"<{len(source)} bytes>")
    if isinstance(source, os.PathLike):
        return _from_path(os.fspath(source))
    if isinstance(source, str):
        return _from_string(source, limits, stop)
    if hasattr(source, "read"):
        return _from_file_object(source, limits, stop)
    raise SourceError(f"a video source cannot be a {type(source).__name__}; pass {ACCEPTED}.")


def describe(source: VideoSource) -> str:
    """How to call `source` in a message before it is resolved."""
    if not isinstance(source, (str, os.PathLike)):
        return f"<{type(source).__name__}>"
    text = os.fspath(source)
    return without_secrets(text) if is_web(text) else short(text)


def is_web(text: str) -> bool:
    """Whether `text` is an address from which resolve() would fetch."""
    return text[:8].lower().startswith(("http://", "https://"))


def _from_string(text: str, limits: Limits, stop: Stop) -> Source:
    scheme = text[:8].lower()
    if scheme.startswith("data:"):
        return _from_data_uri(text)
    if is_web(text):
        from .web import fetch

        fetched = fetch(text, limits, stop)
        name = without_secrets(text)
        return _from_store(fetched, name) if isinstance(fetched, Store) else Source(name, web=fetched)
    if scheme.startswith("file://"):
        return _from_path(unquote(urlsplit(text).path))
    if len(text) > 256 and not os.path.exists(text):
        data = _decode_base64(text)
        if data is not None:
            return _from_bytes(data, f"<base64, {len(data)} bytes>")
    return _from_path(text)


def _from_path(path: str) -> Source:
    """The path is made absolute here, so that it means the same file after a change of directory."""
    if not isinstance(path, str):
        raise SourceError(f"a path cannot be {type(path).__name__}; pass {ACCEPTED}.")
    place = path if os.path.exists(path) else os.path.expanduser(path)
    if not os.path.exists(place):
        raise SourceError(f"{short(path)}: no such file. A video source is {ACCEPTED}.")
    if not os.path.isfile(place):
        raise SourceError(f"{short(path)}: not a regular file. A video source is {ACCEPTED}.")
    if os.path.getsize(place) == 0:
        raise SourceError(f"{path}: the file is empty (0 bytes); write or download it again.")
    return Source(name=path, path=os.path.abspath(place))


def _from_bytes(data: bytes, name: str) -> Source:
    if not data:
        raise SourceError(f"{name}: the source is empty (0 bytes); pass the bytes of a whole video file.")
    return Source(name=name, data=data)


def _from_store(store: Store, name: str) -> Source:
    if not store.size:
        raise SourceError(f"{name}: the file is empty (0 bytes); check the address.")
    return Source(name=name, store=store)


def _from_file_object(file: Any, limits: Limits, stop: Stop) -> Source:
    name = str(getattr(file, "name", f"<{type(file).__name__}>"))
    try:
        with suppress(AttributeError, OSError):  # not every file object has a file
            if stat.S_ISCHR(os.fstat(file.fileno()).st_mode):
                raise SourceError(f"{name}: a device, which has no end. A video source is {ACCEPTED}.")
        if hasattr(file, "seek") and getattr(file, "seekable", lambda: True)():
            file.seek(0)
        if hasattr(file, "getvalue"):
            return _from_bytes(_checked(file.getvalue(), name), name)
        return _read_on(file, name, limits, stop)
    except (OSError, ValueError) as error:
        raise SourceError(f"{name}: the file object cannot be read ({error}); open it again or pass a path.") from error


def _read_on(file: Any, name: str, limits: Limits, stop: Stop) -> Source:
    """All that a file object gives: in memory, or what is more than a little in a temporary file."""
    parts: list[bytes] = []
    size, store = 0, Store()
    while part := _checked(file.read(PART_BYTES), name):
        if stop.is_set():
            raise Cancelled
        size += len(part)
        if limits.download_bytes is not None and size > limits.download_bytes:
            raise LimitError(
                f"{name}: the file object gives {size:,} bytes or more; the limit is {limits.download_bytes:,}. If you "
                "trust it, pass limits=Limits(download_bytes=None) or a higher number."
            )
        parts.append(part)
        if store.size or size > MEMORY_BYTES:
            store.write(b"".join(parts))
            parts.clear()
    return _from_store(store, name) if store.size else _from_bytes(b"".join(parts), name)


def _checked(data: Any, name: str) -> bytes:
    if not isinstance(data, bytes):
        raise SourceError(f"{name}: the file object returns {type(data).__name__}; open it in binary mode ('rb').")
    return data


def _from_data_uri(text: str) -> Source:
    header, comma, payload = text.partition(",")
    data = _decode_base64(payload) if comma and header.endswith(";base64") else None
    if data is None:
        raise SourceError(f"{short(text)}: not a base64 data URI; the form is data:video/mp4;base64,<data>.")
    return _from_bytes(data, f"<{header}, {len(data)} bytes>")


def _decode_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None
