"""Compare quickdecode with other readers: speed, memory, distance from the limit, and wrong frames.

    python examples/benchmarks/decode.py                 # every file, sampling and installed reader: about an hour
    python examples/benchmarks/decode.py --files h264_360p_2m.mp4 --samplings u64 --repeats 1
    python examples/benchmarks/decode.py --check         # which readers return which wrong frames

Readers: `pip install -e .[bench]`; one that is not installed or does not load is left out. Every run is a fresh
process with a warm page cache; readers take turns; the median of the runs counts. All return the same frames at
the same size (252 x 448), each with its own resize. Results go to examples/benchmarks/results/.

The limit is the time in which perfectly busy cores would decode what must be decoded: for H.264 and HEVC the
reference pictures from the key frame to the last wanted frame of each group and the wanted pictures, else all of
them; at the rate of this machine's single-threaded decoder, plus the resize of the wanted frames; opening and
indexing are left out of it. It is CPU time, measured in turn with the readers. One decoder alone is faster than each of
several at once, which share caches and memory; the limit leaves that out too, and the report says how much it is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
from decode_files import FILES, make
from decode_readers import READERS, usable_readers

HERE = Path(__file__).parent
SIZE = (252, 448)
SAMPLINGS = ("u64", "fps1", "fps2", "u1024")
LONG = "h264_360p_60m.mp4"
LONG_SAMPLINGS = ("u64", "fps1")
STREAM = "stream"
"""In place of a reader: how long quickdecode's first 16 frames take."""


def frame_numbers(sampling: str, total: int) -> list[int]:
    """`u64`: 64 frames evenly spaced; `fps2`: two a second (files have 30)."""
    count = int(sampling[1:]) if sampling[0] == "u" else round(total / 30 * int(sampling[3:]))
    return [int(i) for i in np.linspace(0, total - 1, min(count, total)).round()]


def stream_once(path: str, sampling: str, total: str) -> dict[str, float]:
    """In this process: stream, and say when the first block of frames came and when the last."""
    import quickdecode

    indices = frame_numbers(sampling, int(total))
    began = time.perf_counter()
    came = [
        time.perf_counter() - began for _ in quickdecode.stream_video(path, indices=indices, size=SIZE, block_frames=16)
    ]
    return {"first": came[0], "last": came[-1]}


def run_once(reader: str, path: str, sampling: str, total: str) -> dict[str, float]:
    """In this process: read, and say what it took."""
    if reader == STREAM:
        return stream_once(path, sampling, total)
    indices = frame_numbers(sampling, int(total))
    read = READERS[reader](path)
    Path("/proc/self/clear_refs").write_text("5")  # start the high-water mark anew, after the imports
    memory = _memory("VmRSS")
    before, began = _cpu_seconds(), time.perf_counter()
    frames = read(indices, SIZE)
    wall = time.perf_counter() - began
    if len(frames) != len(indices):
        raise RuntimeError(f"{len(frames)} frames instead of {len(indices)}")
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024 if reader == "deepcodec" else 0.0
    return {"wall": wall, "cpu": _cpu_seconds() - before, "peak_mb": _memory("VmHWM") - memory + children}


def _cpu_seconds() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _memory(field: str) -> float:
    """VmRSS or VmHWM of this process in MB."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field)) / 1024


def in_fresh_process(*arguments: str, seconds: float) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {seconds:.0f} s"}
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        return {"error": lines[-1][:160] if lines else f"exit status {done.returncode}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


class Limit:
    """What perfectly busy cores would need; see the top of this file."""

    def __init__(self, path: Path, sampling: str, cores: int) -> None:
        packets = _packets(path)
        order = np.argsort([packet["pts"] for packet in packets])
        wanted = {int(order[i]) for i in frame_numbers(sampling, len(packets))}
        self._path, self._cores, self._wanted = path, cores, len(wanted)
        self._seconds: list[float] = []
        self._together: list[float] = []
        needed = _needed(packets, wanted)
        self._of = len(packets)
        self._needed = {kind: sum(packets[p]["reference"] is kind for p in needed) for kind in (True, False)}
        shown = packets[: 2 * 60 * 30]
        self._shown = {kind: max(sum(packet["reference"] is kind for packet in shown), 1) for kind in (True, False)}

    def measure(self) -> None:
        """Decode two minutes on one thread, with and without the pictures that nothing refers to."""
        every, references = (_single_thread(self._path, skip) for skip in (False, True))
        with ProcessPoolExecutor(self._cores, get_context("spawn")) as pool:
            at_once = list(pool.map(_single_thread, [self._path] * self._cores, [True] * self._cores))
        self._together.append(references / statistics.mean(at_once))
        other = max(every - references, 0.0) if self._shown[False] > 1 else 0.0
        decode = sum(
            self._needed[kind] * seconds / self._shown[kind] for kind, seconds in ((True, references), (False, other))
        )
        self._seconds.append((decode + self._wanted * _resize_seconds(self._path)) / self._cores)

    def row(self) -> dict[str, Any]:
        """`seconds` is the median of what was measured."""
        needed = sum(self._needed.values())
        return {
            "frames": needed,
            "of": self._of,
            "seconds": statistics.median(self._seconds),
            "runs": self._seconds,
            "together": statistics.median(self._together),
        }


def _needed(packets: list[dict[str, Any]], wanted: set[int]) -> set[int]:
    needed, pending = set(), []
    for position, packet in enumerate(packets):
        if packet["key"]:
            pending = []
        pending.append(position)
        if position in wanted:
            needed |= {p for p in pending if packets[p]["reference"] or p in wanted}
            pending = []
    return needed


def _packets(path: Path) -> list[dict[str, Any]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        is_reference = REFERENCES.get(stream.codec_context.name, lambda _: True)
        return [
            {"pts": packet.pts, "key": packet.is_keyframe, "reference": is_reference(bytes(packet))}
            for packet in container.demux(stream)
            if packet.size
        ]


def _h264_reference(packet: bytes) -> bool:
    """Whether the first slice of the sample has nal_ref_idc > 0."""
    return next((header >> 5 & 3 > 0 for header in _headers(packet) if header & 0x1F in (1, 5)), True)


def _hevc_reference(packet: bytes) -> bool:
    """Whether the first slice of the sample, of a stream with one temporal layer, is of a reference type."""
    kinds = (header >> 1 & 0x3F for header in _headers(packet))
    return next((kind > 15 or kind % 2 == 1 for kind in kinds if kind < 32), True)


def _headers(packet: bytes) -> Iterator[int]:
    """The first byte of each unit of a sample in an MP4."""
    place = 0
    while place + 4 < len(packet):
        yield packet[place + 4]
        place += 4 + int.from_bytes(packet[place : place + 4], "big")


REFERENCES = {"h264": _h264_reference, "hevc": _hevc_reference}


def _single_thread(path: Path, skip: bool) -> float:
    """CPU seconds to decode the first two minutes on one thread."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
        if skip and stream.codec_context.name in REFERENCES:
            stream.codec_context.skip_frame = "NONREF"
        began = time.process_time()
        for number, packet in enumerate(container.demux(stream)):
            if number == 2 * 60 * 30:
                break
            packet.decode()
        return time.process_time() - began


