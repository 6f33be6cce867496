"""What a caller may pass as a video, brought to one shape: a local path or bytes in memory."""

from __future__ import annotations

import base64
import binascii
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any, TypeAlias
from urllib.parse import unquote, urlsplit

import av
from av.container import InputContainer

from ..errors import SourceError, translated
from .download import DOWNLOAD_SECONDS, download
from .limits import DEFAULT_LIMITS, Limits

VideoSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]

ACCEPTED = "a path, file:// or http(s):// URL, bytes, a binary file object, or a base64 data: URI"
MEMORY_BUFFER = 1 << 20

# Playlists (hls, dash, concat) are left out: they would make a local file open other files and URLs.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,live_flv,mpegts,mpegtsraw,mpeg,mpegvideo,h264,hevc,av1,ivf,obu,"
    "m4v,mjpeg,asf,ogg,gif,nut,mxf,rm,dv,vc1,h263,wtv,yuv4mpegpipe,"
    "aac,flac,mp3,wav"  # sound only: opened to be able to say so
)


@dataclass(frozen=True)
class Source:
    """A resolved source: exactly one of `path` and `data` is set."""

    name: str
    """How error messages call it."""
    path: str | None = None
    data: bytes | None = field(default=None, repr=False)

    @contextmanager
    def open(self) -> Iterator[InputContainer]:
        """A fresh container, for one thread only; closed on exit."""
        with translated(self.name, "opening it"):
            container = self._open()
        with container:
            yield container

    def _open(self) -> Any:
        options = {"protocol_whitelist": "file" if self.path else "none", "format_whitelist": FORMATS}
        if self.path is not None:  # the "file:" prefix keeps a name such as "http:x.mp4" from being a protocol
            return av.open("file:" + self.path, metadata_errors="replace", container_options=options)
        return av.open(
            io.BytesIO(self.data or b""),
            metadata_errors="replace",
            container_options=options,
            buffer_size=MEMORY_BUFFER,
        )

    def file(self) -> IO[bytes]:
        """The bytes themselves, to read them without FFmpeg."""
        return open(self.path, "rb") if self.path is not None else io.BytesIO(self.data or b"")

    @property
    def size(self) -> int:
        """Bytes."""
        return os.path.getsize(self.path) if self.path is not None else len(self.data or b"")

    def identity(self) -> tuple[object, ...] | None:
        """A key that changes when the file does; None for bytes, which have no identity, and for a file gone since."""
        if self.path is None:
            return None
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return (os.path.abspath(self.path), status.st_ino, status.st_size, status.st_mtime_ns)


def resolve(source: VideoSource, *, timeout_seconds: float | None = None, limits: Limits = DEFAULT_LIMITS) -> Source:
    """The Source that `source` means. Raises SourceError if it is missing, empty or of a wrong type."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(source), f"<{len(source)} bytes>")
    if isinstance(source, os.PathLike):
        return _from_path(os.fspath(source))
    if isinstance(source, str):
        return _from_string(source, timeout_seconds or DOWNLOAD_SECONDS, limits)
    if hasattr(source, "read"):
        return _from_file_object(source)
    raise SourceError(f"a video source cannot be a {type(source).__name__}; pass {ACCEPTED}.")


def describe(source: VideoSource) -> str:
    """How to call `source` in a message before it is resolved."""
    return _short(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else f"<{type(source).__name__}>"


def _from_string(text: str, timeout_seconds: float, limits: Limits) -> Source:
    scheme = text[:8].lower()
    if scheme.startswith("data:"):
        return _from_data_uri(text)
    if scheme.startswith(("http://", "https://")):
        return _from_bytes(download(text, timeout_seconds, limits), text)
    if scheme.startswith("file://"):
        return _from_path(unquote(urlsplit(text).path))
    if len(text) > 256 and not os.path.exists(text):
        data = _decode_base64(text)
        if data is not None:
            return _from_bytes(data, f"<base64, {len(data)} bytes>")
    return _from_path(text)


def _from_path(path: str) -> Source:
    if not os.path.exists(path):
        raise SourceError(f"{_short(path)}: no such file. A video source is {ACCEPTED}.")
    if not os.path.isfile(path):
        raise SourceError(f"{_short(path)}: not a regular file. A video source is {ACCEPTED}.")
    if os.path.getsize(path) == 0:
        raise SourceError(f"{path}: the file is empty (0 bytes); write or download it again.")
    return Source(name=path, path=path)


def _from_bytes(data: bytes, name: str) -> Source:
    if not data:
        raise SourceError(f"{name}: the source is empty (0 bytes); pass the bytes of a whole video file.")
    return Source(name=name, data=data)


def _from_file_object(file: Any) -> Source:
    name = str(getattr(file, "name", f"<{type(file).__name__}>"))
    try:
        if hasattr(file, "seek") and getattr(file, "seekable", lambda: True)():
            file.seek(0)
        data = file.getvalue() if hasattr(file, "getvalue") else file.read()
    except (OSError, ValueError) as error:
        raise SourceError(f"{name}: the file object cannot be read ({error}); open it again or pass a path.") from error
    if not isinstance(data, bytes):
        raise SourceError(f"{name}: the file object returns {type(data).__name__}; open it in binary mode ('rb').")
    return _from_bytes(data, name)


def _from_data_uri(text: str) -> Source:
    header, comma, payload = text.partition(",")
    data = _decode_base64(payload) if comma and header.endswith(";base64") else None
    if data is None:
        raise SourceError(f"{_short(text)}: not a base64 data URI; the form is data:video/mp4;base64,<data>.")
    return _from_bytes(data, f"<{header}, {len(data)} bytes>")


def _decode_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:80]}... ({len(text)} characters)"
