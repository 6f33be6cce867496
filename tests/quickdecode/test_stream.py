"""Streaming delivers the frames of read_video, in order, early, and does not run away from its consumer."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest
import torch

import quickdecode
from quickdecode.decode import ring
from quickdecode.lazy.frames import lazy_frames
from quickdecode.stream import Reading
from tests.clips import ClipMaker, read_number
from tests.quickdecode.corpus import build

NAMES = ["plain.mp4", "open.mp4", "h264.ts", "vp9.webm", "hevc.mkv", "divx.avi", "raw.h264", "one.mp4", "intra.mp4"]
REQUESTS: list[dict[str, Any]] = [{}, {"fps": 7}, {"indices": [0, 0, 5]}, {"start_seconds": 0.5, "end_seconds": 1.1}]


@pytest.mark.parametrize("name", NAMES)
def test_same_frames_as_read_video(clip_folder: Path, name: str) -> None:
    path = build(clip_folder, name)
    for request in REQUESTS if name == "plain.mp4" else [{}]:
        whole = quickdecode.read_video(path, size=(56, 84), **request)
        stream = quickdecode.stream_video(path, size=(56, 84), block_frames=7, workers=3, **request)
        assert replace(stream.info, num_frames_exact=whole.info.num_frames_exact) == whole.info
        assert stream.indices == whole.indices
        blocks = list(stream)
        assert [len(block) for block in blocks[:-1]] == [7] * (len(blocks) - 1)
        assert torch.equal(torch.cat([block.frames for block in blocks]), whole.frames)
        assert [time for block in blocks for time in block.timestamps] == whole.timestamps
        assert len(stream) == len(whole)


def test_early_blocks_come_early_and_decoding_waits(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two frames of room and a consumer that stops after the first, most groups are never begun."""
    from quickdecode.decode import fill

    begun = []
    decode = fill.SegmentDecoder.decode

    def spy(self: Any, segment: Any, **options: Any) -> Any:
        begun.append(segment.key)
        return decode(self, segment, **options)

    monkeypatch.setattr(fill.SegmentDecoder, "decode", spy)
    monkeypatch.setattr(ring, "READ_AHEAD_BYTES", 1)
    path = build(clip_folder, "intra.mp4")
    blocks = iter(quickdecode.stream_video(path, block_frames=1, workers=2))
    assert [read_number(frame) for frame in next(blocks).frames] == [0]
    assert len(begun) <= 5  # one taken, two in the room, two workers at the door
    blocks.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("quickdecode")]
    assert len(begun) <= 6


