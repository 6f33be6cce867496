"""The corpus: small clips of every codec, container and peculiarity that quickdecode claims to read exactly."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.clips import remux, write_clip

VFR = [number * 10 + number // 7 * 23 for number in range(60)]


@dataclass(frozen=True)
class Kind:
    """How a clip is made, and what a reader has to do about it."""

    options: dict[str, Any] = field(default_factory=dict)
    """Of write_clip."""
    turns: int = 0
    """Quarter turns counter-clockwise that its metadata ask for."""
    shift_seconds: float | None = None
    """Remuxed with all times moved by this: a negative shift hides the first frames of an MP4."""


def _h264(parameters: str = "", **options: Any) -> Kind:
    return Kind({"options": {"x264-params": parameters}, **options} if parameters else options)


def _hevc(parameters: str = "", **options: Any) -> Kind:
    given = {"options": {"x265-params": f"log-level=none:pools=1:frame-threads=1:{parameters}"}} if parameters else {}
    return Kind({"codec": "libx265", **given, **options})


def _of(codec: str, **options: Any) -> Kind:
    return Kind({"codec": codec, **options})


OPEN_GOP = "open-gop=1:bframes=3:b-adapt=0:scenecut=0:keyint=12:min-keyint=12"
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
LOOK_AHEAD = {"deadline": "good", "cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "16"}

CORPUS: dict[str, Kind] = {
    "plain.mp4": _h264(),
    "baseline.mp4": _h264(options={"profile": "baseline"}),
    "cuts.mp4": _h264("scenecut=80:min-keyint=2", gop=250),
    "early.mkv": Kind(shift_seconds=-0.2),
    "edit-list.mp4": Kind(shift_seconds=-0.5),
    "fast.mp4": _h264(fps=120),
    "film.mp4": _h264(fps=24),
    "fragmented.mp4": _h264(container=FRAGMENTS),
    "full-range.mp4": _h264("range=pc:colormatrix=bt709:colorprim=bt709:transfer=bt709"),
    "h264-10.mp4": _h264(pix_fmt="yuv420p10le"),
    "h264-422.mov": _h264(pix_fmt="yuv422p"),
    "h264-444.mp4": _h264(pix_fmt="yuv444p"),
    "h264.avi": _h264(),
    "h264.flv": _h264(),
    "h264.mkv": _h264(),
    "h264.mov": _h264(audio=True),
    "h264.ts": _h264(),
    "interlaced.mp4": _h264("interlaced=1:tff=1"),
    "interlaced.ts": _h264("interlaced=1:tff=1"),
    "intra.mp4": _h264(gop=1),
    "late.mkv": _h264(offset=3000),
    "late.mp4": _h264(offset=300),
    "late.ts": _h264(offset=300),
    "odd.mp4": _h264(size=(90, 154)),
    "one-group.mp4": _h264(gop=600),
    "one.mp4": _h264(frames=1),
    "open.mp4": _h264(OPEN_GOP),
    "open.ts": _h264(OPEN_GOP),
    "pyramid.mkv": _h264("bframes=7:b-pyramid=normal:b-adapt=0:ref=4:weightp=2:scenecut=0"),
    "raw.h264": _h264(),
    "refresh.mkv": _h264("intra-refresh=1:keyint=12"),
    "refresh.ts": _h264("intra-refresh=1:keyint=12"),
    "slices.mp4": _h264("slices=4"),
    "sound.ts": _h264(audio=True),
    "turned.mp4": Kind({"rotation": 90}, turns=1),
    "turned.mov": Kind({"rotation": -90}, turns=3),
    "upside-down.mp4": Kind({"rotation": 180}, turns=2),
    "vfr.flv": _h264(pts=VFR),
    "vfr.mkv": _h264(pts=VFR),
    "vfr.mp4": _h264(pts=VFR),
    "vfr.ts": _h264(pts=VFR),
    "hevc-fragmented.mp4": _hevc(container=FRAGMENTS),
    "hevc-open.mp4": _hevc("open-gop=1:keyint=12:min-keyint=12:bframes=4:b-adapt=0"),
    "hevc-open.ts": _hevc("open-gop=1:keyint=12:min-keyint=12:bframes=4:b-adapt=0"),
    "hevc-layers.mp4": _hevc("temporal-layers=3:bframes=3:b-adapt=0:keyint=24"),
    "hevc-vfr.mp4": _hevc(pts=VFR),
    "hevc.mkv": _hevc(),
    "hevc.mp4": _hevc(),
    "hevc10.mp4": _hevc(pix_fmt="yuv420p10le"),
    "raw.hevc": _hevc(),
    "vp8.webm": _of("libvpx", options={**LOOK_AHEAD, "b": "500k"}),
    "vp9-ahead.webm": _of("libvpx-vp9", options=LOOK_AHEAD),
    "vp9-vfr.webm": _of("libvpx-vp9", pts=VFR),
    "vp9.mp4": _of("libvpx-vp9"),
    "vp9.webm": _of("libvpx-vp9"),
    "av1-10.mp4": _of("libsvtav1", pix_fmt="yuv420p10le"),
    "av1.mp4": _of("libsvtav1"),
    "av1.webm": _of("libsvtav1"),
    "divx.avi": _of("mpeg4", options={"bf": "2"}),
    "mpeg4.mkv": _of("mpeg4", options={"bf": "2"}),
    "mpeg4.mp4": _of("mpeg4"),
    "motion.avi": _of("mjpeg", pix_fmt="yuvj420p"),
    "motion.mov": _of("mjpeg", pix_fmt="yuvj420p"),
    "mpeg2.ts": _of("mpeg2video", options={"bf": "2"}),
    "sorenson.flv": _of("flv"),
    "windows.wmv": _of("wmv2"),
}


def build(folder: Path, name: str) -> Path:
    """The clip `name` in `folder`, made if it is not there yet."""
    path, kind = folder / name, CORPUS[name]
    if not path.exists():
        partial = path.with_name("partial-" + name)
        if kind.shift_seconds is None:
            write_clip(partial, **kind.options)
        else:
            remux(build(folder, "plain.mp4"), partial, shift_seconds=kind.shift_seconds)
        shutil.move(partial, path)
    return path
