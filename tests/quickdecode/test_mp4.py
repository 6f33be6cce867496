"""Where an MP4's own tables say that its frames are evenly spaced, and everything else is left to FFmpeg."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest

from quickdecode.index.mp4 import even_step
from tests.clips import ClipMaker, remux


def step(content: bytes, samples: int = 60) -> int | None:
    return even_step(io.BytesIO(content), len(content), samples)


def test_even_frames(clip: Path, clip_folder: Path) -> None:
    """30 frames a second in the usual 15360 ticks; the tables at the end of the file, and at its beginning."""
    assert step(clip.read_bytes()) == 512
    assert step(clip.read_bytes(), samples=59) is None
    front = remux(clip, clip_folder / "front.mp4", container={"movflags": "faststart"})
    assert step(front.read_bytes()) == 512


def test_boxes_with_long_lengths(clip: Path) -> None:
    content = clip.read_bytes()
    place = content.index(b"mdat") - 4
    length = int.from_bytes(content[place : place + 4], "big")
    long = (1).to_bytes(4, "big") + b"mdat" + (length + 8).to_bytes(8, "big")
    assert step(content[:place] + long + content[place + 8 :]) == 512


@pytest.mark.parametrize("name", ["vfr.mp4", "fragmented.mp4", "h264.mkv"])
def test_not_plain_to_see(clip_folder: Path, name: str) -> None:
    from tests.quickdecode.corpus import build

    assert step(build(clip_folder, name).read_bytes()) is None


def test_two_video_tracks(clip: Path) -> None:
    content = bytearray(clip.read_bytes())
    moov = content.index(b"moov") - 4
    trak = content.index(b"trak") - 4
    track = content[trak : trak + int.from_bytes(content[trak : trak + 4], "big")]
    length = int.from_bytes(content[moov : moov + 4], "big") + len(track)
    content[moov : moov + 4] = length.to_bytes(4, "big")
    content[trak:trak] = track
    assert step(bytes(content)) is None


def test_damage_is_no_error(make_clip: ClipMaker) -> None:
    content = make_clip("plain.mp4").read_bytes()
    for number in range(300):
        chance = random.Random(number)
        damaged = bytearray(content[: chance.randrange(len(content))] if number % 3 == 0 else content)
        place = damaged.find(b"moov") if number % 3 else 0
        for _ in range(8 if len(damaged) > 64 else 0):
            damaged[chance.randrange(max(place, 0), len(damaged))] = chance.choice((0, 1, 255))
        step(bytes(damaged))
