"""The corpus: small clips of every codec, container and peculiarity that quickdecode claims to read exactly."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.clips import write_clip
from tests.quickdecode.codecs import CODECS, FAST_VP8, INTRA, TWO_B
from tests.quickdecode.edits import (
    Edit,
    copied,
    cut_from,
    edited,
    joined,
    renamed,
    rewritten,
    shifted,
    times_by,
    write_late_pyramid,
)
from tests.quickdecode.kinds import Kind, delayed, h264, hevc, made_from, muddled, of, tiny
from tests.quickdecode.pictures import ONE, with_matrix


def turned(a: int, b: int, c: int, d: int) -> Edit:
    """With another display matrix."""
    return lambda source, target: with_matrix(source, target, a, b, c, d)


VFR = [number * 10 + number // 7 * 23 for number in range(60)]

OPEN_GOP = "open-gop=1:bframes=3:b-adapt=0:scenecut=0:keyint=12:min-keyint=12"
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
WRAP = 2**33 * 30 // 90000 - 20
"""Frames at 30 a second until the clock of an MPEG-TS starts again at 0, less 20."""

GROUPS = {
    "cuts.mp4": h264("scenecut=80:min-keyint=2", gop=250),
    "no-b.mp4": h264("bframes=0"),
    "one-group.mp4": h264(gop=600),
    "one.mp4": h264(frames=1),
    "two.mkv": tiny(frames=2),
    "open.mp4": h264(OPEN_GOP),
    "open.ts": h264(OPEN_GOP),
    "open.mkv": tiny(parameters=OPEN_GOP),
    "pyramid.mkv": h264("bframes=7:b-pyramid=normal:b-adapt=0:ref=4:weightp=2:scenecut=0"),
    "pyramid.mp4": tiny(parameters="bframes=15:b-pyramid=strict:b-adapt=0:ref=4:scenecut=0", gop=20),
    "late-pyramid.ts": Kind(write=write_late_pyramid),
    "late-pyramid.mkv": Kind(write=write_late_pyramid),
    "refresh.mkv": h264("intra-refresh=1:keyint=12"),
    "refresh.mp4": tiny(parameters="intra-refresh=1:keyint=12"),
    "refresh.ts": h264("intra-refresh=1:keyint=12"),
    "slices.mp4": h264("slices=4"),
    "hevc-open.mp4": hevc("open-gop=1:keyint=12:min-keyint=12:bframes=4:b-adapt=0"),
    "hevc-open.ts": hevc("open-gop=1:keyint=12:min-keyint=12:bframes=4:b-adapt=0"),
    "hevc-pyramid.mkv": tiny("libx265", parameters="bframes=8:b-pyramid=1:b-adapt=0:keyint=20"),
    "hevc-layers.mp4": hevc("temporal-layers=3:bframes=3:b-adapt=0:keyint=24"),
    "hevc-refresh.mkv": tiny("libx265", parameters="intra-refresh=1:keyint=12"),
    "hevc-low-delay.mp4": tiny("libx265", parameters="bframes=0:keyint=12"),
    "vp9-layers.webm": tiny(
        "libvpx-vp9",
        options={
            "deadline": "realtime",
            "cpu-used": "8",
            "ts-parameters": (
                "ts_number_layers=2:ts_target_bitrate=100,200:ts_rate_decimator=2,1:ts_periodicity=2:ts_layer_id=0,1"
            ),
        },
    ),
    "av1-layers.mp4": tiny("libsvtav1", parameters="hierarchical-levels=4:keyint=20"),
    "av1-low-delay.webm": tiny("libsvtav1", parameters="pred-struct=1"),
    "mpeg2-closed.ts": tiny("mpeg2video", options={"bf": "2", "flags": "+cgop", "sc_threshold": "1000000000"}),
    "mpeg2-one-group.ts": tiny("mpeg2video", gop=100, **TWO_B),
}
TIMES = {
    "early.mkv": made_from("plain.mp4", shifted(-0.2)),
    "edit-list.mp4": made_from("plain.mp4", shifted(-0.5)),
    "edit-end.mp4": made_from("plain.mp4", edited((1024 / 15360, 1.2))),
    "edit-both.mp4": made_from("plain.mp4", edited((0.7, 0.8))),
    "edit-pieces.mp4": made_from("plain.mp4", edited((0.3, 0.5), (1.2, 0.6))),
    "edit-back.mp4": made_from("plain.mp4", edited((1.2, 0.6), (0.3, 0.5))),
    "edit-pause.mp4": made_from("plain.mp4", edited((-1, 2.0), (0.3, 1.0))),
    "fast.mp4": h264(fps=120),
    "film.mp4": h264(fps=24),
    "fragmented.mp4": h264(container=FRAGMENTS),
    "fragments-of-frames.mp4": tiny(container={"movflags": "frag_every_frame+empty_moov"}),
    "fragments-dash.mp4": tiny(container={"movflags": "dash+global_sidx", "frag_duration": "400000"}),
    "fragments-apart.mp4": tiny(container={"movflags": "frag_keyframe+separate_moof+omit_tfhd_offset"}, audio=True),
    "fragments-vfr.mp4": tiny(pts=VFR[:30], container=FRAGMENTS),
    "fragments-edit.mp4": made_from("plain.mp4", copied(movflags="frag_keyframe+delay_moov")),
    "negative-offsets.mp4": tiny(container={"movflags": "negative_cts_offsets"}),
    "front.mp4": made_from("vfr.mp4", copied(movflags="faststart")),
    "gap.mp4": made_from("no-b.mp4", times_by(lambda number: number + (number >= 20), 512)),
    "gap-behind-a-pause.mp4": made_from("no-b.mp4", times_by(lambda number: 2 + number + (number >= 20), 512)),
    "gap.mkv": made_from("no-b.mp4", times_by(lambda number: number + 9 * (number >= 20), 640)),
    "repeats.mp4": made_from("no-b.mp4", times_by(lambda number: 2 + number - (number == 20), 512)),
    "repeats.mkv": made_from("no-b.mp4", times_by(lambda number: 2 + number - (number == 20), 640)),
    "gap-and-repeat.mp4": made_from("no-b.mp4", rewritten(delayed)),
    "muddled.mkv": made_from("plain.mp4", rewritten(muddled)),
    "muddled.mp4": made_from("plain.mp4", times_by(lambda number: number, 512)),
    "muddled.ts": made_from("plain.mp4", times_by(lambda number: number, 512)),
    "no-keys.mp4": made_from("plain.mp4", renamed(b"stss")),
    "no-keys-hevc.mp4": made_from("hevc.mp4", renamed(b"stss")),
    "no-keys-av1.mp4": made_from("av1.mp4", renamed(b"stss")),
    "no-keys-vp9.mp4": made_from("vp9.mp4", renamed(b"stss")),
    "no-keys-mpeg4.mp4": made_from("mpeg4.mp4", renamed(b"stss")),
    "live.mkv": made_from("plain.mp4", copied(live="1")),
    "live.webm": made_from("vp9.webm", copied(live="1", cluster_time_limit="200")),
    "cues-first.mkv": made_from("vfr.mp4", copied(reserve_index_space="4096", cluster_time_limit="300")),
    "sound.mkv": tiny(audio=True),
    "late.mkv": h264(offset=3000),
    "late.mp4": h264(offset=300),
    "late.ts": h264(offset=300),
    "sound.ts": h264(audio=True),
    "far.ts": tiny(offset=30 * 7200),
    "wrap.ts": tiny(offset=WRAP),
    "wrap-mpeg2.ts": tiny("mpeg2video", offset=WRAP, **TWO_B),
    "joined.ts": Kind(base="h264.ts", joined="open.ts"),
    "joined-back.ts": Kind(base="late.ts", joined="open.ts"),
    "joined-between.ts": Kind(base="h264.ts", joined="half-a-frame.ts"),
    "half-a-frame.ts": made_from("h264.ts", shifted(1 / 60)),
    "joined-later.ts": Kind(base="h264.ts", joined="late.ts"),
    "joined-far.ts": Kind(base="far.ts", joined="wrap.ts"),
    "joined.mpg": Kind(base="mpeg2.mpg", joined="mpeg2.mpg"),
    "middle.ts": made_from("h264.ts", cut_from(0.1)),
    "vfr.flv": h264(pts=VFR),
    "vfr.mkv": h264(pts=VFR),
    "vfr.mp4": h264(pts=VFR),
    "vfr.mov": tiny("prores_ks", "yuv422p10le", pts=VFR[:30]),
    "vfr.ts": h264(pts=VFR),
    "hevc-fragmented.mp4": hevc(container=FRAGMENTS),
    "hevc-vfr.mp4": hevc(pts=VFR),
    "vp9-vfr.webm": of("libvpx-vp9", pts=VFR),
}
PICTURES = {
    "full-range.mp4": h264("range=pc:colormatrix=bt709:colorprim=bt709:transfer=bt709"),
    "h264-10.mp4": h264(pix_fmt="yuv420p10le"),
    "h264-422.mov": h264(pix_fmt="yuv422p"),
    "h264-444.mp4": h264(pix_fmt="yuv444p"),
    "h264-gray.mp4": tiny(pix_fmt="gray"),
    "h264-rgb.mkv": tiny("libx264rgb", "rgb24"),
    "interlaced.mp4": h264("interlaced=1:tff=1"),
    "interlaced.ts": h264("interlaced=1:tff=1"),
    "interlaced.mkv": tiny(parameters="interlaced=1:bff=1", size=(64, 64)),
    "mpeg2-interlaced.ts": tiny("mpeg2video", options={"bf": "2", "flags": "+ilme+ildct"}),
    "mpeg2-422.ts": tiny("mpeg2video", "yuv422p", **TWO_B),
    "odd.mp4": h264(size=(90, 154)),
    "turned.mp4": Kind({"rotation": 90}, turns=1),
    "turned.mov": Kind({"rotation": -90}, turns=3),
    "upside-down.mp4": Kind({"rotation": 180}, turns=2),
    "mirrored.mp4": Kind(mirrored=True, edit=turned(-ONE, 0, 0, ONE)),
    "mirrored-down.mp4": Kind(turns=2, mirrored=True, edit=turned(ONE, 0, 0, -ONE)),
    "mirrored-diagonal.mp4": Kind(turns=3, mirrored=True, edit=turned(0, ONE, ONE, 0)),
    "hevc10.mp4": hevc(pix_fmt="yuv420p10le"),
    "hevc12.mp4": tiny("libx265", "yuv420p12le"),
    "hevc-422.mp4": tiny("libx265", "yuv422p10le"),
    "hevc-444.mkv": tiny("libx265", "yuv444p"),
    "hevc-gray.mp4": tiny("libx265", "gray"),
    "hevc-rgb.mp4": tiny("libx265", "gbrp"),
    "vp8-alpha.webm": tiny("libvpx", "yuva420p", options={**FAST_VP8["options"], "auto-alt-ref": "0"}),
    "vp9-alpha.webm": tiny("libvpx-vp9", "yuva420p"),
    "vp9-444.webm": tiny("libvpx-vp9", "yuv444p"),
    "vp9-rgb.webm": tiny("libvpx-vp9", "gbrp"),
    "av1-10.mp4": of("libsvtav1", pix_fmt="yuv420p10le"),
    "prores-alpha.mov": tiny("prores_ks", "yuva444p10le"),
    "ffv1-16.mkv": tiny("ffv1", "yuv444p16le"),
    "ffv1-alpha.mkv": tiny("ffv1", "bgra"),
    "ffv1-gray.mkv": tiny("ffv1", "gray10le"),
}
CORPUS: dict[str, Kind] = {**CODECS, **INTRA, **GROUPS, **TIMES, **PICTURES}


def build(folder: Path, name: str) -> Path:
    """The clip `name` below `folder`, made if it is not there yet."""
    path, kind = folder / "corpus" / name, CORPUS[name]
    if path.exists():
        return path
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name("partial-" + name)
    if kind.write is not None:
        kind.write(partial)
    elif kind.joined is not None:
        joined(build(folder, kind.joined))(build(folder, kind.base), partial)
    elif kind.edit is not None:
        kind.edit(build(folder, kind.base), partial)
    else:
        write_clip(partial, **kind.options)
    shutil.move(partial, path)
    return path
