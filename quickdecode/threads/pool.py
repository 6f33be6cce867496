"""Run tasks on threads in the order given, hand over what they report, and never outlive a failure.

The caller only ever waits in Python, so that Ctrl-C and a deadline work even while FFmpeg is stuck in a call: its
thread is then left behind (a daemon, so that it does not keep the program alive either).
"""

from __future__ import annotations

import atexit
import os
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import count
from typing import Any, Generic, TypeVar

from ..errors import LimitError
from .stop import Stop

Task = TypeVar("Task")
Result = TypeVar("Result")

POLL_SECONDS = 0.2
"""How long the waiting thread sleeps at most, so that Ctrl-C is noticed on every platform."""
GRACE_SECONDS = 1.0
"""How long a stopped worker may take to notice; it looks between two packets."""
THREADS = "quickdecode-"
"""How the names of all threads begin."""
LOWEST_PRIORITY = 19
"""Niceness of threads that give way."""


class Cancelled(Exception):
    """Raised inside a worker that was told to stop."""


class Deadline:
    """A point in time after which waiting makes no sense; None means never."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self.end = None if seconds is None else time.monotonic() + seconds

    def wait_at_most(self) -> float:
        """Seconds to sleep before looking again. Raises TimeoutError when the time is up."""
        if self.end is None:
            return POLL_SECONDS
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return min(left, POLL_SECONDS)


NEVER = Deadline()


class Crew(Generic[Task, Result]):
    """Threads that do tasks; iterating yields what they report, as it comes.

    `worker(stop)` is entered once per thread and gives what does a task: an iterator of reports. The first exception
    of any worker is raised while iterating, TimeoutError after the deadline. close(), which leaving a `with` block
    does, stops the threads; they hold no reference to the crew, so that dropping it can close it too. A crew made on
    a thread of another one ends with that.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        worker: Callable[[Stop], AbstractContextManager[Callable[[Task], Iterator[Result]]]],
        *,
        workers: int,
        deadline: Deadline = NEVER,
    ) -> None:
        self.stop = Stop(deadline.end)
        self._unfinished, self._deadline, self._gave_way = len(tasks), deadline, False
        self._outer: Stop | None = getattr(_here, "stop", None)
        self._reports: queue.SimpleQueue[Result | _Finished | BaseException] = queue.SimpleQueue()
        work = _worker_thread(tasks, worker, self._reports, self.stop)
        self.threads = _started(work, workers)
        _crews.add(self)

    def __iter__(self) -> Iterator[Result]:
        while self._unfinished:
            report = _wait(self._reports, self._deadline, self._outer)
            if isinstance(report, _Finished):
                self._unfinished -= 1
            else:
                yield report

    def give_way(self) -> None:
        """Let the threads have only what the program's other threads leave of the cores. Linux; nothing elsewhere.

        A parallel loop waits for the slowest of its threads and keeps the others' cores busy meanwhile, so that a
        core taken from it for decoding costs it all of them.
        """
        if self._gave_way or sys.platform != "linux":
            return
        self._gave_way = True
        for thread in self.threads:
            if thread.native_id is not None and thread.is_alive():
                with suppress(OSError):  # it has just ended
                    os.setpriority(os.PRIO_PROCESS, thread.native_id, LOWEST_PRIORITY)

    def close(self) -> None:
        """Stop the threads and wait for them, for GRACE_SECONDS at most."""
        self.stop.set()
        join(self.threads)

    def __enter__(self) -> Crew[Task, Result]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


_here = threading.local()


def current_stop() -> Stop:
    """The `stop` of the crew that this thread belongs to; on other threads one that nobody sets."""
    stop: Stop = getattr(_here, "stop", None) or Stop()
    return stop


_crews: weakref.WeakSet[Crew[Any, Any]] = weakref.WeakSet()


def _close_all() -> None:
    """At the end of the program: a thread that is still inside FFmpeg then takes the process down with it."""
    crews = list(_crews)
    for crew in crews:
        crew.stop.set()
    for crew in crews:
        crew.close()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_crews.clear)  # their threads stayed behind


class _Finished:
    """A task is done."""


def _started(work: Callable[[], None], workers: int) -> list[threading.Thread]:
    """As many threads as the system gives, `workers` at most. Raises LimitError if that is none."""
    threads: list[threading.Thread] = []
    for number in range(workers):
        thread = threading.Thread(target=work, daemon=True, name=f"{THREADS}{number}")
        try:
            thread.start()
        except RuntimeError as error:
            if threads:
                break
            raise LimitError(f"no thread can be started ({error}); free memory, or end other threads.") from error
        threads.append(thread)
    return threads


def _worker_thread(
    tasks: Sequence[Task],
    worker: Callable[[Stop], AbstractContextManager[Callable[[Task], Iterator[Result]]]],
    reports: queue.SimpleQueue[Result | _Finished | BaseException],
    stop: Stop,
) -> Callable[[], None]:
    taken = count()

    def work() -> None:
        _here.stop = stop
        try:
            with worker(stop) as do:
                while not stop.is_set() and (number := next(taken)) < len(tasks):
                    for report in do(tasks[number]):
                        reports.put(report)
                    reports.put(_Finished())
        except BaseException as error:
            reports.put(error)

    return work


def call(function: Callable[[Stop], Result], deadline: Deadline = NEVER) -> Result:
    """function(stop) on a thread of its own, so that it can be given up."""

    @contextmanager
    def worker(stop: Stop) -> Iterator[Callable[[None], Iterator[Result]]]:
        yield lambda _: iter([function(stop)])

    with Crew([None], worker, workers=1, deadline=deadline) as crew:
        return next(iter(crew))


def _wait(
    reports: queue.SimpleQueue[Result | _Finished | BaseException], deadline: Deadline, outer: Stop | None
) -> Result | _Finished:
    while True:
        if outer is not None and outer.is_set():
            raise Cancelled
        try:
            report = reports.get(timeout=deadline.wait_at_most())
        except queue.Empty:
            continue
        if isinstance(report, BaseException):
            raise report
        return report


def join(threads: list[threading.Thread]) -> None:
    """Wait for threads that were told to stop, for GRACE_SECONDS at most."""
    end = time.monotonic() + GRACE_SECONDS
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(max(end - time.monotonic(), 0.0))
