"""Bounds on size and time, and how many threads are used."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import quickdecode
from quickdecode.threads import cores
from tests.clips import ClipMaker, read_number


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (quickdecode.Limits(frame_pixels=95 * 160), "frames of 96 x 160 pixels; the limit is 15,200"),
        (quickdecode.Limits(frames=59), r"60 frames to deliver; the limit is 59.*Limits\(frames=None\)"),
        (quickdecode.Limits(seconds=1.5), "a duration of 2 s; the limit is 1.5"),
    ],
)
def test_limits(clip: Path, limits: quickdecode.Limits, message: str) -> None:
    with pytest.raises(quickdecode.LimitError, match=message):
        quickdecode.read_video(clip, limits=limits)


def test_limits_can_be_lifted(clip: Path) -> None:
    none = quickdecode.Limits(frame_pixels=None, frames=None, seconds=None)
    assert len(quickdecode.read_video(clip, limits=none)) == 60


def test_limit_on_the_delivered_size(clip: Path) -> None:
    with pytest.raises(quickdecode.LimitError, match="frames of 20000 x 20000 pixels"):
        quickdecode.read_video(clip, num_frames=2, size=(20000, 20000))


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("quickdecode")}


def test_timeout(clip: Path) -> None:
    quickdecode.probe(clip)
    began = time.monotonic()
    with pytest.raises(quickdecode.ReadTimeoutError, match=r"plain\.mp4: not read within timeout_seconds=0.05"):
        quickdecode.read_video(clip, size=(2400, 4000), timeout_seconds=0.05)
    assert time.monotonic() - began < 60
    while threads() and time.monotonic() - began < 10:
        time.sleep(0.05)
    assert not threads()


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accepts a request and never answers."""
    end = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            end.wait(300)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/talk.mp4"
        end.set()
        server.shutdown()
        thread.join()


def test_timeout_of_a_download(silent_server: str) -> None:
    began = time.monotonic()
    with pytest.raises((quickdecode.ReadTimeoutError, quickdecode.SourceError), match="not read within|timed out"):
        quickdecode.read_video(silent_server, timeout_seconds=0.3)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("timeout", [0, -1, "1", float("nan")])
def test_bad_timeout(clip: Path, timeout: float) -> None:
    with pytest.raises(quickdecode.RequestError, match="timeout_seconds="):
        quickdecode.read_video(clip, timeout_seconds=timeout)


READERS: dict[str, Callable[..., Any]] = {
    "probe": quickdecode.probe,
    "read_video": quickdecode.read_video,
    "read_videos": lambda source, **options: quickdecode.read_videos([source], **options),
    "stream_video": lambda source, **options: list(quickdecode.stream_video(source, **options)),
}


class Blocked(io.BytesIO):
    """A source that answers nothing until the test ends."""

    def __init__(self, end: threading.Event) -> None:
        self._end = end

    def getvalue(self) -> bytes:
        self._end.wait(300)
        return b""


@pytest.fixture
def end() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("reader", READERS)
def test_timeout_of_a_file_object_that_blocks(reader: str, end: threading.Event) -> None:
    began = time.monotonic()
    with pytest.raises(quickdecode.ReadTimeoutError, match=r"<Blocked>: not read within timeout_seconds=0.2"):
        READERS[reader](Blocked(end), timeout_seconds=0.2)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("reader", READERS)
