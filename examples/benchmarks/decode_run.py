"""One run of decode.py, in a process of its own: `python decode_run.py READER FILE SAMPLING TOTAL` prints what it took.

The library is imported before the clock starts; opening, reading and resizing are within.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from examples.benchmarks.decode_kept import KEPT
from examples.benchmarks.decode_limit import SIZE
from examples.benchmarks.decode_readers import READERS
from examples.benchmarks.decode_rows import wishes

STREAM = "stream"
"""In place of a reader: how long quickdecode's first 16 frames take."""


def run_once(reader: str, path: str, sampling: str, total: int) -> dict[str, float]:
    """Read `path` (or URL), of `total` frames: seconds, CPU seconds, MB of memory and MB from the disk that it took."""
    if reader == STREAM:
        return _stream_once(path, sampling, total)
    groups = wishes(sampling, total)
    read = _all_groups(reader, path, sampling)
    Path("/proc/self/clear_refs").write_text("5")  # start the high-water mark anew, after the imports
    memory, disk = _memory("VmRSS"), _disk_mb()
    before, began = _cpu_seconds(), time.perf_counter()
    counts = read(groups)
    wall = time.perf_counter() - began
    cpu = _cpu_seconds() - before
    if counts != [len(indices) for indices in groups]:
        raise RuntimeError(f"{sum(counts)} frames instead of {sum(map(len, groups))}")
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024 if reader == "deepcodec" else 0.0
    peak = _memory("VmHWM") - memory + children
    return {"wall": wall, "cpu": cpu, "peak_mb": peak, "read_mb": _disk_mb() - disk}


def _all_groups(reader: str, path: str, sampling: str) -> Callable[[list[list[int]]], list[int]]:
    """Reads groups of frames one after the other, and gives the number of frames in each."""
    if sampling == "clips":
        opened = KEPT[reader]()

        def keep_open(groups: list[list[int]]) -> list[int]:
            get = opened(path, SIZE)
            return [len(get(indices)) for indices in groups]

        return keep_open
    read = READERS[reader](path)
    return lambda groups: [len(read(indices, SIZE)) for indices in groups]


def _stream_once(path: str, sampling: str, total: int) -> dict[str, float]:
    """Stream, and say when the first block of frames came and when the last."""
    import quickdecode

    (indices,) = wishes(sampling, total)
    began = time.perf_counter()
    came = [
        time.perf_counter() - began for _ in quickdecode.stream_video(path, indices=indices, size=SIZE, block_frames=16)
    ]
    return {"first": came[0], "last": came[-1]}


def _cpu_seconds() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _memory(field: str) -> float:
    """VmRSS or VmHWM of this process in MB."""
    return _field("/proc/self/status", field) / 1024


def _disk_mb() -> float:
    """What this process, and children that have ended, fetched from the disk; what the page cache held is not in it."""
    return _field("/proc/self/io", "read_bytes") / 1e6


def _field(file: str, name: str) -> int:
    return next(int(line.split()[1]) for line in Path(file).read_text().splitlines() if line.startswith(name))


def answer() -> dict[str, Any]:
    """What the command line asks for."""
    reader, path, sampling, total = sys.argv[1:]
    return run_once(reader, path, sampling, int(total))


if __name__ == "__main__":
    print(json.dumps(answer()))
