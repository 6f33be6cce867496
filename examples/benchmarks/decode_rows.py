"""What decode.py measures, in groups that have a result file each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from examples.benchmarks.decode_camera import FPS

CLIPS, CLIP_FRAMES = 20, 16


@dataclass(frozen=True)
class Row:
    """A file, what is read of it, and from where."""

    file: str
    sampling: str
    source: str = "cached"
    """"cached": in memory already; "cold": from the disk; "http": from a slow server."""
    turns: int = 7
    """How often each reader reads."""
    without: tuple[str, ...] = ()
    """Libraries that would need minutes for it."""


SEQUENTIAL = ("opencv", "pyav")
HOUR = ("h264_360p_60m.mp4", "h264_360p_60m.mkv")
GROUPS: dict[str, list[Row]] = {
    "": [
        *(Row("h264_720p_2m.mp4", sampling, turns=3) for sampling in ("u64", "fps1", "fps2", "u1024")),
        *(Row("h264_360p_2m.mp4", sampling) for sampling in ("u64", "fps1", "fps2", "u1024")),
        *(Row(file, "fps1") for file in ("hevc_360p_2m.mp4", "vp9_360p_2m.webm", "av1_360p_2m.mp4")),
        Row(HOUR[0], "u64", turns=3, without=SEQUENTIAL),
        Row(HOUR[0], "fps1", turns=3, without=SEQUENTIAL),
    ],
    "short": [Row(file, "u8") for file in ("h264_360p_10s.mp4", "h264_1080p_10s.mp4")],
    "formats": [
        *(Row("phone_vfr_1080p_30s.mp4", sampling) for sampling in ("u8", "fps1")),
        *(Row("h264_360p_2m.mkv", sampling) for sampling in ("u64", "fps1")),
        Row(HOUR[1], "u8", without=(*SEQUENTIAL, "deepcodec")),
        *(Row("hevc_2160p_10s.mp4", sampling) for sampling in ("u8", "fps2")),
        *(Row("prores_720p_10s.mov", sampling) for sampling in ("u8", "u64")),
        Row("mjpeg_360p_30s.mov", "u8"),
        *(
            Row(file, sampling)
            for file in ("vp8_360p_30s.webm", "mpeg4_360p_30s.avi", "mpeg2_360p_30s.ts", "wmv2_360p_30s.wmv")
            for sampling in ("u8", "fps2")
        ),
    ],
    "clips": [
        Row(file, sampling)
        for file in ("h264_360p_2m.mp4", "h264_720p_2m.mp4", "hevc_360p_2m.mp4")
        for sampling in ("clips", "anew")
    ],
    "cold": [
        Row("h264_1080p_10s.mp4", "u8", "cold"),
        Row("h264_720p_2m.mp4", "u64", "cold"),
        Row("prores_720p_10s.mov", "u8", "cold"),
        *(Row(file, "u8", "cold", without=(*SEQUENTIAL, "deepcodec")) for file in HOUR),
    ],
    "http": [
        Row("h264_1080p_10s.mp4", "u8", "http", turns=3),
        Row("h264_720p_2m.mp4", "u64", "http", turns=3),
        *(Row(file, "u8", "http", turns=3, without=(*SEQUENTIAL, "deepcodec")) for file in HOUR),
    ],
}


def wishes(sampling: str, total: int) -> list[list[int]]:
    """Numbers of the frames that are read together, of a file with `total` frames.

    `u64`: 64 frames evenly spaced; `fps2`: two a second (files have 30, on average); `clips`: 20 runs of 16 frames at
    random places, of a file that stays open; `anew`: the same, of a file that is opened for each.
    """
    if sampling in ("clips", "anew"):
        length = min(CLIP_FRAMES, total)
        begins = np.random.default_rng(11).integers(0, total - length + 1, CLIPS)
        return [list(range(begin, begin + length)) for begin in begins.tolist()]
    count = int(sampling[1:]) if sampling[0] == "u" else round(total / FPS * int(sampling[3:]))
    return [[int(i) for i in np.linspace(0, total - 1, max(min(count, total), 1)).round()]]