def _resize_seconds(path: Path) -> float:
    with av.open(str(path)) as container:
        frames = [frame for frame, _ in zip(container.decode(video=0), range(16), strict=False)]
    began = time.process_time()
    for frame in frames:
        frame.reformat(width=SIZE[1], height=SIZE[0], format="gbrp", interpolation="BICUBIC", threads=1)
    return (time.process_time() - began) / len(frames)


def measure(options: argparse.Namespace, stored: Path) -> None:
    """Run everything, and store each row as soon as it is there, beside rows of earlier calls."""
    readers = usable_readers(options.readers)
    cores = len(os.sched_getaffinity(0))
    rows = json.loads(stored.read_text())["rows"] if stored.exists() else []
    for name in options.files:
        path = make(options.folder, name)
        total = str(len(_packets(path)))
        for sampling in options.samplings:
            if name == LONG and sampling not in LONG_SAMPLINGS:
                continue
            repeats = 1 if (name, sampling) == (LONG, "fps1") else options.repeats
            limit = Limit(path, sampling, cores)
            runs = _take_turns(readers, path, sampling, total, repeats, options.seconds, limit)
            rows = [row for row in rows if (row["file"], row["sampling"]) != (name, sampling)]
            rows.append({"file": name, "sampling": sampling, "limit": limit.row(), "runs": runs})
            if (name, sampling) == (LONG, "fps1") and "quickdecode" in readers:
                rows[-1]["stream"] = in_fresh_process(STREAM, str(path), sampling, total, seconds=options.seconds)
            answer = {"cores": cores, "machine": _machine(), "size": SIZE, "note": options.note, "rows": rows}
            stored.write_text(json.dumps(answer, indent=1) + "\n")


def _take_turns(
    readers: list[str], path: Path, sampling: str, total: str, repeats: int, seconds: float, limit: Limit
) -> dict[str, list[dict[str, Any]]]:
    runs: dict[str, list[dict[str, Any]]] = {reader: [] for reader in readers}
    for _ in range(repeats):
        limit.measure()
        for reader in readers:
            if any("error" in run for run in runs[reader]):
                continue
            run = in_fresh_process(reader, str(path), sampling, total, seconds=seconds)
            runs[reader].append(run)
            print(path.name, sampling, reader, run, flush=True)
    return runs


def _machine() -> str:
    model = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{model[0] if model else platform.machine()}, Python {platform.python_version()}, PyAV {av.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", nargs="+", choices=FILES, default=list(FILES))
    parser.add_argument("--samplings", nargs="+", default=list(SAMPLINGS))
    parser.add_argument("--readers", nargs="+", choices=READERS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=300, help="a reader that takes longer has failed")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "quickdecode-bench")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--check", action="store_true", help="count wrong frames instead of measuring")
    parser.add_argument("--report", action="store_true", help="write table and plot again from the stored JSON")
    parser.add_argument("--note", default="", help="a sentence for the report, such as on other load")
    parser.add_argument("--one", nargs=4, metavar=("READER", "FILE", "SAMPLING", "TOTAL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_once(*options.one)))
        return
    from decode_report import write_check, write_speed

    options.results.mkdir(parents=True, exist_ok=True)
    if options.check:
        from decode_check import check

        write_check(options.results, check(options.folder, usable_readers(options.readers)))
        return
    stored = options.results / f"decode_{len(os.sched_getaffinity(0))}_cores.json"
    if not options.report:
        measure(options, stored)
    elif options.note:
        stored.write_text(json.dumps({**json.loads(stored.read_text()), "note": options.note}, indent=1) + "\n")
    write_speed(stored)


if __name__ == "__main__":
    main()
