"""What an MP4's own tables say, and where that is left to FFmpeg."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest

from quickdecode.index import mkv
from quickdecode.index.mp4 import Samples, read_samples
from tests.clips import remux
from tests.quickdecode.corpus import build


def samples(content: bytes, track: int = 1) -> Samples | str | None:
    return read_samples(io.BytesIO(content), len(content), track)


def is_plain(content: bytes) -> bool:
    """60 frames at 30 a second in the usual 15360 ticks, a key frame every 12."""
    found = samples(content)
    assert isinstance(found, Samples)
    assert np.array_equal(found.dts, np.arange(60) * 512)
    assert np.array_equal(np.sort(found.pts), np.arange(60) * 512 + 1024)
    return bool(np.array_equal(np.flatnonzero(found.key), range(0, 60, 12)))


def test_tables_at_the_end_and_at_the_beginning(clip: Path, clip_folder: Path) -> None:
    assert is_plain(clip.read_bytes())
    assert is_plain(remux(clip, clip_folder / "front-plain.mp4", container={"movflags": "faststart"}).read_bytes())


def test_boxes_with_long_lengths(clip: Path) -> None:
    content = clip.read_bytes()
    place = content.index(b"mdat") - 4
    length = int.from_bytes(content[place : place + 4], "big")
    long = (1).to_bytes(4, "big") + b"mdat" + (length + 8).to_bytes(8, "big")
    assert is_plain(content[:place] + long + content[place + 8 :])


def test_every_track_has_its_own_tables(clip_folder: Path) -> None:
    content = build(clip_folder, "h264.mov").read_bytes()
    video, sound = samples(content), samples(content, 2)
    assert isinstance(video, Samples)
    assert isinstance(sound, Samples)
    assert (len(video), samples(content, 3)) == (60, None)
    assert len(sound) != 60


@pytest.mark.parametrize("table", [b"stts", b"stsz", b"stsc", b"stco"])
def test_a_table_that_is_missing(clip: Path, table: bytes) -> None:
    assert samples(clip.read_bytes().replace(table, b"free")) is None


def test_no_table_at_all() -> None:
    assert samples(b"\0\0\0\x08free") is None


def test_more_samples_than_the_file_can_hold(clip: Path) -> None:
    """Their number alone would take gigabytes."""
    content = bytearray(clip.read_bytes())
    for place in (content.index(b"stts") + 12, content.index(b"stsz") + 12):
        content[place : place + 4] = (60_000_000).to_bytes(4, "big")
    assert samples(bytes(content)) is None


def test_a_file_that_ends_before_its_data(clip: Path, clip_folder: Path) -> None:
    front = remux(clip, clip_folder / "front-plain.mp4", container={"movflags": "faststart"}).read_bytes()
    assert str(samples(front[:-100])).startswith("a box of it ends at byte")


@pytest.mark.parametrize("name", ["plain.mp4", "fragmented.mp4", "edit-both.mp4", "h264.mkv", "live.webm"])
def test_damage_is_no_error(clip_folder: Path, name: str) -> None:
    content = build(clip_folder, name).read_bytes()
    for number in range(300):
        chance = random.Random(number)
        damaged = bytearray(content[: chance.randrange(len(content))] if number % 3 == 0 else content)
        place = damaged.find(b"moov") if number % 3 else 0
        for _ in range(8 if len(damaged) > 64 else 0):
            damaged[chance.randrange(max(place, 0), len(damaged))] = chance.choice((0, 1, 255))
        samples(bytes(damaged))
        mkv.read_packets(io.BytesIO(damaged), len(damaged))
