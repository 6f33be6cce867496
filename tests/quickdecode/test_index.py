"""The three ways of numbering frames agree, and a file that belies its own table is read in a surer way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quickdecode
from quickdecode.index.packets import Way
from quickdecode.index.probe import inspect
from quickdecode.source.source import resolve
from tests.clips import ClipMaker, draw_scene, read_number, sequential_rgb
from tests.quickdecode.corpus import build
from tests.quickdecode.edits import rewritten

TABLED = [
    *("plain.mp4", "open.mp4", "hevc.mp4", "hevc10.mp4", "av1.mp4", "h264.mov", "mpeg4.mp4", "one-group.mp4"),
    *("vfr.mp4", "gap.mp4", "fragmented.mp4", "fragments-of-frames.mp4", "fragments-dash.mp4", "edit-list.mp4"),
    *("edit-end.mp4", "edit-both.mp4", "edit-pause.mp4", "prores.mov", "h264.mkv", "vfr.mkv", "live.mkv", "sound.mkv"),
    *("cues-first.mkv", "vp9.webm", "vp8.webm", "vp8-alpha.webm", "live.webm", "prores.mkv"),
]
PACKETS_NEEDED = ["h264.ts", "h264.flv", "motion.avi", "fragments-apart.mp4"]
NOT_COUNTED = ["prores.mov", "prores.mkv", "dnxhr.mov", "ffv1.mkv", "motion.avi", "huffyuv.avi", "png.mov", "png.avi"]
IN_ORDER = [
    "windows.wmv",
    "windows-1.wmv",
    "windows.avi",
    "msmpeg4.avi",
    "sorenson.flv",
    "h263.3gp",
    "vp8.webm",
    "mpeg2.ts",
]


@pytest.mark.parametrize("name", TABLED)
def test_ways_agree(clip_folder: Path, name: str) -> None:
    source = resolve(build(clip_folder, name))
    table, packets, counting, decoding = (inspect(source, at_least=way) for way in Way)
    assert [media.way for media in (table, packets, counting, decoding)] == list(Way)
    assert table.info == packets.info
    assert table.index is not None
    assert packets.index is not None
    for field in ("frame_pts", "positions", "keys", "key_times"):
        assert np.array_equal(getattr(table.index, field), getattr(packets.index, field)), field
    for other in (counting, decoding):
        assert np.array_equal(table.seconds, other.seconds)
        assert other.index is None
    assert counting.info.duration_seconds == table.info.duration_seconds


@pytest.mark.parametrize("name", PACKETS_NEEDED)
def test_packets_are_read_where_there_is_no_table(clip_folder: Path, name: str) -> None:
    assert inspect(resolve(build(clip_folder, name))).way == Way.PACKETS


@pytest.mark.parametrize("name", NOT_COUNTED)
def test_codecs_whose_frames_stand_alone_are_sought(clip_folder: Path, name: str) -> None:
    info = quickdecode.probe(build(clip_folder, name))
    assert info.counted is None
    assert info.num_keyframes == (3 if name == "ffv1.mkv" else info.num_frames)


@pytest.mark.parametrize("name", IN_ORDER)
def test_older_codecs_are_sought_by_key_frame(clip_folder: Path, name: str) -> None:
    info = quickdecode.probe(build(clip_folder, name))
    assert (info.counted, info.num_frames_exact) == (None, True)
    assert info.num_keyframes is not None
    assert 1 < info.num_keyframes < info.num_frames


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts the bytes that a process reads")
@pytest.mark.parametrize("name", ["long.mp4", "long-vfr.mp4", "long.mkv", "long-vfr.mkv"])
def test_a_table_is_a_small_part_of_the_file(make_clip: ClipMaker, name: str) -> None:
    times = [number * 10 + number // 7 * 23 for number in range(400)] if "vfr" in name else None
    path = make_clip(name, frames=400, size=(120, 160), draw=draw_scene, pts=times, options={"crf": "4"})
    assert path.stat().st_size > 2_000_000
    source, before = resolve(path), bytes_read()
    assert inspect(source).way == Way.TABLE
    assert bytes_read() - before < 0.1 * path.stat().st_size


def bytes_read() -> int:
    """By this process, in its whole life."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize("name", ["divx.avi", "h264.asf", "mpeg2.mpg", "vp8.ivf", "raw.h264"])
def test_frames_are_counted_by_the_decode_that_delivers_them(clip_folder: Path, name: str) -> None:
    """Nothing was decoded before: the number of frames is sure only once a read came to the end."""
    path = build(clip_folder, name)
    total = len(sequential_rgb(path))
    for request, exact in [({"indices": [3]}, False), ({"num_frames": 4}, True), ({}, True)]:
        info = quickdecode.read_video(path, **request).info  # type: ignore[arg-type]
        assert (info.num_frames, info.num_frames_exact) == (total, exact)
    assert inspect(resolve(path)).way == Way.COUNTING
    assert quickdecode.read_video(path, indices=[-1, 0]).indices == [total - 1, 0]


