"""A file that is kept open gives what it gives when it is opened anew, and so do the ways to name frames."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

import quickdecode
from quickdecode import VideoReader
from tests.clips import draw_number, read_number
from tests.quickdecode.corpus import build

NAMES = [
    "plain.mp4",
    "open.mp4",
    "h264.ts",
    "vp9.webm",
    "hevc.mkv",
    "divx.avi",
    "raw.h264",
    "one.mp4",
    "interlaced.mp4",
]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_many_small_reads(clip_folder: Path, name: str, workers: int) -> None:
    path = build(clip_folder, name)
    whole = quickdecode.read_video(path).frames
    random = np.random.default_rng(0)
    with VideoReader(path, workers=workers) as reader:
        assert len(reader) == len(whole)
        for _ in range(12):
            wanted = random.integers(0, len(whole), 5)
            assert torch.equal(reader[wanted], whole[torch.from_numpy(wanted)])


@pytest.mark.parametrize(
    "index",
    [
        0,
        -1,
        59,
        -60,
        slice(3, 9),
        slice(None, None, -7),
        slice(-3, None),
        [5, 3, -1],
        range(4),
        (1, 2),
        np.array([7, 9]),
    ],
    ids=str,
)
def test_indexing(clip: Path, index: Any) -> None:
    whole = quickdecode.read_video(clip).frames
    with VideoReader(clip) as reader:
        numbers = list(range(60))[index] if isinstance(index, (int, slice)) else [int(i) for i in index]
        assert torch.equal(reader[index], whole[numbers])


def test_indexing_with_tensors(clip: Path) -> None:
    whole = quickdecode.read_video(clip).frames
    with VideoReader(clip) as reader:
        assert torch.equal(reader[torch.tensor([3, -1])], whole[[3, -1]])
        assert torch.equal(reader[torch.tensor(4)], whole[4])
        assert torch.equal(reader[np.int64(-2)], whole[-2])
        assert len(list(reader)) == 60


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (60, IndexError, "index 60 was asked for, but the file has 60 frames"),
        (-61, IndexError, "index -61"),
        (True, quickdecode.RequestError, "an index is True"),
        ("1", quickdecode.RequestError, "an index is '1'"),
        (1.5, quickdecode.RequestError, "an index is 1.5"),
        ([60], quickdecode.RequestError, "index 60"),
        (60, quickdecode.FrameIndexError, "index 60"),
        (slice(9, 3), quickdecode.RequestError, "none of 60"),
        (torch.tensor([[1]]), quickdecode.RequestError, r"an index is \[1\]"),
        (torch.tensor([True]), quickdecode.RequestError, "an index is True"),
    ],
)
def test_bad_indexing(clip: Path, index: Any, error: type[Exception], message: str) -> None:
    with VideoReader(clip) as reader, pytest.raises(error, match=message):
        reader[index]


def test_read_takes_what_read_video_takes(clip: Path) -> None:
    requests: list[dict[str, Any]] = [{}, {"num_frames": 7}, {"fps": 3}, {"at_seconds": [1.2]}, {"start_seconds": 1.0}]
    with VideoReader(clip, size=(48, 80), interpolation="area") as reader:
        for request in requests:
            video, expected = (
                reader.read(**request),
                quickdecode.read_video(clip, size=(48, 80), interpolation="area", **request),
            )
            assert torch.equal(video.frames, expected.frames)
            assert (video.indices, video.timestamps) == (expected.indices, expected.timestamps)


def test_the_file_is_opened_once(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quickdecode.probe(clip)
    opened = []
    original = av.open
    monkeypatch.setattr(av, "open", lambda *args, **options: opened.append(args) or original(*args, **options))
    with VideoReader(clip, workers=1) as reader:
        for index in range(0, 60, 7):
            reader[index]
    assert len(opened) == 1


def test_what_failed_is_not_used_again(clip: Path, tmp_path: Path) -> None:
    """A read that was given up leaves a decoder somewhere in the file."""
    with VideoReader(clip, workers=1, size=(2400, 4000), timeout_seconds=0.05) as reader:
        with pytest.raises(quickdecode.ReadTimeoutError):
            reader[:]
        reader._options = quickdecode.VideoReader(clip, workers=1)._options
        assert read_number(reader[40]) == 40


def test_closed(clip: Path) -> None:
    with VideoReader(clip) as reader:
        assert repr(reader).endswith("plain.mp4': 60 frames of 96 x 160)")
    with pytest.raises(quickdecode.RequestError, match=r"plain\.mp4: this VideoReader is closed"):
        reader[0]


def test_from_several_threads(clip: Path) -> None:
    wrong: list[int] = []
    with VideoReader(clip, workers=1) as reader:

        def read(start: int) -> None:
            wrong.extend(i for i in range(start, 60, 4) if read_number(reader[i]) != i)

        threads = [threading.Thread(target=read, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def _in_a_child(work: Callable[[Any], None]) -> Any:
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=work, args=(answers,))
    process.start()
    process.join(60)
    alive = process.is_alive()
    process.kill()
    assert not alive, "the child hangs"
    return answers.get()


def test_after_a_fork(clip: Path) -> None:
    with VideoReader(clip, workers=2) as reader:
        assert read_number(reader[20]) == 20
        assert _in_a_child(lambda answers: answers.put([read_number(reader[i]) for i in (20, 55, 3)])) == [20, 55, 3]
        assert read_number(reader[21]) == 21


def test_in_a_pickle(clip: Path) -> None:
    with VideoReader(clip, size=(48, 80), workers=1) as reader, pickle.loads(pickle.dumps(reader)) as copy:
        assert torch.equal(copy[40], reader[40])


def test_a_pickle_resizes_as_its_reader_does(clip: Path) -> None:
    with VideoReader(clip, size=(48, 80), resize="exact", workers=1) as reader:
        fast = quickdecode.read_video(clip, indices=[40], size=(48, 80)).frames[0]
        assert not torch.equal(reader[40], fast)
        with pickle.loads(pickle.dumps(reader)) as copy:
            assert torch.equal(copy[40], reader[40])


def test_frames_on_screen(clip: Path) -> None:
    def shown(*times: float) -> list[int]:
        return quickdecode.read_video(clip, at_seconds=times).indices

    assert shown(0, 0.0333, 0.0334, 1.0, 0.51, 2.0) == [0, 0, 1, 30, 15, 59]
    assert quickdecode.read_video(clip, at_seconds=torch.tensor([0.5, 0.1])).indices == [15, 3]
    blocks = quickdecode.stream_video(clip, at_seconds=[0.2, 1.5], block_frames=1)
    assert [read_number(block.frames[0]) for block in blocks] == [6, 45]
    assert quickdecode.read_video(clip, at_seconds=[99], on_error="nearest").indices == [59]


def test_frames_on_screen_of_a_variable_rate(clip_folder: Path) -> None:
    path = build(clip_folder, "vfr.mp4")
    seconds = quickdecode.read_video(path).timestamps
    middle = [(a + b) / 2 for a, b in zip(seconds, seconds[1:], strict=False)]
    assert quickdecode.read_video(path, at_seconds=middle).indices == list(range(len(seconds) - 1))


@pytest.fixture(scope="module")
def two_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MP4 and what is in it: 20 frames numbered from 0 on, and 30 frames of another size numbered from 100 on."""
    path = tmp_path_factory.mktemp("two") / "two.mp4"
    with av.open(str(path), "w") as output:
        streams: list[Any] = [output.add_stream("libx264", rate=rate) for rate in (10, 15)]
        for stream, size in zip(streams, ((96, 160), (64, 128)), strict=True):
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
            stream.options = {"threads": "1"}
        for stream, first, count in zip(streams, (0, 100), (20, 30), strict=True):
            for number in range(count):
                picture = draw_number(first + number, stream.height, stream.width)
                output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            output.mux(stream.encode(None))
    return path


def test_choice_of_stream(two_videos: Path) -> None:
    assert [quickdecode.probe(two_videos, stream=i).num_frames for i in (0, 1, 0)] == [20, 30, 20]
    video = quickdecode.read_video(two_videos, stream=1, indices=[0, 29, 13])
    assert [read_number(frame) for frame in video.frames] == [100, 129, 113]
    assert video.frames.shape == (3, 3, 64, 128)
    assert [read_number(frame) for frame in quickdecode.read_video(two_videos).frames] == list(range(20))
    streamed = quickdecode.stream_video(two_videos, stream=1)
    assert [read_number(frame) for block in streamed for frame in block.frames] == list(range(100, 130))
    with quickdecode.VideoReader(two_videos, stream=1) as reader:
        assert read_number(reader[-1]) == 129
    with pytest.raises(quickdecode.RequestError, match=r"two\.mp4: stream=2, but the file has 2 video stream"):
        quickdecode.read_video(two_videos, stream=2)
    with pytest.raises(quickdecode.RequestError, match="stream is -1"):
        quickdecode.read_video(two_videos, stream=-1)
