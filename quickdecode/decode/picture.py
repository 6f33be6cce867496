"""From a decoded frame to a picture (3, H, W): colours, size, rotation, one copy.

Without a size, pixels are those of PyAV's `frame.to_ndarray(format="rgb24")`. With a size, swscale's bicubic
filter writes planar `gbrp`, whose planes copy straight into channel rows. That differs from converting at full
size and resizing with torchvision's antialiased bicubic by 1.1 to 1.6 grey levels on average (2.0 on a saturated
test pattern), nearly all of it because the full-size conversion rounds about one level darker: against a
full-size conversion with accurate rounding it is 0.1 to 0.5.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

Pixels = npt.NDArray[np.uint8]
INTERPOLATIONS = ("area", "bicubic", "bilinear", "lanczos")
GBRP_PLANES = (2, 0, 1)
"""Where R, G and B lie in the planes of gbrp."""


class PictureWriter:
    """Writes frames into pictures (3, H, W) of one size; belongs to one thread, since it keeps one scaler."""

    def __init__(
        self, height: int, width: int, *, rotation: int, mirrored: bool, resize: bool, interpolation: str
    ) -> None:
        self._turns, self._mirrored = rotation // 90, mirrored
        self._resize = resize
        self._interpolation = interpolation.upper()
        self._height, self._width = (width, height) if self._turns % 2 else (height, width)
        self._reformatter = VideoReformatter()

    def write(self, frame: Any, target: Pixels) -> None:
        """Put `frame` into `target`, (3, height, width)."""
        if self._resize or (frame.height, frame.width) != (self._height, self._width):
            self._write_planar(frame, target)
        else:
            self._write_exact(frame, target)

    def _write_planar(self, frame: Any, target: Pixels) -> None:
        planes = self._reformat(frame, "gbrp", self._interpolation).planes
        for channel, plane in zip(target, GBRP_PLANES, strict=True):
            np.copyto(channel, self._turned(self._pixels(planes[plane], self._width)))

    def _write_exact(self, frame: Any, target: Pixels) -> None:
        packed = self._pixels(self._reformat(frame, "rgb24", None).planes[0], self._width * 3)
        picture = packed.reshape(self._height, self._width, 3)
        np.copyto(target, self._turned(picture).transpose(2, 0, 1))

    def _turned(self, picture: Pixels) -> Pixels:
        turned = np.rot90(picture, self._turns)
        return turned[:, ::-1] if self._mirrored else turned

    def _reformat(self, frame: Any, pixel_format: str, interpolation: str | None) -> Any:
        return self._reformatter.reformat(
            frame,
            width=self._width,
            height=self._height,
            format=pixel_format,
            interpolation=interpolation,
            **THREADS,
        )

    def _pixels(self, plane: Any, row_bytes: int) -> Pixels:
        """(height, row_bytes) view of a plane, its padding cut off."""
        return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: self._height, :row_bytes]


def _scaler_options() -> dict[str, Any]:
    """PyAV from 15.1 on scales with as many threads as there are cores unless told otherwise."""
    takes_threads = "threads" in (VideoReformatter.reformat.__doc__ or "")
    return {"threads": 1} if takes_threads else {}


THREADS = _scaler_options()
