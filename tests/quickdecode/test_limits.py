"""Files that would take the machine down are refused before they do."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

import quickdecode
from tests.clips import ClipMaker, write_clip


def growing(folder: Path, suffix: str) -> Path:
    """24 frames of 96 x 160, then six of 960 x 1600."""
    pictures = b"".join(
        write_clip(folder / f"{size[0]}.h264", frames=frames, gop=6, size=size).read_bytes()
        for frames, size in ((24, (96, 160)), (6, (960, 1600)))
    )
    return _contained(pictures, folder, suffix)


def _contained(pictures: bytes, folder: Path, suffix: str) -> Path:
    raw, path = folder / "raw.h264", folder / f"clip{suffix}"
    raw.write_bytes(pictures)
    with av.open(str(raw)) as given, av.open(str(path), "w") as output:
        stream = given.streams.video[0]
        copy = output.add_stream_from_template(stream)
        for number, packet in enumerate(packet for packet in given.demux(stream) if packet.size):
            packet.pts = packet.dts = number * 3000
            packet.time_base, packet.duration, packet.stream = Fraction(1, 90000), 3000, copy
            output.mux(packet)
    return path


@pytest.mark.parametrize("suffix", [".ts", ".mkv", ".mp4", ".flv"])
def test_frames_that_grow_beyond_the_limit_are_not_decoded(tmp_path: Path, suffix: str) -> None:
    """The limit holds for every frame, not for the first one alone."""
    path = growing(tmp_path, suffix)
    limits = quickdecode.Limits(frame_pixels=200 * 200)
    with pytest.raises(quickdecode.DecodeError, match=r"larger than limits\.frame_pixels=40000"):
        quickdecode.read_video(path, limits=limits)
    assert quickdecode.read_video(path, limits=limits, on_error="nearest").info.num_frames == 24
    assert quickdecode.read_video(path).info.num_frames == 30


MEASURED = """
import sys, quickdecode
from pathlib import Path

def megabytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

quickdecode.read_video(sys.argv[1], num_frames=2)
for path in sys.argv[2:]:
    Path("/proc/self/clear_refs").write_text("5")
    before = megabytes("VmRSS")
    try:
        answer = quickdecode.read_video(path, timeout_seconds=60).frames.shape
    except quickdecode.QuickDecodeError as error:
        answer = error
    print(megabytes("VmHWM") - before, type(answer).__name__, answer)
