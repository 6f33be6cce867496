"""How large a video may be, and of which kind, so that a hostile file cannot take the machine down."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from ..errors import LimitError, SourceError
from .allowed import CODECS, FORMATS

GIB = 1 << 30


@dataclass(frozen=True)
class Limits:
    """Upper bounds; None lifts one. The defaults admit 8K video, a day long, a million frames at once."""

    frame_pixels: int | None = 8192 * 8192
    """Height times width of a stored or a delivered frame; decoders refuse every larger one before they decode it."""
    frames: int | None = 1_000_000
    """Frames delivered by one call."""
    seconds: float | None = 24 * 3600.0
    """Duration of the file."""
    samples: int | None = 10_000_000
    """Entries in an MP4's tables, all tracks together; FFmpeg takes some 70 bytes for each before the first frame."""
    download_bytes: int | None = 8 * GIB
    """What is fetched from a URL or read from a file object; what is more than a little lies in a temporary file."""
    delivered_bytes: int | None = 64 * GIB
    """Bytes of all frames that are held at once; never more than the memory that is free."""
    formats: frozenset[str] | None = FORMATS
    """FFmpeg's names of the containers that may be opened. None, or a playlist format, lets files open other files."""
    codecs: frozenset[str] | None = CODECS
    """FFmpeg's names of the decoders that may be used."""

    def check_size(self, name: str, height: int, width: int) -> None:
        """Raises LimitError if a frame is too large."""
        self._check(name, "frame_pixels", f"frames of {height} x {width} pixels", height * width, self.frame_pixels)

    def check_count(self, name: str, frames: int) -> None:
        """Raises LimitError if too many frames are to be delivered."""
        self._check(name, "frames", f"{frames} frames to deliver", frames, self.frames)

    def check_duration(self, name: str, seconds: float) -> None:
        """Raises LimitError if the video is too long."""
        self._check(name, "seconds", f"a duration of {seconds:.0f} s", seconds, self.seconds)

    def check_samples(self, name: str, samples: int) -> None:
        """Raises LimitError if the file's tables have too many entries."""
        self._check(name, "samples", f"tables of {samples:,} samples", samples, self.samples)

    def check_download(self, name: str, size: int) -> None:
        """Raises LimitError if more has been downloaded than is allowed."""
        self._check(name, "download_bytes", f"a download of {size:,} bytes or more", size, self.download_bytes)

    def check_delivered(self, name: str, size: int) -> None:
        """Raises LimitError if frames of `size` bytes in all are too many, or more than there is memory for."""
        self._check(name, "delivered_bytes", f"{size:,} bytes of frames", size, self.delivered_bytes)
        if size > GIB and size > (free := psutil.virtual_memory().available):
            raise LimitError(f"{name}: {size:,} bytes of frames, but {free:,} bytes of memory are free; {LESS}.")

    def check_codec(self, name: str, codec: str) -> None:
        """Raises SourceError unless the decoder may be used."""
        if self.codecs is not None and codec not in self.codecs:
            raise SourceError(
                f"{name}: its video is {codec}, a decoder that is not allowed. If you trust the file, pass "
                f'limits=Limits(codecs=CODECS | {{"{codec}"}}), or re-encode it, e.g. as H.264.'
            )

    @staticmethod
    def _check(name: str, field: str, given: str, amount: float, limit: float | None) -> None:
        if limit is not None and amount > limit:
            raise LimitError(
                f"{name}: {given}; the limit is {limit:,}. If you trust the file, pass "
                f"limits=Limits({field}=None) or a higher number."
            )


LESS = "ask for fewer frames or a smaller size, or take them a few at a time with stream_video"
DEFAULT_LIMITS = Limits()
