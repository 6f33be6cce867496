"""Addresses on the web: their letters, where they lead, and what messages say of them."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path
from typing import Any

import pytest

import quickdecode
from tests.quickdecode.web import Server, body, head, parts, redirected, silent, whole


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


def test_an_address_that_has_expired_is_asked_for_again(server: Server, long_video: bytes) -> None:
    """Storage services redirect to signed addresses that are good for a while."""
    asked: list[str] = []

    def signed(handler: Any) -> None:
        asked.append(handler.path)
        (parts(long_video) if asked.count(handler.path) == 1 else lambda it: head(it, 403, {"Content-Length": "0"}))(
            handler
        )

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
