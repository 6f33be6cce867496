"""Mutated files end in frames or in one of our errors, soon, and leave nothing behind.

`python examples/benchmarks/fuzz.py` does the same with thousands; QUICKDECODE_READS raises the number of reads.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import threading
from pathlib import Path

import pytest

import quickdecode
from tests.quickdecode import fuzzing
from tests.quickdecode.corpus import build
from tests.quickdecode.mutations import MUTATIONS

READS = int(os.environ.get("QUICKDECODE_READS", "60"))
FILES = len(fuzzing.SEEDS) * len(MUTATIONS)
NAMES = ["plain.mp4", "h264.ts", "divx.avi", "hevc.mkv", "vp9.webm", "av1.mp4"]

NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc")


@NEEDS_PROC
def test_mutated_files(tmp_path: Path) -> None:
    """Each seed in each way, by processes with little memory; numbers beyond those of the long run."""
    seeds = fuzzing.make_seeds(tmp_path)
    outcomes = []
    for number in range(FILES * 100, FILES * 101):
        case = fuzzing.make_case(number, seeds, tmp_path)
        outcomes.append(fuzzing.run(case))
        case.path.unlink()
    assert [fuzzing.as_row(outcome) for outcome in outcomes if not outcome.fine] == []
    assert len({(outcome.seed, outcome.mutation) for outcome in outcomes}) == FILES
    assert sum(outcome.kind == "frames" for outcome in outcomes) > FILES // 10
    assert sum(outcome.kind == "error" for outcome in outcomes) > FILES // 10


@NEEDS_PROC
def test_what_must_not_be_is_noticed(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness sees crashes, hangs, foreign errors, threads, memory and wrong counts."""
    case = fuzzing.Case(0, "seed", "none", "raise", "read_video", clip)
    hog = [b""]

    def leave_a_thread(_: object) -> None:
        threading.Thread(target=threading.Event().wait, args=(9,), name="quickdecode-9", daemon=True).start()
        raise quickdecode.SourceError(clip.name)

    def take_memory(_: object) -> None:
        hog[0] = bytes(bytearray(b"x" * (600 << 20)))
        raise quickdecode.SourceError(clip.name)

    def run(read: object) -> str:
        monkeypatch.setattr(fuzzing, "_read", read)
        return fuzzing.run(case).kind

    assert fuzzing.run(case).kind == "frames"
    assert run(lambda _: os.kill(os.getpid(), signal.SIGKILL)) == "crash"
    assert run(lambda _: os._exit(0)) == "crash"
    assert run(lambda _: 1 / 0) == "foreign"
    assert run(leave_a_thread) == "thread"
    assert run(take_memory) == "memory"
    assert run(lambda _: (fuzzing.torch.Size((59, 3)), 59)) == "count"
    monkeypatch.setattr(fuzzing, "SECONDS", 0.5)
    monkeypatch.setattr(fuzzing, "SPARE_SECONDS", 0.0)
    assert run(lambda _: threading.Event().wait(60)) == "hang"


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@NEEDS_PROC
def test_many_reads_leave_nothing_behind(clip_folder: Path, tmp_path: Path) -> None:
    seeds = [build(clip_folder, name) for name in NAMES]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(seeds[0].read_bytes()[:4000])

    def read(times: int) -> None:
        for turn in range(times):
            quickdecode.read_video(seeds[turn % len(seeds)], num_frames=4, size=(64, 128), workers=2)
            with quickdecode.VideoReader(seeds[turn % len(seeds)], workers=2) as reader:
                reader[[3, 40]]
            with pytest.raises(quickdecode.QuickDecodeError):
                quickdecode.read_video(broken)
        gc.collect()

    read(max(READS // 3, 12))
    before = _resident_bytes(), len(os.listdir("/proc/self/fd")), threading.active_count()
    read(READS)
    after = _resident_bytes(), len(os.listdir("/proc/self/fd")), threading.active_count()
    assert after[1:] == before[1:]
    assert after[0] < before[0] * 1.02
