"""Every refusal is our own error and says what was given and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import quickdecode
from tests.clips import ClipMaker, write_audio


def test_nonexistent_file(tmp_path: Path) -> None:
    with pytest.raises(quickdecode.SourceError, match=r"gone\.mp4: no such file"):
        quickdecode.read_video(tmp_path / "gone.mp4")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(quickdecode.SourceError, match="not a regular file"):
        quickdecode.read_video(tmp_path)


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.mp4"
    path.touch()
    with pytest.raises(quickdecode.SourceError, match=r"empty \(0 bytes\)"):
        quickdecode.read_video(path)


@pytest.mark.parametrize("content", [b"hello " * 500, bytes(4096), b"\x89PNG\r\n\x1a\n" + bytes(500)])
def test_not_a_video(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.mp4"
    path.write_bytes(content)
    with pytest.raises(quickdecode.SourceError, match=r"text\.mp4: FFmpeg failed while opening it"):
        quickdecode.read_video(path)


def test_truncated_before_the_header(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.mp4"
    path.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    with pytest.raises(quickdecode.SourceError, match="damaged, truncated, or not a video"):
        quickdecode.read_video(path)


def test_truncated_after_the_header(make_clip: ClipMaker, tmp_path: Path) -> None:
    whole = make_clip("faststart.mp4", container={"movflags": "faststart"})
    path = tmp_path / "half.mp4"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    kept = quickdecode.probe(path).num_frames
    assert 20 < kept < 40
    assert quickdecode.read_video(path, indices=range(12)).indices == list(range(12))
    with pytest.raises(quickdecode.DecodeError, match=r"half\.mp4: .* cannot decode frames \d+ to \d+, \d\.\d+ s"):
        quickdecode.read_video(path, indices=[kept - 1])


def test_sound_only(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "song.m4a")
    with pytest.raises(quickdecode.SourceError, match="no video stream, only audio"):
        quickdecode.read_video(path)


def test_video_of_one_frame(make_clip: ClipMaker) -> None:
    path = make_clip("one.mp4", frames=1)
    assert quickdecode.read_video(path).frames.shape == (1, 3, 96, 160)
    assert quickdecode.read_video(path, fps=2).indices == [0]
    with pytest.raises(quickdecode.RequestError, match="the file has 1 frames"):
        quickdecode.read_video(path, num_frames=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 61}, "num_frames=61, but the file has 60 frames"),
        ({"num_frames": 5, "end_seconds": 0.1}, "has 4 frames in the given time range"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"num_frames": 2.5}, "num_frames is 2.5"),
        ({"num_frames": True}, "num_frames is True"),
        ({"fps": 0}, "fps=0"),
        ({"fps": float("nan")}, "fps=nan"),
        ({"fps": "2"}, "fps='2'"),
        ({"num_frames": 4, "fps": 2}, "num_frames and fps were given"),
        ({"indices": []}, "indices is empty"),
        ({"indices": [60]}, "index 60 .* last one has index 59, or -1"),
        ({"indices": [-61]}, "index -61 .* the first one 0, or -60"),
        ({"indices": [0], "start_seconds": 1.0}, "indices count from the start"),
        ({"start_seconds": 2.0}, "no frame starts between 2 s and 2 s; the video runs from 0 s to 2 s"),
        ({"start_seconds": 30.0, "end_seconds": 40.0}, "between 30 s and 40 s"),
        ({"start_seconds": 1.5, "end_seconds": 0.5}, "between 1.5 s and 0.5 s"),
        ({"start_seconds": -1.0}, "start_seconds=-1.0"),
        ({"end_seconds": float("inf")}, "end_seconds=inf"),
        ({"size": (0, 5)}, "a side of size is 0"),
        ({"size": 224}, "size=224"),
        ({"size": (10, 10, 3)}, r"size=\(10, 10, 3\)"),
        ({"size": (10.0, 10)}, "a side of size is 10.0"),
        ({"interpolation": "cubic"}, "interpolation='cubic'; it must be one of area, bicubic, bilinear, lanczos"),
        ({"workers": 0}, "workers is 0"),
        ({"workers": "two"}, "workers is 'two'"),
    ],
)
def test_bad_request(clip: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(quickdecode.RequestError, match=message):
        quickdecode.read_video(clip, **arguments)


def test_errors_form_one_tree() -> None:
    for error in ("SourceError", "RequestError", "DecodeError", "HostError"):
        assert issubclass(getattr(quickdecode, error), quickdecode.QuickDecodeError)
    assert issubclass(quickdecode.RequestError, ValueError)
