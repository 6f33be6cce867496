"""The videos that decode.py measures on, encoded with PyAV from what decode_camera.py shoots."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from examples.benchmarks.decode_camera import FPS, Camera

X264 = {"codec": "libx264", "options": {"preset": "medium", "crf": "23"}}
PHONE_TICKS = 3000  # of 1/90000 s: a thirtieth, which phones keep to on average only
FILES: dict[str, dict[str, Any]] = {
    "h264_720p_2m.mp4": {"size": (720, 1280), **X264},
    "h264_360p_2m.mp4": {"size": (360, 640), **X264},
    "h264_360p_60m.mp4": {"repeat": "h264_360p_2m.mp4", "times": 30},
    "hevc_360p_2m.mp4": {
        "size": (360, 640),
        "codec": "libx265",
        "options": {"preset": "fast", "x265-params": "log-level=none:crf=26"},
    },
    "vp9_360p_2m.webm": {
        "size": (360, 640),
        "codec": "libvpx-vp9",
        "options": {"crf": "33", "b": "0", "deadline": "good", "cpu-used": "5", "row-mt": "1"},
    },
    "av1_360p_2m.mp4": {"size": (360, 640), "codec": "libsvtav1", "options": {"preset": "9", "crf": "35"}},
    "h264_360p_10s.mp4": {"size": (360, 640), "seconds": 10, **X264},
    "h264_1080p_10s.mp4": {"size": (1080, 1920), "seconds": 10, **X264},
    "phone_vfr_1080p_30s.mp4": {"size": (1080, 1920), "seconds": 30, "uneven": True, **X264},
    "h264_360p_2m.mkv": {"repeat": "h264_360p_2m.mp4", "times": 1},
    "h264_360p_60m.mkv": {"repeat": "h264_360p_2m.mp4", "times": 30},
    "hevc_2160p_10s.mp4": {
        "size": (2160, 3840),
        "seconds": 10,
        "codec": "libx265",
        "options": {"preset": "veryfast", "x265-params": "log-level=none:crf=28"},
    },
    "prores_720p_10s.mov": {
        "size": (720, 1280),
        "seconds": 10,
        "codec": "prores_ks",
        "options": {"profile": "2"},
        "pixels": "yuv422p10le",
    },
    "mjpeg_360p_30s.mov": {"size": (360, 640), "seconds": 30, "codec": "mjpeg", "options": {}, "pixels": "yuvj420p"},
    "vp8_360p_30s.webm": {
        "size": (360, 640),
        "seconds": 30,
        "codec": "libvpx",
        "options": {"b": "1M", "deadline": "good", "cpu-used": "4"},
    },
    "mpeg4_360p_30s.avi": {"size": (360, 640), "seconds": 30, "codec": "mpeg4", "options": {"b": "1M", "bf": "2"}},
    "mpeg2_360p_30s.ts": {"size": (360, 640), "seconds": 30, "codec": "mpeg2video", "options": {"b": "2M", "bf": "2"}},
    "wmv2_360p_30s.wmv": {"size": (360, 640), "seconds": 30, "codec": "wmv2", "options": {"b": "1M"}},
}


def make(folder: Path, name: str, seconds: int | None = None) -> Path:
    """The file `name` of FILES in `folder`, encoded if it is not there yet; `seconds`: of another length."""
    path, kind = folder / name, dict(FILES[name])
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_name("partial-" + name)
    if "repeat" in kind:
        _repeat(make(folder, kind["repeat"], seconds), partial, kind["times"])
    else:
        usual = kind.pop("seconds", 120)
        _encode(partial, seconds=seconds or usual, **kind)
    return partial.rename(path)


def _encode(
    path: Path,
    *,
    seconds: int,
    size: tuple[int, int],
    codec: str,
    options: dict[str, str],
    pixels: str = "yuv420p",
    uneven: bool = False,
) -> None:
    height, width = size
    camera = Camera(height, width)
    times = _phone_times(seconds * FPS) if uneven else range(seconds * FPS)
    unit = Fraction(1, FPS * PHONE_TICKS) if uneven else Fraction(1, FPS)
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt, stream.options = width, height, pixels, options
        stream.codec_context.time_base = unit
        for number, pts in enumerate(times):
            frame = av.VideoFrame.from_ndarray(camera.shoot(number), format="rgb24")
            frame.pts, frame.time_base = pts, unit
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def _phone_times(count: int) -> list[int]:
    """A thirtieth of a second apart, give or take a few milliseconds; in the dark, every third scene, twice as far."""
    random = np.random.default_rng(5)
    dark = np.arange(count) // (4 * FPS) % 3 == 2
    steps = PHONE_TICKS * (1 + dark) + random.integers(-300, 301, count)
    return [int(time) for time in np.cumsum(steps) - steps[0]]


def _repeat(source: Path, target: Path, times: int) -> None:
    """The packets of `source` over and over."""
    with av.open(str(source)) as given, av.open(str(target), "w") as output:
        stream = given.streams.video[0]
        copy = output.add_stream_from_template(stream)
        packets = [packet for packet in given.demux(stream) if packet.size]
        length = round(len(packets) / FPS / stream.time_base)
        rows = [(bytes(packet), packet.pts, packet.dts, packet.is_keyframe) for packet in packets]
        for turn in range(times):
            for data, pts, dts, key in rows:
                packet = av.Packet(data)
                packet.pts, packet.dts = pts + turn * length, dts + turn * length
                packet.time_base, packet.is_keyframe, packet.stream = stream.time_base, key, copy
                output.mux(packet)
