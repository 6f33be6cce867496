"""Mutated files end in frames or in one of our errors, soon, and leave nothing behind.

QUICKDECODE_FUZZ_FILES and QUICKDECODE_READS raise the numbers (2000 and 1000 for a thorough run).
"""

from __future__ import annotations

import gc
import os
import random
import resource
import threading
import time
from pathlib import Path
from typing import Any

import av
import pytest

import quickdecode
from tests.clips import ClipMaker

FILES = int(os.environ.get("QUICKDECODE_FUZZ_FILES", "72"))
READS = int(os.environ.get("QUICKDECODE_READS", "60"))
SECONDS = 20.0

SEEDS: dict[str, dict[str, Any]] = {
    "seed.mp4": {},
    "seed.ts": {},
    "seed.avi": {"codec": "mpeg4"},
    "seed-hevc.mkv": {"codec": "libx265"},
    "seed-vp9.webm": {"codec": "libvpx-vp9"},
    "seed-av1.mp4": {"codec": "libsvtav1"},
}


def flip_bits(content: bytearray, chance: random.Random, _: bytes) -> bytearray:
    for _ in range(chance.choice((1, 5, 50, 500))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return content


def flip_bits_of_the_header(content: bytearray, chance: random.Random, _: bytes) -> bytearray:
    """Headers lie at either end of a file."""
    for _ in range(chance.choice((1, 4, 16))):
        place = chance.randrange(min(600, len(content)))
        content[chance.choice((place, -1 - place))] ^= 1 << chance.randrange(8)
    return content


def truncate(content: bytearray, chance: random.Random, _: bytes) -> bytearray:
    return content[: chance.randrange(1, len(content))]


def cut_out(content: bytearray, chance: random.Random, _: bytes) -> bytearray:
    start = chance.randrange(len(content))
    del content[start : start + chance.randrange(1, 4000)]
    return content or bytearray(b"\0")


def blank(content: bytearray, chance: random.Random, _: bytes) -> bytearray:
    start = chance.randrange(len(content))
    size = min(chance.randrange(1, 4000), len(content) - start)
    content[start : start + size] = bytes(size)
    return content


def splice(content: bytearray, chance: random.Random, other: bytes) -> bytearray:
    """The beginning of one file and the rest of another."""
    where = chance.randrange(1, min(len(content), len(other)))
    return bytearray(other[:where]) + content[chance.choice((0, where)) :]


MUTATIONS = (flip_bits, flip_bits_of_the_header, truncate, cut_out, blank, splice)


def decodable(path: Path) -> int | None:
    """How many frames a sequential decode yields; None if it ends in an error."""
    try:
        with av.open(str(path)) as container:
            return sum(1 for _ in container.decode(video=0))
    except (av.FFmpegError, IndexError, UnicodeDecodeError):
        return None


@pytest.fixture(scope="module")
def seeds(make_clip: ClipMaker) -> list[Path]:
    return [make_clip(name, frames=24, size=(48, 96), gop=6, **options) for name, options in SEEDS.items()]


def test_mutated_files(seeds: list[Path], tmp_path: Path) -> None:
    outcomes = {"frames": 0, "error": 0}
    for number in range(FILES):
        chance = random.Random(number)
        seed, other = chance.sample(seeds, 2)
        mutate = MUTATIONS[number % len(MUTATIONS)]
        suffix = chance.choice((seed, other)).suffix
        path = tmp_path / f"{number}-{mutate.__name__}-{seed.stem}{suffix}"
        path.write_bytes(mutate(bytearray(seed.read_bytes()), chance, other.read_bytes()))
        outcomes[_read(path, on_error=chance.choice(("raise", "nearest")))] += 1
        path.unlink()
    assert outcomes["frames"] > FILES // 10
    assert outcomes["error"] > FILES // 10


def _read(path: Path, on_error: str) -> str:
    began = time.monotonic()
    try:
        video = quickdecode.read_video(path, on_error=on_error, timeout_seconds=SECONDS, workers=2)
        assert len(video) == len(video.frames) == video.info.num_frames > 0
        if on_error == "raise" and (expected := decodable(path)) is not None:
            assert len(video) == expected, f"{path.name}: {len(video)} frames, a plain decode gives {expected}"
        quickdecode.read_video(path, num_frames=1, on_error=on_error, timeout_seconds=SECONDS)
        return "frames"
    except quickdecode.QuickDecodeError as error:
        assert path.name in str(error)
        assert not isinstance(error, quickdecode.ReadTimeoutError), f"{path.name} takes too long"
        return "error"
    finally:
        assert time.monotonic() - began < 2 * SECONDS + 5


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_many_reads_leave_nothing_behind(seeds: list[Path]) -> None:
    broken = seeds[0].with_name("broken.mp4")
    broken.write_bytes(seeds[0].read_bytes()[:4000])

    def read(times: int) -> None:
        for turn in range(times):
            quickdecode.read_video(seeds[turn % len(seeds)], num_frames=4, size=(64, 128), workers=2)
            with pytest.raises(quickdecode.QuickDecodeError):
                quickdecode.read_video(broken)
        gc.collect()

    read(max(READS // 3, 12))
    before = _resident_bytes(), len(os.listdir("/proc/self/fd")), threading.active_count()
    read(READS)
    after = _resident_bytes(), len(os.listdir("/proc/self/fd")), threading.active_count()
    assert after[1:] == before[1:]
    assert after[0] < before[0] * 1.02