def test_timeout_while_ffmpeg_opens_the_file(
    reader: str, clip: Path, end: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(av, "open", lambda *_, **__: end.wait(300))
    began = time.monotonic()
    with pytest.raises(quickdecode.ReadTimeoutError, match=r"\.mp4: not read within timeout_seconds=0.2"):
        READERS[reader](shutil.copy(clip, clip.with_name(f"blocked-{reader}.mp4")), timeout_seconds=0.2)
    assert time.monotonic() - began < 60


# A shell's background job starts with Ctrl-C switched off.
LISTEN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
BLOCKED = f"""{LISTEN}
import av, sys, threading, quickdecode
av.open = lambda *_, **__: threading.Event().wait(300)
print("opening", flush=True)
getattr(quickdecode, sys.argv[2])([sys.argv[1]] if sys.argv[2] == "read_videos" else sys.argv[1])
"""
INTERRUPTED = f"""{LISTEN}
import sys, quickdecode
print("reading", flush=True)
while True:
    quickdecode.read_video(sys.argv[1], size=(1080, 1920))
"""


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
@pytest.mark.parametrize(
    ("program", "reader"),
    [(INTERRUPTED, "read_video"), (BLOCKED, "probe"), (BLOCKED, "read_videos"), (BLOCKED, "stream_video")],
)
def test_ctrl_c_ends_a_read_at_once(clip: Path, program: str, reader: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(clip), reader],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(quickdecode.__file__).parents[1],
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    assert b"KeyboardInterrupt" in errors


def test_variable_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUICKDECODE_WORKERS", "7")
    assert cores.usable_cores() == 7
    for bad in ("0", "many", "-1", "1.5"):
        monkeypatch.setenv("QUICKDECODE_WORKERS", bad)
        with pytest.raises(quickdecode.RequestError, match=f"QUICKDECODE_WORKERS='{bad}'"):
            cores.usable_cores()


def test_ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUICKDECODE_WORKERS", raising=False)
    monkeypatch.setattr(cores, "_affinity", lambda: 16)
    monkeypatch.setattr(cores, "_quota", lambda: None)
    assert cores.usable_cores() == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert cores.usable_cores() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert cores.usable_cores() == 1


@pytest.mark.parametrize(
    ("text", "expected"), [("max 100000", None), ("200000 100000", 2), ("150000 100000", 2), ("nonsense", None)]
)
def test_cgroup_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: int | None) -> None:
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(cores, "CGROUP_V2", tmp_path / "cpu.max")
    assert cores._quota() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", None), ("400000", 4)])
def test_old_cgroup_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int | None) -> None:
    (tmp_path / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu.cfs_period_us").write_text("100000")
    monkeypatch.setattr(cores, "CGROUP_V2", tmp_path / "absent")
    monkeypatch.setattr(cores, "CGROUP_V1", tmp_path)
    assert cores._quota() == expected


class Clips(Dataset[tuple[int, torch.Tensor]]):
    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: int) -> tuple[int, torch.Tensor]:
        return cores.usable_cores(), quickdecode.read_video(self.paths[item], num_frames=4).frames


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
def test_inside_data_loader_workers(
    make_clip: ClipMaker, clip: Path, monkeypatch: pytest.MonkeyPatch, method: str, workers: int
) -> None:
    monkeypatch.delenv("QUICKDECODE_WORKERS", raising=False)
    paths = [str(clip), str(make_clip("h264.mkv")), str(make_clip("h264.avi"))]
    alone = [quickdecode.read_video(path, num_frames=4).frames for path in paths]
    loader = DataLoader(Clips(paths), batch_size=None, num_workers=workers, multiprocessing_context=method)
    for (used, frames), expected in zip(loader, alone, strict=True):
        assert used == 1
        assert torch.equal(frames, expected)


def test_eight_threads_at_once(make_clip: ClipMaker, clip: Path) -> None:
    paths = [clip, make_clip("h264.mkv"), make_clip("h264.avi"), make_clip("h264.ts")] * 2
    alone = [quickdecode.read_video(path, num_frames=9) for path in paths]
    together = quickdecode.read_videos(paths, num_frames=9, workers=8)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.frames, other.frames)
        assert one.timestamps == other.timestamps


def test_several_sources_keep_their_order(make_clip: ClipMaker, clip: Path) -> None:
    short = make_clip("one.mp4", frames=1)
    videos = quickdecode.read_videos([clip, short, clip.read_bytes()], workers=2)
    assert [len(video) for video in videos] == [60, 1, 60]
    assert quickdecode.read_videos([]) == []
    with pytest.raises(quickdecode.SourceError, match="no such file"):
        quickdecode.read_videos([clip, "/nonexistent.mp4"])


@pytest.mark.parametrize(
    ("blocks", "workers", "threads"), [(1, 2, 2), (1, 8, 8), (3, 8, 3), (3, 2, 2), (6, 2, 1), (100, 16, 1), (5, 1, 1)]
)
def test_few_groups_use_frame_threads(blocks: int, workers: int, threads: int) -> None:
    from quickdecode.decode.fill import decoder_threads

    assert decoder_threads(blocks, workers) == threads


def test_more_workers_than_groups_use_frame_threads(make_clip: ClipMaker) -> None:
    path = make_clip("one-group.mp4", gop=600)
    one, many = (quickdecode.read_video(path, workers=workers) for workers in (1, 8))
    assert torch.equal(one.frames, many.frames)
    assert [read_number(frame) for frame in many.frames] == list(range(60))
