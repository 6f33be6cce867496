"""Scenes as real video files: H.264 in MP4 through PyAV, and back to pixels."""

from __future__ import annotations

import io
import os
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av
import numpy as np

from examples.needle.paint import FRAME_SIZE, paint
from examples.needle.scene import Scene

__all__ = ["ClipError", "frame_times", "through_h264", "write_clip"]

_CHUNK_FRAMES = 512


class ClipError(RuntimeError):
    """A clip that cannot be written."""


def frame_times(scene: Scene) -> np.ndarray:
    """Seconds at which the model's frames are taken, (T,)."""
    difficulty = scene.difficulty
    return np.arange(difficulty.frames) * difficulty.spacing


def write_clip(scene: Scene, path: Path, *, oversample: int = 1, crf: int = 20, codec: str = "libx264") -> Path:
    """Write a scene as a video of `oversample` frames for each frame that the model will get.

    The file appears under its name only when it is complete.

    Raises:
        ClipError: this build of FFmpeg has no such encoder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    count = scene.difficulty.frames * oversample
    try:
        with partial.open("wb") as file:
            _encode(scene, file, count, oversample / scene.difficulty.spacing, crf, codec)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def through_h264(scene: Scene, *, crf: int = 20) -> np.ndarray:
    """The model's frames of a scene after a round trip through the codec, (T, H, W, 3) uint8."""
    file = io.BytesIO()
    _encode(scene, file, scene.difficulty.frames, 1 / scene.difficulty.spacing, crf, "libx264")
    file.seek(0)
    with av.open(file) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def _encode(scene: Scene, file: IO[bytes], count: int, fps: float, crf: int, codec: str) -> None:
    rate = Fraction(fps).limit_denominator(1000)
    with av.open(file, "w", format="mp4") as output:
        try:
            stream: Any = output.add_stream(codec, rate=rate)
        except (ValueError, av.FFmpegError) as error:
            raise ClipError(
                f"PyAV {av.__version__} has no encoder {codec!r}, so no clip can be written; install a PyAV wheel from "
                "PyPI (they hold libx264) or name another encoder with codec="
            ) from error
        stream.width = stream.height = FRAME_SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"preset": "veryfast", "crf": str(crf), "threads": "1"}
        for start in range(0, count, _CHUNK_FRAMES):
            for picture in paint(scene, np.arange(start, min(start + _CHUNK_FRAMES, count)) / fps):
                output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))
