"""Everything that may be passed as a video gives the same frames."""

from __future__ import annotations

import base64
import functools
import http.server
import io
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import quickdecode

WAYS: dict[str, Callable[[Path], object]] = {
    "string": str,
    "path": Path,
    "file url": lambda path: path.as_uri(),
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "data uri": lambda path: "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode(),
    "bare base64": lambda path: base64.b64encode(path.read_bytes()).decode(),
}


@pytest.mark.parametrize("way", WAYS)
def test_same_frames_from_every_kind_of_source(clip: Path, way: str) -> None:
    expected = quickdecode.read_video(clip, num_frames=6)
    video = quickdecode.read_video(WAYS[way](clip), num_frames=6)  # type: ignore[arg-type]
    assert torch.equal(video.frames, expected.frames)
    assert video.timestamps == expected.timestamps


def test_open_file_is_read_from_its_start(clip: Path) -> None:
    with clip.open("rb") as file:
        file.read(10)
        assert quickdecode.probe(file).num_frames == 60


def test_names_that_look_like_protocols(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "concat:a b.mp4").write_bytes(clip.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert quickdecode.probe("concat:a b.mp4").num_frames == 60


def test_changed_file_is_probed_again(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "changing.mp4"
    path.write_bytes(clip.read_bytes())
    assert quickdecode.probe(path).num_frames == 60
    path.write_bytes(b"no video any more")
    with pytest.raises(quickdecode.SourceError):
        quickdecode.probe(path)


@pytest.fixture
def server(clip: Path) -> Iterator[str]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(clip.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_url(server: str, clip: Path) -> None:
    video = quickdecode.read_video(f"{server}/{clip.name}", num_frames=4)
    assert torch.equal(video.frames, quickdecode.read_video(clip, num_frames=4).frames)


def test_url_that_fails(server: str) -> None:
    with pytest.raises(quickdecode.SourceError, match=r"nothing\.mp4: the download failed .*404"):
        quickdecode.probe(f"{server}/nothing.mp4")


def test_url_that_is_too_large(server: str, clip: Path) -> None:
    with pytest.raises(quickdecode.LimitError, match=r"a download of .* the limit is 1,000"):
        quickdecode.read_video(f"{server}/{clip.name}", limits=quickdecode.Limits(download_bytes=1000))


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/talk.mp4"])
def test_redirects_leave_the_web_nowhere(target: str) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        with pytest.raises(quickdecode.SourceError, match="the download failed"):
            quickdecode.probe(f"http://127.0.0.1:{httpd.server_port}/talk.mp4")
        httpd.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "empty"),
        (io.BytesIO(), "empty"),
        (io.StringIO("text"), "returns str"),
        (7, "cannot be a int"),
        (None, "cannot be a NoneType"),
        ("data:video/mp4;base64,???", "not a base64 data URI"),
        ("data:video/mp4,plain", "not a base64 data URI"),
        ("", "no such file"),
    ],
)
def test_bad_source(source: object, message: str) -> None:
    with pytest.raises(quickdecode.SourceError, match=message):
        quickdecode.read_video(source)  # type: ignore[arg-type]


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{0}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{0}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_playlist_in_disguise_opens_nothing_else(clip: Path, tmp_path: Path, kind: str) -> None:
    content = PLAYLISTS[kind].format(clip).encode()
    disguised = tmp_path / "innocent.mp4"
    disguised.write_bytes(content)
    for source in (disguised, content):
        with pytest.raises(quickdecode.SourceError):
            quickdecode.read_video(source)


def test_a_pipe_is_read_as_it_comes(clip: Path) -> None:
    with subprocess.Popen(["cat", str(clip)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert quickdecode.probe(process.stdout).num_frames == 60


def test_a_closed_file_object(clip: Path) -> None:
    file = clip.open("rb")
    file.close()
    with pytest.raises(quickdecode.SourceError, match="the file object cannot be read"):
        quickdecode.probe(file)
