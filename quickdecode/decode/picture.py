"""From a decoded frame to a picture (3, H, W): colours, size, orientation, one copy.

Pictures of the file's own size are PyAV's `frame.to_ndarray(format="rgb24")`, turned. Others are made from the stored
picture, whatever size that one has, in one of two ways:

    fast                swscale goes from the stored planes to the wanted size at once, as planar `gbrp`, whose planes
                        copy straight into channel rows
    antialiased, exact  the full-size picture goes through torchvision's antialiased resize, see resize.py

How far apart they are: examples/guides/reading.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from av.video.reformatter import VideoReformatter

from .resize import Resize, torchvision_resize

Pixels = npt.NDArray[np.uint8]
INTERPOLATIONS = ("area", "bicubic", "bilinear", "lanczos")
GBRP_PLANES = (2, 0, 1)
"""Where R, G and B lie in the planes of gbrp."""


class PictureWriter:
    """Writes frames into pictures (3, H, W) of one size; belongs to one thread, since it keeps one scaler."""

    def __init__(
        self,
        height: int,
        width: int,
        *,
        rotation: int = 0,
        mirrored: bool = False,
        resized: bool = False,
        resize: str = "fast",
        interpolation: str = "bicubic",
    ) -> None:
        """
        Args:
            height, width: of what is delivered.
            rotation, mirrored: as in VideoInfo.
            resized: whether that is another size than the file's.
            resize, interpolation: how to resize, one of resize.RESIZES and of INTERPOLATIONS.
        """
        self._turns, self._mirrored, self._resized = rotation // 90, mirrored, resized
        self._size = [height, width]
        self._stored = (width, height) if self._turns % 2 else (height, width)
        """Height and width before turning."""
        self._antialiased: Resize | None = None
        if resize != "fast":
            self._antialiased = torchvision_resize(resize, interpolation)
        self._interpolation = interpolation.upper()
        self._reformatter = VideoReformatter()

    def write(self, frame: Any, target: Pixels) -> None:
        """Put `frame` into `target`, (3, height, width)."""
        if not self._resized and (frame.height, frame.width) == self._stored:
            np.copyto(target, self._rgb(frame).transpose(2, 0, 1))
        elif self._antialiased is None:
            self._write_planar(frame, target)
        else:
            picture = torch.from_numpy(np.ascontiguousarray(self._rgb(frame))).permute(2, 0, 1)
            np.copyto(target, self._antialiased(picture, self._size).numpy())

    def _write_planar(self, frame: Any, target: Pixels) -> None:
        height, width = self._stored
        planes = self._reformat(frame, height, width, "gbrp", self._interpolation).planes
        for channel, plane in zip(target, GBRP_PLANES, strict=True):
            np.copyto(channel, self._turned(_pixels(planes[plane], height, width)))

    def _rgb(self, frame: Any) -> Pixels:
        """(H, W, 3) of the frame's own size, turned."""
        height, width = frame.height, frame.width
        packed = _pixels(self._reformat(frame, height, width, "rgb24", None).planes[0], height, width * 3)
        return self._turned(packed.reshape(height, width, 3))

    def _turned(self, picture: Pixels) -> Pixels:
        turned = np.rot90(picture, self._turns)
        return turned[:, ::-1] if self._mirrored else turned

    def _reformat(self, frame: Any, height: int, width: int, pixel_format: str, interpolation: str | None) -> Any:
        return self._reformatter.reformat(
            frame, width=width, height=height, format=pixel_format, interpolation=interpolation, **THREADS
        )


def _pixels(plane: Any, height: int, row_bytes: int) -> Pixels:
    """(height, row_bytes) view of a plane, its padding cut off."""
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:height, :row_bytes]


def _scaler_options() -> dict[str, Any]:
    """PyAV from 15.1 on scales with as many threads as there are cores unless told otherwise."""
    takes_threads = "threads" in (VideoReformatter.reformat.__doc__ or "")
    return {"threads": 1} if takes_threads else {}


THREADS = _scaler_options()
