"""Synthesised clips whose every frame carries its own number, readable from the decoded pixels."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import VideoReformatter

os.environ.setdefault("SVT_LOG", "1")  # errors only
BITS = 12
BAR = 4  # the number is written into the top quarter of the picture

ClipMaker = Callable[..., Path]
Painter = Callable[[int, int, int], np.ndarray]


def draw_number(number: int, height: int, width: int) -> np.ndarray:
    """A moving gradient, (H, W, 3) uint8, with `number` as BITS black or white blocks along the top."""
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack(
        [(x * 2 + number * 3) % 224 + 16, (y * 3 + number * 2) % 224 + 16, (x + y + number * 5) % 224 + 16],
        -1,
    ).astype(np.uint8)
    edges = np.linspace(0, width, BITS + 1).round().astype(int)
    for bit in range(BITS):
        picture[: height // BAR, edges[bit] : edges[bit + 1]] = 235 if number >> bit & 1 else 16
    return picture


def draw_scene(number: int, height: int, width: int) -> np.ndarray:
    """Soft moving shapes with a little noise, (H, W, 3) uint8: closer to a camera's picture than a test pattern."""
    y, x = np.mgrid[0:height, 0:width]
    red = 128 + 90 * np.sin(x / 17 + number / 5) + 30 * np.cos(y / 9)
    green = 128 + 80 * np.sin(y / 23 + number / 7 + 1) * np.cos(x / 31)
    blue = 128 + 100 * np.cos((x + y) / 29 + number / 9)
    noise = np.random.default_rng(number).normal(0, 4, (height, width, 3))
    return (np.stack([red, green, blue], -1) + noise).clip(0, 255).astype(np.uint8)


def read_number(frame: torch.Tensor | np.ndarray) -> int:
    """The number drawn into one decoded (3, H, W) frame, at any resolution."""
    pixels = np.asarray(frame, dtype=np.float32).mean(0)
    height, width = pixels.shape
    edges = np.linspace(0, width, BITS + 1)
    bar = pixels[height // BAR // 4 : max(height * 3 // BAR // 4, 1)]
    middle = [
        bar[:, int(a + (b - a) * 0.3) : int(b - (b - a) * 0.3) + 1] for a, b in zip(edges, edges[1:], strict=False)
    ]
    return sum(1 << bit for bit, block in enumerate(middle) if block.mean() > 128)


def write_clip(
    path: Path,
    *,
    frames: int = 60,
    size: tuple[int, int] = (96, 160),
    codec: str = "libx264",
    fps: int = 30,
    gop: int = 12,
    options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    pts: Sequence[int] | None = None,
    offset: int = 0,
    rotation: int = 0,
    pixel_aspect: tuple[int, int] | None = None,
    audio: bool = False,
    container: dict[str, str] | None = None,
    file_format: str | None = None,
    draw: Painter = draw_number,
) -> Path:
    """Encode `frames` numbered pictures of `size` (height, width); `pts` in units of 1/fps/10 make it VFR.

    `offset` moves the first frame away from time 0, in units of 1/fps.
    """
    height, width = size
    unit = Fraction(1, fps * 10 if pts else fps)
    with av.open(str(path), "w", format=file_format, container_options=container or {}) as output:
        stream: Any = output.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        stream.options = {**_FAST.get(codec, {}), **(options or {})}
        stream.codec_context.time_base = unit
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = Fraction(*pixel_aspect)
        if rotation and not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write a rotation")
        if rotation:
            stream.set_display_rotation(rotation)
        sound: Any = output.add_stream("aac", rate=16000, layout="mono") if audio else None
        times, converter = pts or range(frames), VideoReformatter()
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(draw(number, height, width), format="rgb24")
            frame = converter.reformat(frame, format=pix_fmt)
            frame.pts, frame.time_base = times[number] + offset * (10 if pts else 1), unit
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if sound is not None:
            _write_silence(output, sound, seconds=frames / fps)
    return path


_FAST: dict[str, dict[str, str]] = {
    "libx264": {"preset": "fast", "crf": "18", "threads": "1"},
    "libx265": {"preset": "superfast", "x265-params": "log-level=none:pools=1:frame-threads=1:crf=18"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0", "threads": "1"},
    "libsvtav1": {"preset": "12", "crf": "24", "svtav1-params": "lp=1"},
}


def _write_silence(output: Any, stream: Any, seconds: float) -> None:
    for start in range(0, int(seconds * 16000), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def write_audio(path: Path) -> Path:
    """A file with sound and no picture."""
    with av.open(str(path), "w") as output:
        _write_silence(output, output.add_stream("aac", rate=16000, layout="mono"), seconds=1.0)
    return path


def remux(source: Path, target: Path, *, shift_seconds: float = 0.0, container: dict[str, str] | None = None) -> Path:
    """Copy the packets of `source`; a negative shift in an MP4 hides the first frames behind an edit list."""
    with (
        av.open(str(source)) as given,
        av.open(str(target), "w", container_options=container or {}) as output,
    ):
        stream = given.streams.video[0]
        copy = output.add_stream_from_template(stream)
        shift = round(shift_seconds / stream.time_base)
        for packet in given.demux(stream):
            if packet.dts is None:
                continue
            packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
            output.mux(packet)
    return target


def sequential_rgb(source: Any) -> list[np.ndarray]:
    """Every frame of a one-thread PyAV decode from the first packet on, (H, W, 3) uint8: the ground truth."""
    with av.open(source if hasattr(source, "read") else str(source)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="session")
def make_clip(clip_folder: Path) -> ClipMaker:
    """`make_clip(name, **write_clip options)` encodes once per session and name, which has the same options always."""
    made: dict[str, dict[str, Any]] = {}

    def make(name: str, **options: Any) -> Path:
        path = clip_folder / name
        if made.setdefault(name, options) != options:
            raise ValueError(f"{name} was made with {made[name]}, not with {options}: give this clip a name of its own")
        if not path.exists():
            partial = path.with_name("partial-" + name)
            write_clip(partial, **options)
            shutil.move(partial, path)
        return path

    return make


@pytest.fixture(scope="session")
def clip(make_clip: ClipMaker) -> Path:
    """The plain clip: H.264 with B-frames in MP4, 96x160, 30 fps, 60 frames, a key frame every 12."""
    return make_clip("plain.mp4")