@pytest.mark.parametrize("name", ["late-pyramid.ts", "late-pyramid.mkv"])
def test_only_decoding_can_tell_how_many_frames_there_are(clip_folder: Path, name: str) -> None:
    """60 pictures, of which the decoder drops three when it finds that it has to reorder."""
    path = build(clip_folder, name)
    info = quickdecode.probe(path)
    assert (info.num_frames, info.num_frames_exact) == (60, False)
    video = quickdecode.read_video(path)
    assert (len(video), video.info.num_frames, video.info.num_frames_exact) == (57, 57, True)
    with pytest.raises(quickdecode.RequestError, match="index 58 was asked for, but the file has 57 frames"):
        quickdecode.read_video(path, indices=[58])


def test_repeated_times_leave_the_others_alone(clip_folder: Path) -> None:
    path = build(clip_folder, "repeats.mkv")
    video = quickdecode.read_video(path, fps=10)
    assert (len(video), video.info.duration_seconds) == (25, pytest.approx(2.5, abs=0.01))


@pytest.mark.parametrize("name", ["joined.ts", "joined-back.ts", "joined-between.ts", "joined-far.ts"])
def test_recordings_that_were_joined_play_one_after_the_other(clip_folder: Path, name: str) -> None:
    video = quickdecode.read_video(build(clip_folder, name))
    assert video.info.counted is not None
    total = video.info.num_frames
    assert video.timestamps == pytest.approx([number / 30 for number in range(total)], abs=0.001)
    assert video.info.duration_seconds == pytest.approx(total / 30, abs=0.001)


@pytest.mark.parametrize("share", [0.3, 0.97])
def test_frames_hidden_behind_the_end_of_an_edit(clip: Path, clip_folder: Path, share: float) -> None:
    content = bytearray(clip.read_bytes())
    place = content.index(b"elst") + 12
    duration = int.from_bytes(content[place : place + 4], "big")
    content[place : place + 4] = round(duration * share).to_bytes(4, "big")
    path = clip_folder / f"ends-at-{share}.mp4"
    path.write_bytes(content)
    truth = sequential_rgb(path)
    assert len(truth) < 60
    video = quickdecode.read_video(path)
    assert len(video) == len(truth)
    assert all(np.array_equal(ours.permute(1, 2, 0), theirs) for ours, theirs in zip(video.frames, truth, strict=True))


def test_a_table_with_even_dts_but_uneven_pts(clip_folder: Path) -> None:
    """Frame 41 is shown late."""

    def delay(number: int, packet: Any) -> None:
        packet.pts += 5 if number == 41 else 0

    path = clip_folder / "uneven.mp4"
    rewritten(delay)(build(clip_folder, "no-b.mp4"), path)
    assert inspect(resolve(path)).way == Way.TABLE
    video = quickdecode.read_video(path, indices=[40, 41, 42])
    assert [read_number(frame) for frame in video.frames] == [40, 41, 42]
    step = video.timestamps[2] - video.timestamps[0]
    assert video.timestamps[1] - video.timestamps[0] > step / 2


@pytest.mark.parametrize("name", ["muddled.mkv", "muddled.mp4", "muddled.ts"])
def test_a_container_whose_pts_are_in_decode_order(clip_folder: Path, name: str) -> None:
    """Times that do not belong to their pictures come out of the decoder in a different order: count instead."""
    video = quickdecode.read_video(build(clip_folder, name), indices=[3])
    assert video.info.counted is not None


@pytest.mark.parametrize("layers", [1, 3])
def test_hevc_skips_unreferenced_pictures_only_without_temporal_layers(make_clip: ClipMaker, layers: int) -> None:
    parameters = f"log-level=none:pools=1:frame-threads=1:bframes=3:b-adapt=0:temporal-layers={layers}:keyint=24"
    path = make_clip(f"layers-{layers}.mp4", codec="libx265", options={"x265-params": parameters})
    assert inspect(resolve(path)).skips_unreferenced == (layers == 1)
    truth = sequential_rgb(path)
    for index in range(60):
        frame = quickdecode.read_video(path, indices=[index]).frames[0]
        assert np.array_equal(frame.permute(1, 2, 0), truth[index])


@pytest.mark.parametrize("extradata", [b"", b"\x01", b"\x01" + bytes(21) + b"\xff", b"\x00\x00\x01\x40", None])
def test_malformed_parameter_sets_switch_skipping_off(extradata: bytes | None) -> None:
    from quickdecode.index.skip import skips_unreferenced

    assert not skips_unreferenced("hevc", extradata)
    assert not skips_unreferenced("av1", extradata)
    assert skips_unreferenced("h264", extradata)
