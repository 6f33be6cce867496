"""The three ways of numbering frames agree, and a file that belies its own table is read in a surer way."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import quickdecode
from quickdecode.index.packets import Way
from quickdecode.index.probe import inspect
from quickdecode.source.source import resolve
from tests.clips import ClipMaker, read_number, remux, sequential_rgb
from tests.quickdecode.corpus import build

needs_table = pytest.mark.skipif(find_spec("av.index") is None, reason="this PyAV has no access to the table")
TABLED = ["plain.mp4", "open.mp4", "hevc.mp4", "hevc10.mp4", "av1.mp4", "h264.mov", "mpeg4.mp4", "one-group.mp4"]


@needs_table
@pytest.mark.parametrize("name", TABLED)
def test_ways_agree(clip_folder: Path, name: str) -> None:
    source = resolve(build(clip_folder, name))
    table, packets, counting = (inspect(source, at_least=way) for way in Way)
    assert [media.way for media in (table, packets, counting)] == list(Way)
    for other in (packets, counting):
        assert np.array_equal(table.seconds, other.seconds)
        assert table.info.duration_seconds == pytest.approx(other.info.duration_seconds)
    assert table.info == packets.info


@pytest.mark.parametrize("name", ["vfr.mp4", "fragmented.mp4", "h264.mkv", "h264.ts", "vp9.webm"])
def test_packets_are_read_where_the_table_does_not_suffice(clip_folder: Path, name: str) -> None:
    assert inspect(resolve(build(clip_folder, name))).way == Way.PACKETS


def test_packets_are_read_where_frames_are_hidden(clip: Path, clip_folder: Path) -> None:
    path = remux(clip, clip_folder / "hidden.mp4", shift_seconds=-0.1)
    assert inspect(resolve(path)).way == Way.PACKETS


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


def rewritten(source: Path, target: Path, change: Any) -> Path:
    """Copy packets, `change(number, packet)` altering each."""
    with av.open(str(source)) as given, av.open(str(target), "w") as output:
        stream = given.streams.video[0]
        copy = output.add_stream_from_template(stream)
        packets = [packet for packet in given.demux(stream) if packet.size]
        for number, packet in enumerate(packets):
            packet.stream = copy
            change(number, packet)
            output.mux(packet)
    return target


@needs_table
def test_a_table_with_even_dts_but_uneven_pts(make_clip: ClipMaker, clip_folder: Path) -> None:
    """Frame 41 is shown late: the even spacing that the table suggests is wrong for it."""
    plain = make_clip("no-b.mp4", options={"bf": "0"})

    def delay(number: int, packet: Any) -> None:
        packet.pts += 5 if number == 41 else 0

    path = rewritten(plain, clip_folder / "uneven.mp4", delay)
    assert inspect(resolve(path)).way == Way.TABLE
    video = quickdecode.read_video(path, indices=[40, 41, 42])
    assert [read_number(frame) for frame in video.frames] == [40, 41, 42]
    step = video.timestamps[2] - video.timestamps[0]
    assert video.timestamps[1] - video.timestamps[0] > step / 2


def test_a_container_whose_pts_are_in_decode_order(make_clip: ClipMaker, clip_folder: Path) -> None:
    """Times that do not belong to their pictures come out of the decoder in a different order: count instead."""
    path = clip_folder / "muddled.mkv"

    def muddle(number: int, packet: Any) -> None:
        packet.pts = packet.dts = number * 640

    rewritten(make_clip("plain.mp4"), path, muddle)
    truth = sequential_rgb(path)
    video = quickdecode.read_video(path, indices=[5, 6, 7, 8])
    assert video.info.counted is not None
    assert all(np.array_equal(video.frames[row].permute(1, 2, 0), truth[5 + row]) for row in range(4))


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
