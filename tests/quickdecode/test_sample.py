"""Which frames a request means, and what it says about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import quickdecode
from tests.clips import ClipMaker, read_number
from tests.quickdecode.corpus import VFR, build


def test_num_frames_includes_both_ends(clip: Path) -> None:
    video = quickdecode.read_video(clip, num_frames=7)
    assert video.indices == [0, 10, 20, 30, 39, 49, 59]
    assert [read_number(frame) for frame in video.frames] == video.indices


def test_one_frame_is_the_first(clip: Path) -> None:
    assert quickdecode.read_video(clip, num_frames=1).indices == [0]


def test_nothing_asked_for_means_every_frame(clip: Path) -> None:
    assert quickdecode.read_video(clip).indices == list(range(60))


def test_fps_takes_the_frame_on_screen(clip: Path) -> None:
    video = quickdecode.read_video(clip, fps=4)
    assert video.indices == [0, 7, 15, 22, 30, 37, 45, 52]
    assert video.timestamps == pytest.approx([index / 30 for index in video.indices])


def test_fps_above_the_files_repeats_frames(clip: Path) -> None:
    assert quickdecode.read_video(clip, fps=60, end_seconds=0.1).indices == [0, 0, 1, 1, 2, 2]


def test_fps_goes_by_time_in_a_variable_rate_file(make_clip: ClipMaker) -> None:
    video = quickdecode.read_video(make_clip("vfr.mp4", pts=VFR), fps=5)
    starts = np.array(VFR) / 300
    expected = [int(np.searchsorted(starts, k / 5 + 1e-9, side="right")) - 1 for k in range(len(video))]
    assert video.indices == expected
    assert video.timestamps == pytest.approx(starts[expected])


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(None, 0.1, [0, 1, 2, 3]), (1.9, None, [57, 58, 59]), (1.0, 1.0, [30]), (1.95, 99.0, [59])],
)
def test_time_range(clip: Path, start: float | None, end: float | None, expected: list[int]) -> None:
    assert quickdecode.read_video(clip, start_seconds=start, end_seconds=end).indices == expected


def test_range_and_num_frames(clip: Path) -> None:
    video = quickdecode.read_video(clip, num_frames=3, start_seconds=0.5, end_seconds=1.5)
    assert video.indices == [15, 30, 45]


def test_time_starts_at_the_first_frame(make_clip: ClipMaker) -> None:
    path = make_clip("late.mkv", offset=3000)
    assert quickdecode.probe(path).begin_seconds == pytest.approx(100)
    assert quickdecode.read_video(path, indices=[0, 30]).timestamps == pytest.approx([0, 1])


def test_probe(clip: Path) -> None:
    info = quickdecode.probe(clip)
    assert (info.codec, info.pixel_format, info.height, info.width) == ("h264", "yuv420p", 96, 160)
    assert (info.num_frames, info.fps, info.duration_seconds) == (60, 30.0, 2.0)
    assert (info.num_keyframes, info.rotation, info.counted) == (5, 0, None)


@pytest.mark.parametrize("name", ["h264.ts", "h264.flv", "h264.mkv", "fragmented.mp4", "divx.avi"])
def test_rate_and_duration_without_a_header_that_states_them(clip_folder: Path, name: str) -> None:
    info = quickdecode.probe(build(clip_folder, name))
    assert info.fps == pytest.approx(30)
    assert info.duration_seconds == pytest.approx(2, abs=0.002)


def test_repr_shows_shapes_not_data(clip: Path) -> None:
    shown = repr(quickdecode.read_video(clip, num_frames=2))
    assert "2x3x96x160" in shown
    assert "tensor" not in shown
