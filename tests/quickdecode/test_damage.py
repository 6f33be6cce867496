"""Damaged files: an error that names the frame, or the nearest frame if that is asked for."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

import quickdecode
from tests.clips import ClipMaker, read_number
from tests.quickdecode.corpus import build
from tests.quickdecode.edits import cut_at


@pytest.fixture(scope="session")
def damaged(make_clip: ClipMaker, clip_folder: Path) -> Path:
    """A clip without B-frames whose packets 30 to 35 are zeroed; its groups start at 0, 12, 24, 36 and 48."""
    plain = make_clip("no-b.mp4", options={"bf": "0"})
    path = clip_folder / "damaged.mp4"
    content = bytearray(plain.read_bytes())
    with av.open(str(plain)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        for packet in packets[30:36]:
            assert packet.pos is not None
            content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(content)
    return path


def test_frames_before_and_after_the_damage_are_fine(damaged: Path) -> None:
    video = quickdecode.read_video(damaged, indices=[0, 29, 36, 59])
    assert [read_number(frame) for frame in video.frames] == [0, 29, 36, 59]
    assert video.replaced == {}


def test_a_damaged_frame_raises(damaged: Path) -> None:
    with pytest.raises(
        quickdecode.DecodeError, match=r"damaged\.mp4: .* frames 33 to 33, 1\.100 s .*on_error=\"nearest\""
    ):
        quickdecode.read_video(damaged, indices=[5, 33])


def test_nearest_frame_instead(damaged: Path) -> None:
    video = quickdecode.read_video(damaged, indices=[5, 33, 50], on_error="nearest")
    assert video.indices == [5, 29, 50]
    assert video.replaced == {33: 29}
    assert [read_number(frame) for frame in video.frames] == [5, 29, 50]
    assert "1 replaced" in repr(video)


def test_nearest_beyond_the_end(clip: Path) -> None:
    video = quickdecode.read_video(clip, indices=[3, 99], on_error="nearest")
    assert (video.indices, video.replaced) == ([3, 59], {99: 59})


@pytest.mark.parametrize("name", ["front.mp4", "h264.mkv", "vp9.webm", "fragmented.mp4"])
def test_a_truncated_file_is_refused(clip_folder: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    cut_at(0.6)(build(clip_folder, name), path)
    info = quickdecode.probe(path)
    assert info.truncated is not None
    message = rf"{name}: the file is cut short \(.*\); download or copy it again, or pass on_error=\"nearest\" to read"
    for read in (quickdecode.read_video, quickdecode.stream_video):
        with pytest.raises(quickdecode.SourceError, match=message):
            read(path, num_frames=4)  # type: ignore[operator]
    assert quickdecode.read_video(path, indices=[3, 17]).indices == [3, 17]
    assert quickdecode.probe(build(clip_folder, name)).truncated is None


@pytest.mark.parametrize("name", ["front.mp4", "h264.mkv", "vp9.webm", "fragmented.mp4"])
def test_nearest_in_a_truncated_file(clip_folder: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    cut_at(0.6)(build(clip_folder, name), path)
    video = quickdecode.read_video(path, on_error="nearest")
    assert 20 < len(video) == video.info.num_frames < 50
    numbers = [read_number(frame) for frame in video.frames]
    assert numbers[:20] == list(range(20))
    assert numbers == sorted(numbers)
    assert len(video.replaced) < 6


def test_nearest_where_frames_are_counted(make_clip: ClipMaker, tmp_path: Path) -> None:
    whole = make_clip("h264.avi")
    content = bytearray(whole.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    path = tmp_path / "damaged.avi"
    path.write_bytes(content)
    video = quickdecode.read_video(path, on_error="nearest")
    assert len(video) == video.info.num_frames > 20


def test_a_recording_that_starts_in_the_middle_of_a_group(make_clip: ClipMaker, tmp_path: Path) -> None:
    whole = make_clip("h264.ts").read_bytes()
    path = tmp_path / "cut.ts"
    path.write_bytes(whole[len(whole) // 10 // 188 * 188 :])
    video = quickdecode.read_video(path, num_frames=5)
    assert len(video) == 5


def test_bad_on_error(clip: Path) -> None:
    with pytest.raises(quickdecode.RequestError, match="on_error='skip'; it must be one of raise, nearest"):
        quickdecode.read_video(clip, on_error="skip")