def test_errors(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(quickdecode.RequestError, match="block_frames is 0"):
        quickdecode.stream_video(clip, block_frames=0)
    with pytest.raises(quickdecode.RequestError, match="not in ascending order"):
        quickdecode.stream_video(clip, indices=[5, 3])
    with pytest.raises(quickdecode.SourceError, match="no such file"):
        quickdecode.stream_video(tmp_path / "gone.mp4")
    with pytest.raises(quickdecode.LimitError, match="60 frames to deliver"):
        quickdecode.stream_video(clip, limits=quickdecode.Limits(frames=10))


def test_block_repr(clip: Path) -> None:
    assert repr(next(iter(quickdecode.stream_video(clip)))) == "FrameBlock(16 frames, 0 to 15)"


@pytest.mark.parametrize("name", ["long-group.mp4", "counted"])
def test_a_stream_holds_a_few_blocks_whatever_its_length(
    make_clip: ClipMaker, clip_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Also where one group of pictures, or a whole file whose frames must be counted, is longer than the buffer."""
    monkeypatch.setattr(ring, "READ_AHEAD_BYTES", 1)
    path = build(clip_folder, "raw.h264") if name == "counted" else make_clip(name, frames=90, gop=40)
    stream = quickdecode.stream_video(path, block_frames=3, size=(56, 84), workers=3)
    with Reading(stream) as reading:
        numbers = []
        while reading.position < len(stream):
            numbers += [read_number(frame) for frame in reading.take(min(3, len(stream) - reading.position))]
            assert reading.ring.nbytes == 2 * 3 * 3 * 56 * 84, "two blocks"
    assert numbers == stream.indices


def test_one_frame_for_more_rows_than_there_is_room(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "READ_AHEAD_BYTES", 1)
    indices = [*[3] * 11, 4, *[20] * 9, 59]
    blocks = quickdecode.stream_video(clip, indices=indices, block_frames=2, workers=2)
    assert [read_number(frame) for block in blocks for frame in block.frames] == indices


def test_dropping_a_reading_stops_its_threads(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "READ_AHEAD_BYTES", 1)
    reading = Reading(quickdecode.stream_video(clip, block_frames=1, workers=2))
    reading.take(1)
    assert any(thread.name.startswith("quickdecode") for thread in threading.enumerate())
    del reading
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("quickdecode")]


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux only")
def test_decoding_for_a_model_on_the_cpu_gives_way_to_it(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain stream's threads keep the program's priority: nothing says that its reader needs the cores."""
    monkeypatch.setattr(ring, "READ_AHEAD_BYTES", 1)
    before = os.getpriority(os.PRIO_PROCESS, 0)

    def priorities() -> set[int]:
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("quickdecode")]
        return {os.getpriority(os.PRIO_PROCESS, thread.native_id or 0) for thread in threads}

    stream = quickdecode.stream_video(clip, block_frames=2, workers=2)
    with Reading(stream) as reading:
        reading.take(2)
        assert priorities() == {before}
    frames = lazy_frames(stream)
    frames.rows(0, 2)
    assert priorities() == {19}
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    frames.close()


def test_a_timeout_counts_while_the_reader_waits(clip: Path) -> None:
    late = quickdecode.stream_video(clip, timeout_seconds=0.4)
    time.sleep(0.5)
    with pytest.raises(quickdecode.ReadTimeoutError, match=r"plain\.mp4"):
        list(late)


def without_last_pictures(clip: Path, path: Path, count: int) -> Path:
    """The clip, MPEG-4 part 2, its last pictures marked as not coded: the tables promise more than there is."""
    content = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for place, size in places[-count:]:
        content[place : place + size] = (b"\0\0\1\xb6\x50\xdf" + bytes(size))[:size]
    path.write_bytes(content)
    return path


def test_a_file_with_fewer_frames_than_it_promises(clip_folder: Path, tmp_path: Path) -> None:
    """The stream ends where the file does, instead of in "generator raised StopIteration"."""
    path = without_last_pictures(build(clip_folder, "mpeg4.mp4"), tmp_path / "short.mp4", count=3)
    whole = quickdecode.read_video(path)
    fresh = shutil.copy(path, tmp_path / "again.mp4")
    stream = quickdecode.stream_video(fresh, block_frames=16)
    blocks = list(stream)
    assert [index for block in blocks for index in block.indices] == whole.indices
    assert torch.equal(torch.cat([block.frames for block in blocks]), whole.frames)
    assert len(stream) == len(whole) < 60


@pytest.mark.parametrize("block_frames", [1, 5, 60])
def test_nearest_frames(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_frames: int) -> None:
    """Also where what replaces a group of pictures does not fit into the buffer at once."""
    monkeypatch.setattr(ring, "READ_AHEAD_BYTES", 1)
    damaged = tmp_path / "damaged.mp4"
    content = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for place, size in packets[26:33]:
        content[place : place + size] = bytes(size)
    damaged.write_bytes(content)
    request = {"indices": [*range(20, 40), 40, 40, 99], "on_error": "nearest"}
    whole = quickdecode.read_video(damaged, **request)
    blocks = list(
        quickdecode.stream_video(damaged, block_frames=block_frames, workers=3, timeout_seconds=60, **request)
    )
    assert whole.replaced.keys() > {99}
    assert [index for block in blocks for index in block.indices] == whole.indices
    assert torch.equal(torch.cat([block.frames for block in blocks]), whole.frames)
    assert {asked: shown for block in blocks for asked, shown in block.replaced.items()} == whole.replaced
    with pytest.raises(quickdecode.DecodeError, match="cannot decode frames"):
        list(quickdecode.stream_video(damaged, block_frames=block_frames))


def test_indices_from_the_end(clip: Path) -> None:
    blocks = quickdecode.stream_video(clip, indices=[3, -2, -1], block_frames=2)
    assert [index for block in blocks for index in block.indices] == [3, 58, 59]
    with pytest.raises(quickdecode.RequestError, match="not in ascending order"):
        quickdecode.stream_video(clip, indices=[-1, 3])
