"""Where the frames of a whole read are put: a new tensor or one that is given, channels first or last."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..errors import LimitError, RequestError
from ..source.limits import LESS, Limits

LAYOUTS = ("NCHW", "NHWC")


@dataclass(frozen=True)
class Room:
    """Where the frames of a DecodedVideo are put."""

    layout: str = "NCHW"
    out: torch.Tensor | None = None

    @staticmethod
    def of(layout: str, out: torch.Tensor | None) -> Room:
        """Check the arguments of the same names. Raises RequestError."""
        if layout not in LAYOUTS:
            raise RequestError(f"layout={layout!r}; it must be one of {', '.join(LAYOUTS)}.")
        if out is None:
            return Room(layout)
        if not isinstance(out, torch.Tensor) or out.dtype != torch.uint8 or _elsewhere(out):
            given = (
                f"{out.dtype} on {out.device}, {out.layout}" if isinstance(out, torch.Tensor) else type(out).__name__
            )
            raise RequestError(f"out is {given}; it must be a dense torch.uint8 tensor on the CPU, or None.")
        if any(stride == 0 and side > 1 for stride, side in zip(out.stride(), out.shape, strict=True)):
            raise RequestError("out is an expanded tensor, several of its elements are one; pass out.contiguous().")
        return Room(layout, out)

    def make(self, name: str, num_frames: int, height: int, width: int, limits: Limits) -> torch.Tensor:
        """The tensor to return. Raises RequestError if `out` is of another shape, else what empty_frames raises."""
        shape = (num_frames, 3, height, width) if self.layout == "NCHW" else (num_frames, height, width, 3)
        if self.out is None:
            return empty_frames(name, shape, limits)
        if self.out.shape != shape:
            raise RequestError(f"{name}: out is of shape {tuple(self.out.shape)}; these frames need {shape}.")
        return self.out

    def pictures(self, frames: torch.Tensor) -> torch.Tensor:
        """(T, 3, H, W) view of what make() made."""
        return frames if self.layout == "NCHW" else frames.permute(0, 3, 1, 2)


def _elsewhere(out: torch.Tensor) -> bool:
    return out.device.type != "cpu" or out.layout != torch.strided


NEW = Room()


def empty_frames(name: str, shape: tuple[int, int, int, int], limits: Limits, *, pinned: bool = False) -> torch.Tensor:
    """Room for so many frames, uint8. Raises LimitError if they are too many bytes, or there is no room."""
    limits.check_delivered(name, math.prod(shape))
    try:
        return torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
    except RuntimeError as error:  # how torch says so
        raise LimitError(f"{name}: no room for {math.prod(shape):,} bytes of frames ({error}); {LESS}.") from error
