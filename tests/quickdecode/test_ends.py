"""However a read ends - Ctrl-C, a deadline, a fork, a dropped stream, the end of the program - no thread is left."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import quickdecode
from quickdecode.decode import ring
from quickdecode.lazy.frames import lazy_frames
from quickdecode.threads import cores
from quickdecode.threads.pool import Crew
from tests.clips import ClipMaker, read_number

ROOT = Path(quickdecode.__file__).parents[1]
SLOW: dict[str, Any] = {"size": (1080, 1920), "workers": 2, "indices": [i for i in range(60) for _ in range(8)]}
"""Takes seconds, whatever the machine."""


def reads(path: Path, options: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Every way to read `path`."""
    opening = {name: value for name, value in options.items() if name != "indices"}
    return {
        "read_video": lambda: quickdecode.read_video(path, **options),
        "read_videos": lambda: quickdecode.read_videos([path, path, path], **options),
        "stream_video": lambda: list(map(len, quickdecode.stream_video(path, **options))),
        "VideoReader": lambda: quickdecode.VideoReader(path, **opening).read(indices=options["indices"]),
        "LazyTensor": lambda: list(map(len, _parts(lazy_frames(quickdecode.stream_video(path, **options))))),
    }


def _parts(frames: Any) -> Iterator[torch.Tensor]:
    for start in range(0, len(frames), 9):
        yield frames.rows(start, min(start + 9, len(frames)))


READERS = list(reads(Path(), {}))


def ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("quickdecode")]


def left(seconds: float = 10.0) -> list[str]:
    end = time.monotonic() + seconds
    while ours() and time.monotonic() < end:
        time.sleep(0.02)
    return ours()


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
@pytest.mark.parametrize("reader", READERS)
def test_ctrl_c(clip: Path, reader: str) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.6, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            reads(clip, SLOW)[reader]()
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    assert left() == []


@pytest.mark.parametrize("reader", READERS)
def test_a_deadline(clip: Path, reader: str) -> None:
    quickdecode.probe(clip)
    with pytest.raises(quickdecode.ReadTimeoutError, match=r"plain\.mp4: not read within timeout_seconds=0.3"):
        reads(clip, {**SLOW, "timeout_seconds": 0.3})[reader]()
    assert left() == []


def test_what_is_dropped_half_way(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "READ_AHEAD_BYTES", 1)
    blocks = iter(quickdecode.stream_video(clip, block_frames=1, workers=2))
    next(blocks)
    assert ours()
    del blocks
    assert left() == []
    frames = lazy_frames(quickdecode.stream_video(clip, block_frames=1, workers=2))
    frames.rows(0, 1)
    assert ours()
    del frames
    assert left() == []


AT_EXIT = """
import atexit, os, sys, threading, time

def count(word):
    print(word, sum(thread.name.startswith("quickdecode") for thread in threading.enumerate()), flush=True)

atexit.register(count, "left")  # before the package is imported, so that it runs after the package's own
import quickdecode
from quickdecode.decode import ring
from quickdecode.lazy.frames import lazy_frames

ring.READ_AHEAD_BYTES = 1
path, way = sys.argv[1:]
indices = [i for i in range(60) for _ in range(20)]
if way == "thread":
    # In one write: a daemon thread may be stopped for good between two of them.
    threading.excepthook = lambda caught: os.write(2, caught.exc_type.__name__.encode())
    options = {"indices": indices, "size": (540, 960), "workers": 2}
    threading.Thread(target=quickdecode.read_videos, args=([path, path],), kwargs=options, daemon=True).start()
    time.sleep(1)
else:
    stream = quickdecode.stream_video(path, block_frames=1, workers=2)
    blocks, frames = iter(stream), lazy_frames(stream)
    next(blocks) if way == "stream" else frames.rows(0, 1)
count("threads")
"""


