"""What is known about a file once it has been looked at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..source.source import Source
from .clock import Ints
from .packets import FrameIndex, Way


@dataclass(frozen=True)
class VideoInfo:
    """Facts about a file's video stream. Sizes are those of the frames as delivered, rotation applied.

    They are the first picture's. Where the resolution changes later on, every frame is brought to one size: the one
    that was asked for, or else the first picture's.
    """

    name: str
    container: str
    codec: str
    pixel_format: str
    height: int
    width: int
    rotation: int
    """Degrees by which stored pictures are turned counter-clockwise for display: 0, 90, 180 or 270."""
    mirrored: bool
    """Whether they are then mirrored, left to right."""
    pixel_aspect: float
    """Width of a delivered pixel over its height; other than 1, frames have to be stretched to look right. They are
    delivered as they are, as by other readers."""
    num_frames: int
    """Frames that a sequential decode yields, hidden edit-list frames not counted; see num_frames_exact."""
    fps: float
    """Average frames per second."""
    duration_seconds: float
    """From the start of the first frame to the end of the last."""
    begin_seconds: float
    """Time of the first frame on the container's clock; quickdecode's own clock starts there."""
    num_keyframes: int | None
    """None when frames are counted."""
    counted: str | None = None
    """Why frames have to be counted by decoding from the start; None when they are found by key frame."""
    num_frames_exact: bool = True
    """Whether num_frames, fps and duration_seconds are sure. Where frames are counted they are what the file's packets
    suggest: only a decode to the end can tell. Indices are true either way."""
    truncated: str | None = None
    """How the file is known to be cut short, as by an interrupted download: it is then read only with
    on_error="nearest", and holds num_frames of what was more. None if it is whole, or its kind cannot tell."""


@dataclass(frozen=True, repr=False)
class Media:
    """A resolved source with everything that planning needs."""

    source: Source
    info: VideoInfo
    way: Way
    index: FrameIndex | None
    """None when frames must be counted."""
    seconds: npt.NDArray[np.float64]
    """(num_frames,) start of every frame, the first being 0."""
    expected_pts: Ints | None
    """(num_frames,) where frames are counted: the times that packets suggest, to be compared with what comes."""
    skips_unreferenced: bool
    """Whether pictures that nothing refers to may be left out of decoding."""
    irregular: bool = False
    """Whether frames are counted because their packets contradict each other: the count may then be wrong."""
    damaged: bool = False
    """Whether counting met errors; what a decoder makes of them depends on its number of threads."""
