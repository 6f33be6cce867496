"""Files from the web: no more is fetched than is needed, than is allowed, and than the deadline lets through."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

import quickdecode
from quickdecode.source import web
from quickdecode.source.source import resolve
from quickdecode.threads.pool import Deadline, call
from quickdecode.threads.stop import Stop
from tests.clips import ClipMaker
from tests.quickdecode.web import (
    Server,
    dripping,
    parts,
    silent,
    whole,
)

READERS: dict[str, Callable[..., Any]] = {
    "probe": quickdecode.probe,
    "read_video": quickdecode.read_video,
    "read_videos": lambda source, **options: quickdecode.read_videos([source], **options),
    "stream_video": lambda source, **options: list(quickdecode.stream_video(source, **options)),
    "VideoReader": quickdecode.VideoReader,
}


def ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("quickdecode")]


def no_thread_left(seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while ours() and time.monotonic() < end:
        time.sleep(0.02)
    return not ours()


@pytest.mark.parametrize("kind", ["parts", "whole"])
@pytest.mark.parametrize("name", ["plain.mp4", "h264.mkv", "h264.ts", "h264.avi"])
def test_same_frames(server: Server, make_clip: ClipMaker, name: str, kind: str) -> None:
    path = make_clip(name)
    content = path.read_bytes()
    server.answers[f"/{name}"] = parts(content) if kind == "parts" else whole(content)
    expected = quickdecode.read_video(path, num_frames=6)
    video = quickdecode.read_video(f"{server.address}/{name}", num_frames=6)
    assert torch.equal(video.frames, expected.frames)
    assert video.timestamps == expected.timestamps
    blocks = quickdecode.stream_video(f"{server.address}/{name}", num_frames=6, block_frames=2)
    assert torch.equal(torch.cat([block.frames for block in blocks]), expected.frames)
    with quickdecode.VideoReader(f"{server.address}/{name}") as reader:
        assert torch.equal(reader[video.indices], expected.frames)


def test_few_frames_fetch_a_small_part(server: Server, long_video: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(long_video) > 4_000_000
    monkeypatch.setattr(web, "LEAST_BYTES", web.BLOCK)
    server.answers["/long.mp4"] = parts(long_video)
    url = f"{server.address}/long.mp4"
    assert quickdecode.probe(url).num_frames == 160
    looked = server.sent
    video = quickdecode.read_video(url, indices=[0, 80], workers=1)
    assert torch.equal(video.frames, quickdecode.read_video(long_video, indices=[0, 80]).frames)
    assert looked < len(long_video) / 8
    assert server.sent - looked < len(long_video) / 3, "two of sixteen groups, and the tables"


def test_nothing_is_fetched_twice(server: Server, long_video: bytes) -> None:
    server.answers["/long.mp4"] = parts(long_video)
    with quickdecode.VideoReader(f"{server.address}/long.mp4", workers=1) as reader:
        reader[:]
        fetched = server.sent
        reader[:]
    assert server.sent == fetched <= 1.1 * len(long_video) + 2 * web.LEAST_BYTES


def test_a_short_body_is_no_video(server: Server, make_clip: ClipMaker) -> None:
    """A download that breaks off is not the whole file, even where what has come can be decoded."""
    content = make_clip("h264.ts").read_bytes()
    server.answers["/cut.ts"] = whole(content[: len(content) * 6 // 10], stated=len(content))
    with pytest.raises(quickdecode.SourceError, match=r"cut\.ts: the download failed \(peer closed connection"):
        quickdecode.read_video(f"{server.address}/cut.ts")


def test_a_part_that_breaks_off_is_asked_for_again(server: Server, long_video: bytes) -> None:
    server.answers["/long.mp4"] = parts(long_video, broken_after=100_000)
    video = quickdecode.read_video(f"{server.address}/long.mp4", num_frames=8)
    assert torch.equal(video.frames, quickdecode.read_video(long_video, num_frames=8).frames)


def test_a_server_that_gives_less_than_it_is_asked_for(server: Server, long_video: bytes) -> None:
    server.answers["/long.mp4"] = parts(long_video, most=70_000)
    video = quickdecode.read_video(f"{server.address}/long.mp4", num_frames=4)
    assert torch.equal(video.frames, quickdecode.read_video(long_video, num_frames=4).frames)
    server.answers["/tiny.mp4"] = parts(long_video, most=9)
    with pytest.raises(quickdecode.SourceError, match=r"tiny\.mp4: the download failed \(9 of 262,144 bytes came\)"):
        quickdecode.read_video(f"{server.address}/tiny.mp4")


def test_a_file_that_changes_while_it_is_read(server: Server, long_video: bytes) -> None:
    def answer(handler: Any) -> None:
        parts(long_video, tag='"one"' if handler.headers["Range"].startswith("bytes=0-") else '"other"')(handler)

    server.answers["/long.mp4"] = answer
    with pytest.raises(quickdecode.SourceError, match=r"long\.mp4: .* the server answered 200 .*has changed"):
        quickdecode.read_video(f"{server.address}/long.mp4")


@pytest.mark.parametrize("kind", ["parts", "whole"])
def test_more_than_is_allowed(server: Server, long_video: bytes, kind: str) -> None:
    server.answers["/long.mp4"] = parts(long_video) if kind == "parts" else whole(long_video)
    with pytest.raises(quickdecode.LimitError, match=r"long\.mp4: a download of .* the limit is 1,000,000"):
        quickdecode.read_video(f"{server.address}/long.mp4", limits=quickdecode.Limits(download_bytes=1_000_000))
    assert server.sent < 3_000_000


def test_a_stated_pebibyte_is_refused_at_once(server: Server) -> None:
    server.answers["/huge.mp4"] = dripping(bytes(1000), stated=1 << 50)
    with pytest.raises(quickdecode.LimitError, match=r"a download of 1,125,899,906,842,624 bytes or more"):
        quickdecode.read_video(f"{server.address}/huge.mp4")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["silent", "dripping"])
def test_a_deadline_ends_the_download_and_its_thread(server: Server, reader: str, kind: str) -> None:
    server.answers["/slow.mp4"] = silent if kind == "silent" else dripping(bytes(1000))
    limits = quickdecode.Limits(download_bytes=None)
    with pytest.raises(quickdecode.ReadTimeoutError, match=r"slow\.mp4: not read within timeout_seconds=0.3"):
        READERS[reader](f"{server.address}/slow.mp4", timeout_seconds=0.3, limits=limits)
    assert no_thread_left()
    sent = server.sent
    time.sleep(0.2)
    assert server.sent - sent <= 2000, "the connection is still open"


def test_a_deadline_while_frames_are_fetched(server: Server, long_video: bytes) -> None:
    def answer(handler: Any) -> None:
        (parts(long_video) if handler.headers["Range"].startswith("bytes=0-") else silent)(handler)

    server.answers["/long.mp4"] = answer
    with pytest.raises(quickdecode.ReadTimeoutError, match=r"long\.mp4: not read within"):
        quickdecode.read_video(f"{server.address}/long.mp4", timeout_seconds=0.5)
    assert no_thread_left()


def test_a_deadline_while_tables_are_read(server: Server) -> None:
    """Whoever reads a file without FFmpeg need not say when to stop: the thread that it is read on knows."""

    def answer(handler: Any) -> None:
        content = bytes(1 << 20)  # no MP4, whose tables would be looked for at once
        (parts(content) if handler.headers["Range"].startswith("bytes=0-") else silent)(handler)

    server.answers["/long.ts"] = answer
    found = resolve(f"{server.address}/long.ts", stop=Stop())

    def read(_: Stop) -> bytes:
        with found.file() as file:
            return file.read()

    with pytest.raises(TimeoutError):
        call(read, Deadline(0.3))
    assert no_thread_left()


def test_a_dropped_stream_hangs_up(server: Server, long_video: bytes) -> None:
    slow = threading.Event()

    def answer(handler: Any) -> None:
        (silent if slow.is_set() else parts(long_video))(handler)

    server.answers["/long.mp4"] = answer
    blocks = iter(quickdecode.stream_video(f"{server.address}/long.mp4", block_frames=1, workers=2))
    next(blocks)
    slow.set()
    del blocks
    assert no_thread_left()