@pytest.mark.parametrize("way", ["thread", "stream", "lazy"])
def test_the_end_of_the_program(clip: Path, way: str) -> None:
    """Threads that are inside FFmpeg while the interpreter goes away can take the process down."""
    command = [sys.executable, "-c", AT_EXIT, str(clip), way]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    if process.stderr:  # a daemon of the program's own says what became of its read, if it still comes to that
        assert (way, process.stderr) == ("thread", "QuickDecodeError")
    first, last = process.stdout.splitlines()
    assert first != "threads 0", "nothing was under way"
    assert last == "left 0"


def in_a_child(work: Callable[[], Any]) -> Any:
    """What `work` gives in a forked process."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def answer() -> None:
        try:
            answers.put(work())
        except BaseException as error:
            answers.put(f"{type(error).__name__}: {error}")

    process = context.Process(target=answer)
    process.start()
    process.join(30)
    alive = process.is_alive()
    process.kill()
    assert not alive, "the child hangs"
    return answers.get()


def test_a_stream_is_not_continued_in_a_forked_process(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "READ_AHEAD_BYTES", 1)
    blocks = iter(quickdecode.stream_video(clip, block_frames=1, workers=2))
    next(blocks)
    said = in_a_child(lambda: len(next(blocks)))
    assert "RequestError" in said and "plain.mp4: this stream was begun in another process" in said
    assert read_number(next(blocks).frames[0]) == 1, "the parent goes on"
    assert [read_number(block.frames[0]) for block in blocks] == list(range(2, 60))


def test_other_reads_begin_anew_in_a_forked_process(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "READ_AHEAD_BYTES", 1)
    stream = quickdecode.stream_video(clip, block_frames=1, workers=2)
    frames = lazy_frames(stream)
    frames.rows(0, 1)
    assert in_a_child(lambda: read_number(frames.rows(1, 2)[0])) == 1
    assert in_a_child(lambda: read_number(next(iter(stream)).frames[0])) == 0
    assert in_a_child(lambda: quickdecode.read_video(clip, indices=[7]).indices) == [7]
    frames.close()


def test_a_crew_ends_with_the_one_it_was_made_in() -> None:
    from contextlib import contextmanager

    waiting = threading.Event()

    @contextmanager
    def for_ever(stop: Any) -> Any:
        def do(_: int) -> Any:
            waiting.set()
            stop.wait(60)
            yield 1

        yield do

    @contextmanager
    def outer(stop: Any) -> Any:
        def do(_: int) -> Any:
            with Crew([0], for_ever, workers=1) as inner:
                yield from inner

        yield do

    crew = Crew([0], outer, workers=1)
    waiting.wait(10)
    crew.close()
    assert left() == []


def test_reads_at_once_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 16)
    with cores.shared_cores(None) as first, cores.shared_cores(None) as second, cores.shared_cores(5) as stated:
        assert (first, second, stated) == (16, 1, 5)
    with cores.shared_cores(None) as first:
        assert first == 16
    # Eight loader threads, each of which reads one video after the other.
    reads = [cores.shared_cores(None) for _ in range(8)]
    taken = [read.__enter__() for read in reads]
    for turn in range(24):
        reads[turn % 8].__exit__(None, None, None)
        reads[turn % 8] = cores.shared_cores(None)
        taken[turn % 8] = reads[turn % 8].__enter__()
        assert sum(taken) <= 16 + 8
    assert taken == [2] * 8
    for read in reads:
        read.__exit__(None, None, None)


def test_loader_threads_start_no_more_threads_than_there_are_cores(
    make_clip: ClipMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUICKDECODE_WORKERS", "4")
    path = make_clip("plain.mp4")
    at_once: list[int] = []
    started = Crew.__init__

    def counted(self: Any, *args: Any, **options: Any) -> None:
        at_once.append(options["workers"])
        started(self, *args, **options)

    monkeypatch.setattr(Crew, "__init__", counted)
    barrier = threading.Barrier(4)

    def load() -> None:
        barrier.wait()
        for _ in range(6):
            assert torch.equal(quickdecode.read_video(path, num_frames=9).frames, expected)

    expected = quickdecode.read_video(path, num_frames=9).frames
    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(at_once) == 4
    assert at_once.count(1) > len(at_once) * 2 // 3
