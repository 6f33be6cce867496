"""What a reader gives: frames, and what is known about them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .index.media import VideoInfo


@dataclass(frozen=True, repr=False)
class DecodedVideo:
    """Frames of a video with what is known about them."""

    frames: torch.Tensor
    """(T, 3, H, W) uint8, RGB; with layout="NHWC" (T, H, W, 3)."""
    indices: list[int]
    """(T,) number of each frame in a sequential decode of the file."""
    timestamps: list[float]
    """(T,) start of each frame in seconds after the start of the first frame of the file."""
    info: VideoInfo
    replaced: dict[int, int] = field(default_factory=dict)
    """With on_error="nearest": frames that were asked for but cannot be had -> the frame given instead."""

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        shape = "x".join(str(size) for size in self.frames.shape)
        replaced = f", {len(self.replaced)} replaced" if self.replaced else ""
        return (
            f"DecodedVideo({self.info.name!r}: {shape} {self.frames.dtype}, frames {self.indices[0]} to "
            f"{self.indices[-1]} of {self.info.num_frames}{replaced})"
        )


@dataclass(frozen=True, repr=False)
class FrameBlock:
    """Consecutive frames of a stream."""

    frames: torch.Tensor
    """(t, 3, H, W) uint8, RGB."""
    indices: list[int]
    """(t,) number of each frame in a sequential decode of the file."""
    timestamps: list[float]
    """(t,) start of each frame in seconds after the start of the first frame of the file."""
    replaced: dict[int, int] = field(default_factory=dict)
    """With on_error="nearest": frames that were asked for but cannot be had -> the frame given instead."""

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return f"FrameBlock({len(self)} frames, {self.indices[0]} to {self.indices[-1]})"
