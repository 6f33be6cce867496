"""Run tasks on threads in the order given, hand each back as it completes, and never outlive a failure.

The caller only ever waits in Python, so that Ctrl-C and a deadline work even while FFmpeg is stuck in a call: its
thread is then left behind (a daemon, so that it does not keep the program alive either).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

POLL_SECONDS = 0.2
"""How long the waiting thread sleeps at most, so that Ctrl-C is noticed on every platform."""
GRACE_SECONDS = 1.0
"""How long a stopped worker may take to notice; it looks between two packets."""


class Cancelled(Exception):
    """Raised inside a worker that was told to stop."""


class Deadline:
    """A point in time after which waiting makes no sense; None means never."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def wait_at_most(self) -> float:
        """Seconds to sleep before looking again. Raises TimeoutError when the time is up."""
        if self._end is None:
            return POLL_SECONDS
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return min(left, POLL_SECONDS)


NEVER = Deadline()


def run(
    tasks: Sequence[Task],
    worker: Callable[[threading.Event], AbstractContextManager[Callable[[Task], None]]],
    *,
    workers: int,
    deadline: Deadline = NEVER,
    permits: threading.Semaphore | None = None,
) -> Iterator[Task]:
    """Yield each task once it is done. `worker(stop)` is entered once per thread and gives what does a task.

    With `permits`, a task is begun only after taking one; the caller gives it back with release().
    The first exception of any worker is raised here, TimeoutError after the deadline; the other workers then stop,
    as they do when the iterator is closed early.
    """
    results: queue.SimpleQueue[Task | BaseException] = queue.SimpleQueue()
    taken = count()
    stop = threading.Event()

    def work() -> None:
        try:
            with worker(stop) as do:
                while _may_begin(permits, stop) and (number := next(taken)) < len(tasks):
                    do(tasks[number])
                    results.put(tasks[number])
        except BaseException as error:
            results.put(error)

    threads = [threading.Thread(target=work, daemon=True, name=f"quickdecode-{i}") for i in range(workers)]
    for thread in threads:
        thread.start()
    try:
        for _ in tasks:
            yield _wait(results, deadline)
    finally:
        stop.set()
        _join(threads)


def _may_begin(permits: threading.Semaphore | None, stop: threading.Event) -> bool:
    while not stop.is_set():
        if permits is None or permits.acquire(timeout=POLL_SECONDS):
            return True
    return False


def call(function: Callable[[threading.Event], Result], deadline: Deadline = NEVER) -> Result:
    """function(stop) on a thread of its own, so that it can be given up."""
    answers: list[Result] = []

    @contextmanager
    def worker(stop: threading.Event) -> Iterator[Callable[[None], None]]:
        yield lambda _: answers.append(function(stop))

    for _ in run([None], worker, workers=1, deadline=deadline):
        pass
    return answers[0]


def _wait(results: queue.SimpleQueue[Task | BaseException], deadline: Deadline) -> Task:
    while True:
        try:
            result = results.get(timeout=deadline.wait_at_most())
        except queue.Empty:
            continue
        if isinstance(result, BaseException):
            raise result
        return result


def _join(threads: list[threading.Thread]) -> None:
    end = time.monotonic() + GRACE_SECONDS
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0.0))
