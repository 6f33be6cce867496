"""Files from the web: no more is fetched than is needed, than is allowed, and than the deadline lets through."""

from __future__ import annotations

import gzip
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import quickdecode
from quickdecode.source import web
from tests.clips import ClipMaker, write_clip
from tests.quickdecode.web import (
    Server,
    body,
    dripping,
    head,
    parts,
    redirected,
    serving,
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


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


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


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Some megabytes, sixteen key frames."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    options = {"preset": "ultrafast", "qp": "16", "threads": "1"}
    return write_clip(path, frames=160, size=(160, 256), gop=10, options=options, draw=noise).read_bytes()


def noise(number: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (height, width, 3), np.uint8)


def test_few_frames_fetch_a_small_part(server: Server, long: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(long) > 4_000_000
    monkeypatch.setattr(web, "LEAST_BYTES", web.BLOCK)
    server.answers["/long.mp4"] = parts(long)
    url = f"{server.address}/long.mp4"
    assert quickdecode.probe(url).num_frames == 160
    looked = server.sent
    video = quickdecode.read_video(url, indices=[0, 80], workers=1)
    assert torch.equal(video.frames, quickdecode.read_video(long, indices=[0, 80]).frames)
    assert looked < len(long) / 8
    assert server.sent - looked < len(long) / 3, "two of sixteen groups, and the tables"


def test_nothing_is_fetched_twice(server: Server, long: bytes) -> None:
    server.answers["/long.mp4"] = parts(long)
    with quickdecode.VideoReader(f"{server.address}/long.mp4", workers=1) as reader:
        reader[:]
        fetched = server.sent
        reader[:]
    assert server.sent == fetched <= 1.1 * len(long) + 2 * web.LEAST_BYTES


def test_a_short_body_is_no_video(server: Server, make_clip: ClipMaker) -> None:
    """A download that breaks off is not the whole file, even where what has come can be decoded."""
    content = make_clip("h264.ts").read_bytes()
    server.answers["/cut.ts"] = whole(content[: len(content) * 6 // 10], stated=len(content))
    with pytest.raises(quickdecode.SourceError, match=r"cut\.ts: the download failed \(peer closed connection"):
        quickdecode.read_video(f"{server.address}/cut.ts")


def test_a_part_that_breaks_off_is_asked_for_again(server: Server, long: bytes) -> None:
    server.answers["/long.mp4"] = parts(long, broken_after=100_000)
    video = quickdecode.read_video(f"{server.address}/long.mp4", num_frames=8)
    assert torch.equal(video.frames, quickdecode.read_video(long, num_frames=8).frames)


def test_a_file_that_changes_while_it_is_read(server: Server, long: bytes) -> None:
    def answer(handler: Any) -> None:
        parts(long, tag='"one"' if handler.headers["Range"].startswith("bytes=0-") else '"other"')(handler)

    server.answers["/long.mp4"] = answer
    with pytest.raises(quickdecode.SourceError, match=r"long\.mp4: .* the server answered 200 .*has changed"):
        quickdecode.read_video(f"{server.address}/long.mp4")


@pytest.mark.parametrize("kind", ["parts", "whole"])
def test_more_than_is_allowed(server: Server, long: bytes, kind: str) -> None:
    server.answers["/long.mp4"] = parts(long) if kind == "parts" else whole(long)
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


def test_a_deadline_while_frames_are_fetched(server: Server, long: bytes) -> None:
    def answer(handler: Any) -> None:
        (parts(long) if handler.headers["Range"].startswith("bytes=0-") else silent)(handler)

    server.answers["/long.mp4"] = answer
    with pytest.raises(quickdecode.ReadTimeoutError, match=r"long\.mp4: not read within"):
        quickdecode.read_video(f"{server.address}/long.mp4", timeout_seconds=0.5)
    assert no_thread_left()


def test_a_dropped_stream_hangs_up(server: Server, long: bytes) -> None:
    slow = threading.Event()

    def answer(handler: Any) -> None:
        (silent if slow.is_set() else parts(long))(handler)

    server.answers["/long.mp4"] = answer
    blocks = iter(quickdecode.stream_video(f"{server.address}/long.mp4", block_frames=1, workers=2))
    next(blocks)
    slow.set()
    del blocks
    assert no_thread_left()


@pytest.mark.parametrize("place", ["/my talk (1).mp4", "/vidéo/日本.mp4", "/100%25.mp4"])
def test_spaces_and_letters_of_the_world(server: Server, clip: Path, place: str) -> None:
    from urllib.parse import quote

    server.answers[quote(place, safe="/%()")] = parts(clip.read_bytes())
    assert quickdecode.probe(server.address + place).num_frames == 60


def test_redirects(server: Server, clip: Path) -> None:
    server.answers["/clip.mp4"] = parts(clip.read_bytes())
    server.answers["/first"] = redirected("/second?x=1")
    server.answers["/second?x=1"] = redirected(f"{server.address}/clip.mp4")
    server.answers["/round"] = redirected("/round")
    assert len(quickdecode.read_video(f"{server.address}/first", num_frames=5)) == 5
    assert [place for place, _ in server.asked].count("/first") == 1
    with pytest.raises(quickdecode.SourceError, match="redirects"):
        quickdecode.probe(f"{server.address}/round")


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/talk.mp4", "//"])
def test_redirects_leave_the_web_nowhere(server: Server, target: str) -> None:
    server.answers["/talk.mp4"] = redirected(target)
    with pytest.raises(quickdecode.SourceError, match="the download failed"):
        quickdecode.probe(f"{server.address}/talk.mp4")


def test_an_address_that_has_expired_is_asked_for_again(server: Server, long: bytes) -> None:
    """Storage services redirect to signed addresses that are good for a while."""
    asked: list[str] = []

    def signed(handler: Any) -> None:
        asked.append(handler.path)
        (parts(long) if asked.count(handler.path) == 1 else lambda it: head(it, 403, {"Content-Length": "0"}))(handler)

    for number in range(100):
        server.answers[f"/signed?{number}"] = signed
    count = iter(range(100))
    server.answers["/long.mp4"] = lambda handler: redirected(f"/signed?{next(count)}")(handler)
    assert len(quickdecode.read_video(f"{server.address}/long.mp4", num_frames=8)) == 8


def test_who_asks(server: Server, clip: Path) -> None:
    server.answers["/clip.mp4"] = parts(clip.read_bytes())
    quickdecode.probe(f"{server.address}/clip.mp4")
    assert server.asked[0][1]["User-Agent"].startswith("quickdecode/")


@pytest.mark.parametrize("way", ["missing", "silent", "redirected", "video"])
def test_no_secret_in_messages(server: Server, clip: Path, caplog: pytest.LogCaptureFixture, way: str) -> None:
    port = server.address.rpartition(":")[2]
    place = f"/{way}.mp4?X-Amz-Signature=hidden"
    url = f"http://somebody:password@127.0.0.1:{port}{place}"
    server.answers[place] = {
        "missing": lambda handler: head(handler, 403, {"Content-Length": "0"}),
        "silent": silent,
        "redirected": redirected("file:///hidden?password"),
        "video": parts(clip.read_bytes()),
    }[way]
    with caplog.at_level(logging.DEBUG):
        if way == "video":
            said = quickdecode.probe(url).name
        else:
            with pytest.raises(quickdecode.QuickDecodeError) as caught:
                quickdecode.probe(url, timeout_seconds=0.3)
            said = str(caught.value)
    assert f"http://127.0.0.1:{port}/{way}.mp4?..." in said
    assert not [word for word in ("somebody", "password", "hidden") if word in said + caplog.text]


def test_what_others_log_is_left_alone(server: Server, clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    import httpx

    server.answers["/clip.mp4"] = whole(clip.read_bytes())
    with caplog.at_level(logging.INFO):
        quickdecode.probe(f"{server.address}/clip.mp4")
        assert not caplog.records
        httpx.get(f"{server.address}/clip.mp4")
    assert "/clip.mp4" in caplog.text


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("/nothing.mp4", r"nothing\.mp4: the download failed \(the server answered 404 Not Found\)"),
        ("/empty.mp4", r"empty\.mp4: the (file is empty|download failed)"),
        ("/unsized.mp4", "FFmpeg failed|the download failed"),
        ("/zipped.mp4", "FFmpeg failed while opening it"),
    ],
)
def test_bad_answers(server: Server, url: str, message: str) -> None:
    def unsized(handler: Any) -> None:
        content = bytes(100)
        head(handler, 206, {"Content-Length": "100", "Content-Range": "bytes 0-99/*"})
        body(handler, content)

    server.answers |= {
        "/empty.mp4": whole(b""),
        "/unsized.mp4": unsized,
        "/zipped.mp4": whole(gzip.compress(bytes(99))),
    }
    with pytest.raises(quickdecode.SourceError, match=message):
        quickdecode.probe(server.address + url)


@pytest.mark.parametrize("url", ["http://", "https://[::1", "http://127.0.0.1:99999/x.mp4", "http://127.0.0.1:1/x.mp4"])
def test_bad_addresses(url: str) -> None:
    with pytest.raises(quickdecode.SourceError, match="the download failed"):
        quickdecode.probe(url, timeout_seconds=20)