"""


def measured(clip: Path, *paths: Path) -> list[tuple[float, str, str]]:
    """Peak of memory in MiB, kind and text of what came out, for each path."""
    command = [sys.executable, "-c", MEASURED, str(clip), *map(str, paths)]
    root = Path(quickdecode.__file__).parents[1]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout.splitlines()
    rows = [line.split(" ", 2) for line in lines]
    return [(float(peak), kind, text) for peak, kind, text in rows]


NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc")


@NEEDS_PROC
def test_looking_into_a_file_decodes_no_large_frame(clip: Path, tmp_path: Path) -> None:
    """FFmpeg decodes frames of these while it opens the file, to learn what is in it."""
    size = (9000, 9000)
    with av.open(str(tmp_path / "large.h264"), "w") as output:
        stream: Any = output.add_stream("libx264", rate=1)
        stream.height, stream.width = size
        stream.options = {"preset": "ultrafast", "qp": "51", "threads": "1"}
        frame = av.VideoFrame(size[1], size[0], "yuv420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    paths = [_contained((tmp_path / "large.h264").read_bytes(), tmp_path, suffix) for suffix in (".ts", ".flv")]
    for (peak, kind, text), path in zip(measured(clip, *paths), paths, strict=True):
        assert path.stat().st_size < 1 << 20
        assert (kind, "frames of 9000 x 9000 pixels" in text) == ("LimitError", True), text
        assert peak < 100, path


def box(kind: bytes, content: bytes) -> bytes:
    return (len(content) + 8).to_bytes(4, "big") + kind + content


def with_table(content: bytes, table: bytes) -> bytes:
    """The same MP4 with `table` in the place of its table of sample sizes."""
    place = content.index(b"stsz") - 4
    length = int.from_bytes(content[place : place + 4], "big")
    rest = length - len(table)
    return content[:place] + table + box(b"free", bytes(rest - 8)) + content[place + length :]


def number(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, "big") for value in values)


@NEEDS_PROC
def test_a_table_of_more_samples_than_the_file_can_hold(clip: Path, tmp_path: Path) -> None:
    """60 million samples of one size are a table of 20 bytes, and 4 GiB in FFmpeg."""
    content = clip.read_bytes()
    tables = {
        "constant": box(b"stsz", number(0, 16, 60_000_000)),
        "tiny": box(b"stsz", number(0, 1, 60_000_000)),
        "listed": box(b"stsz", number(0, 0, 60_000_000)),
        "compact": box(b"stz2", number(0, 4, 60_000_000)),
    }
    paths = []
    for name, table in tables.items():
        paths.append(tmp_path / f"{name}.mp4")
        paths[-1].write_bytes(with_table(content, table))
    fragment = box(b"moof", box(b"traf", box(b"tfhd", number(0, 1)) + box(b"trun", number(0, 60_000_000))))
    paths.append(tmp_path / "fragment.mp4")
    paths[-1].write_bytes(content + fragment)
    for (peak, kind, text), path in zip(measured(clip, *paths), paths, strict=True):
        assert (kind, "claims 60,000,000 samples, more than a file of" in text) == ("SourceError", True), (path, text)
        assert peak < 50, path


def test_tables_that_are_long_but_true(clip: Path) -> None:
    with pytest.raises(quickdecode.LimitError, match=r"tables of 60 samples; the limit is 59\..*\(samples=None\)"):
        quickdecode.probe(clip, limits=quickdecode.Limits(samples=59))
    assert quickdecode.probe(clip, limits=quickdecode.Limits(samples=60)).num_frames == 60


def test_uncompressed_sound_has_as_many_samples_as_it_likes(tmp_path: Path) -> None:
    """QuickTime counts one sample a tick: a table of millions for an hour, which FFmpeg does not keep."""
    import numpy as np

    path = tmp_path / "sound.mov"
    with av.open(str(path), "w") as output:
        video: Any = output.add_stream("libx264", rate=10)
        video.height, video.width, video.pix_fmt = 96, 160, "yuv420p"
        sound: Any = output.add_stream("pcm_s16le", rate=48000, layout="mono")
        for index in range(5):
            frame = av.VideoFrame.from_ndarray(np.zeros((96, 160, 3), np.uint8), format="rgb24")
            frame.pts = index
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 24000), np.int16), format="s16", layout="mono")
        silence.sample_rate, silence.pts = 48000, 0
        output.mux(sound.encode(silence))
    assert b"sowt" in path.read_bytes()
    assert quickdecode.probe(path, limits=quickdecode.Limits(samples=10)).num_frames == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fps": 1e9}, "2000000000 frames to deliver; the limit is 1,000,000"),
        (
            {"fps": 1e9, "limits": quickdecode.Limits(frames=None)},
            "200,000,000,000 bytes of frames; the limit is 68,719,476,736",
        ),
        (
            {"limits": quickdecode.Limits(delivered_bytes=2_764_799)},
            "2,764,800 bytes of frames; the limit is 2,764,799",
        ),
        (
            {"size": (8000, 8000), "indices": [0] * 100_000, "limits": quickdecode.Limits(delivered_bytes=None)},
            "19,200,000,000,000 bytes of frames, but .* bytes of memory are free; ask for fewer",
        ),
    ],
)
def test_outputs_too_large(clip: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(quickdecode.LimitError, match=message):
        quickdecode.read_video(clip, **arguments)


def test_a_stream_whose_blocks_are_too_large(clip: Path) -> None:
    stream = quickdecode.stream_video(clip, size=(8000, 8000), indices=[0] * 100_000, block_frames=90_000)
    with pytest.raises(quickdecode.LimitError, match=r"bytes of frames; the limit is 68,719,476,736"):
        next(iter(stream))


def test_decoders_are_those_of_common_videos(make_clip: ClipMaker, tmp_path: Path) -> None:
    path = make_clip("snow.avi", codec="snow", options={"strict": "experimental"})
    with pytest.raises(quickdecode.SourceError, match=r"its video is snow, a decoder that is not allowed.*CODECS \| "):
        quickdecode.read_video(path)
    wider = quickdecode.Limits(codecs=quickdecode.CODECS | {"snow"})
    assert len(quickdecode.read_video(path, limits=wider)) == 60
    narrower = quickdecode.Limits(codecs=frozenset({"h264"}))
    with pytest.raises(quickdecode.SourceError, match="its video is mpeg4, a decoder that is not allowed"):
        quickdecode.probe(make_clip("divx.avi", codec="mpeg4"), limits=narrower)


def test_formats_are_those_of_common_videos(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.swf", codec="flv", file_format="swf")
    with pytest.raises(quickdecode.SourceError, match="FFmpeg failed while opening it"):
        quickdecode.read_video(path)
    wider = quickdecode.Limits(formats=quickdecode.FORMATS | {"swf"})
    assert len(quickdecode.read_video(path, limits=wider)) == 60
