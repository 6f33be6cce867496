"""Everything that may be passed as a video gives the same frames."""

from __future__ import annotations

import base64
import io
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import quickdecode
from tests.clips import write_clip

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


def test_a_path_means_the_file_of_the_moment_it_was_passed(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the one of the same name in the folder to which the program goes meanwhile."""
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder, length in zip(folders, (60, 20), strict=True):
        folder.mkdir()
        write_clip(folder / "clip.mp4", frames=length)
    monkeypatch.chdir(folders[0])
    stream, reader = quickdecode.stream_video("clip.mp4"), quickdecode.VideoReader("clip.mp4")
    assert quickdecode.probe(folders[0] / "clip.mp4").num_frames == 60
    monkeypatch.chdir(folders[1])
    assert quickdecode.probe("clip.mp4").num_frames == 20
    assert len(quickdecode.read_video(folders[0] / "clip.mp4")) == 60, "it was looked at under its relative name"
    assert sum(map(len, stream)) == len(reader[:]) == 60


def test_home(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(clip.parent))
    assert quickdecode.probe(f"~/{clip.name}").num_frames == 60
    with pytest.raises(quickdecode.SourceError, match=r"^~/nothing\.mp4: no such file"):
        quickdecode.probe("~/nothing.mp4")


def test_a_device_has_no_end() -> None:
    with open("/dev/zero", "rb") as file, pytest.raises(quickdecode.SourceError, match="/dev/zero: a device"):
        quickdecode.probe(file)


class Endless(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        return bytes(size)


def test_a_file_object_without_end(tmp_path: Path) -> None:
    limits = quickdecode.Limits(download_bytes=100 << 20)
    with pytest.raises(quickdecode.LimitError, match=r"Endless.* gives 105,906,176 bytes or more; the limit"):
        quickdecode.probe(Endless(), limits=limits)


def test_a_large_file_object_lies_on_disk(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quickdecode.source import source

    monkeypatch.setattr(source, "MEMORY_BYTES", 1000)
    monkeypatch.setattr(source, "PART_BYTES", 700)
    with clip.open("rb") as file:
        assert source.resolve(file).store is not None
        video = quickdecode.read_video(file)
    assert torch.equal(video.frames, quickdecode.read_video(clip).frames)


def test_changed_file_is_probed_again(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "changing.mp4"
    path.write_bytes(clip.read_bytes())
    assert quickdecode.probe(path).num_frames == 60
    path.write_bytes(b"no video any more")
    with pytest.raises(quickdecode.SourceError):
        quickdecode.probe(path)


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
        (Path("gone~.mp4"), "no such file"),
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
