"""How large a video may be before it is refused, so that a hostile file cannot take the machine down."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import LimitError


@dataclass(frozen=True)
class Limits:
    """Upper bounds; None lifts one. The defaults admit 8K video, a day long, a million frames at once."""

    frame_pixels: int | None = 8192 * 8192
    """Height times width of a stored or a delivered frame."""
    frames: int | None = 1_000_000
    """Frames delivered by one call."""
    seconds: float | None = 24 * 3600.0
    """Duration of the file."""
    download_bytes: int | None = 8 << 30
    """Size of a file that is fetched from a URL, which is held in memory."""

    def check_size(self, name: str, height: int, width: int) -> None:
        """Raises LimitError if a frame is too large."""
        self._check(name, "frame_pixels", f"frames of {height} x {width} pixels", height * width, self.frame_pixels)

    def check_count(self, name: str, frames: int) -> None:
        """Raises LimitError if too many frames are to be delivered."""
        self._check(name, "frames", f"{frames} frames to deliver", frames, self.frames)

    def check_duration(self, name: str, seconds: float) -> None:
        """Raises LimitError if the video is too long."""
        self._check(name, "seconds", f"a duration of {seconds:.0f} s", seconds, self.seconds)

    def check_download(self, name: str, size: int) -> None:
        """Raises LimitError if more has been downloaded than is allowed."""
        self._check(name, "download_bytes", f"a download of {size:,} bytes or more", size, self.download_bytes)

    @staticmethod
    def _check(name: str, field: str, given: str, amount: float, limit: float | None) -> None:
        if limit is not None and amount > limit:
            raise LimitError(
                f"{name}: {given}; the limit is {limit:,}. If you trust the file, pass "
                f"limits=Limits({field}=None) or a higher number."
            )


DEFAULT_LIMITS = Limits()
