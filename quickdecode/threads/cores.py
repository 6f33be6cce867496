"""How many threads this process should decode on."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import RequestError

VARIABLE = "QUICKDECODE_WORKERS"
CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
CGROUP_V1 = Path("/sys/fs/cgroup/cpu")


def usable_cores() -> int:
    """QUICKDECODE_WORKERS if set; 1 inside a DataLoader worker; else the cores this process may use.

    Those are the cores it may run on (affinity), within its cgroup's CPU quota, divided among the processes that
    a launcher started on this machine (LOCAL_WORLD_SIZE). Raises RequestError if the variable is no whole number.
    """
    stated = os.environ.get(VARIABLE)
    if stated:
        if not stated.isdecimal() or int(stated) < 1:
            raise RequestError(f"{VARIABLE}={stated!r}; it must be a whole number, 1 or more, or unset.")
        return int(stated)
    if _in_data_loader_worker():
        return 1
    cores = min(_affinity(), _quota() or _affinity())
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(cores // max(int(ranks) if ranks.isdecimal() else 1, 1), 1)


_lock = threading.Lock()
_under_way: list[int] = []
"""Threads of the reads that are under way and were not told how many to use."""


@contextmanager
def shared_cores(stated: int | None) -> Iterator[int]:
    """How many threads a read should decode on while the block runs: `stated`, or its share of usable_cores().

    Reads at the same time, as in a server's loader threads, share the cores: one that comes while others run takes
    what they leave, but one at least, and no more than an equal share.
    """
    if stated is not None:
        yield stated
        return
    cores = usable_cores()
    with _lock:
        mine = max(min(cores // (len(_under_way) + 1), cores - sum(_under_way)), 1)
        _under_way.append(mine)
    try:
        yield mine
    finally:
        with _lock, suppress(ValueError):  # a fork has forgotten it
            _under_way.remove(mine)


def _forget() -> None:
    """In a forked process: its parent's reads go on without it."""
    global _lock
    _lock = threading.Lock()
    _under_way.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _in_data_loader_worker() -> bool:
    from torch.utils.data import get_worker_info

    return get_worker_info() is not None


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota() -> int | None:
    """Whole cores of the cgroup's CPU quota, rounded up; None without one."""
    try:
        if CGROUP_V2.exists():
            quota, period = CGROUP_V2.read_text().split()
        else:
            quota = (CGROUP_V1 / "cpu.cfs_quota_us").read_text().strip()
            period = (CGROUP_V1 / "cpu.cfs_period_us").read_text().strip()
        if quota == "max" or int(quota) <= 0:
            return None
        return -(-int(quota) // int(period))
    except (OSError, ValueError):
        return None
