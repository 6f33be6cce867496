"""Compare quickdecode with other readers: speed, memory, distance from the limit, and wrong frames.

    python examples/benchmarks/decode.py                 # every file, sampling and installed reader: about an hour
    python examples/benchmarks/decode.py --files h264_360p_2m.mp4 --samplings u64 --repeats 1
    python examples/benchmarks/decode.py --check         # which readers return which wrong frames

Readers: `pip install -e .[bench]`; one that is not installed or does not load is left out. Every run is a fresh
process with a warm page cache; readers take turns; the median of the runs counts. All return the same frames at
the same size (252 x 448), each with its own resize. Results go to examples/benchmarks/results/.

The limit is the time in which perfectly busy cores would decode what must be decoded: for H.264 the reference
pictures from the key frame to the last wanted frame of each group and the wanted pictures, else all of them; at
the rate of this machine's single-threaded decoder, plus the resize of the wanted frames; opening and indexing
are left out of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
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


def frame_numbers(sampling: str, total: int) -> list[int]:
    """`u64`: 64 frames evenly spaced; `fps2`: two a second (files have 30)."""
    count = int(sampling[1:]) if sampling[0] == "u" else round(total / 30 * int(sampling[3:]))
    return [int(i) for i in np.linspace(0, total - 1, min(count, total)).round()]


def run_once(reader: str, path: str, sampling: str, total: str) -> dict[str, float]:
    """In this process: read, and say what it took."""
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


def limit_seconds(path: Path, sampling: str, cores: int) -> dict[str, float]:
    """What perfectly busy cores would need; see the top of this file."""
    packets = _packets(path)
    order = np.argsort([packet["pts"] for packet in packets])
    wanted = {int(order[i]) for i in frame_numbers(sampling, len(packets))}
    needed, pending = set(), []
    for position, packet in enumerate(packets):
        if packet["key"]:
            pending = []
        pending.append(position)
        if position in wanted:
            needed |= {p for p in pending if packets[p]["reference"] or p in wanted}
            pending = []
    seconds = _decode_seconds(path, packets, needed)
    return {
        "frames": len(needed),
        "of": len(packets),
        "seconds": (seconds + len(wanted) * _resize_seconds(path)) / cores,
    }


def _packets(path: Path) -> list[dict[str, Any]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context.name
        return [
            {"pts": packet.pts, "key": packet.is_keyframe, "reference": codec != "h264" or _is_reference(bytes(packet))}
            for packet in container.demux(stream)
            if packet.size
        ]


def _is_reference(packet: bytes) -> bool:
    """Whether the first slice of an H.264 sample has nal_ref_idc > 0."""
    place = 0
    while place + 4 < len(packet):
        size, header = int.from_bytes(packet[place : place + 4], "big"), packet[place + 4]
        if header & 0x1F in (1, 5):
            return header >> 5 & 3 > 0
        place += 4 + size
    return True


def _decode_seconds(path: Path, packets: list[dict[str, Any]], needed: set[int]) -> float:
    """Decode time of `needed`, from the measured time of reference and other pictures over two minutes."""
    counts = {kind: sum(packets[p]["reference"] is kind for p in needed) for kind in (True, False)}
    every, references = (_single_thread(path, skip) for skip in (False, True))
    shown = packets[: 2 * 60 * 30]
    kinds = {kind: max(sum(packet["reference"] is kind for packet in shown), 1) for kind in (True, False)}
    other = max(every - references, 0.0) if kinds[False] > 1 else 0.0
    return counts[True] * references / kinds[True] + counts[False] * other / kinds[False]


_rates: dict[Any, float] = {}


def _single_thread(path: Path, skip: bool) -> float:
    """Seconds to decode the first two minutes on one thread."""
    key = (path, skip)
    if key not in _rates:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            stream.codec_context.thread_type = "NONE"
            if skip and stream.codec_context.name == "h264":
                stream.codec_context.skip_frame = "NONREF"
            began = time.process_time()
            for number, packet in enumerate(container.demux(stream)):
                if number == 2 * 60 * 30:
                    break
                packet.decode()
            _rates[key] = time.process_time() - began
    return _rates[key]


def _resize_seconds(path: Path) -> float:
    key = (path, "resize")
    if key not in _rates:
        with av.open(str(path)) as container:
            frames = [frame for frame, _ in zip(container.decode(video=0), range(16), strict=False)]
        began = time.process_time()
        for frame in frames:
            frame.reformat(width=SIZE[1], height=SIZE[0], format="gbrp", interpolation="BICUBIC", threads=1)
        _rates[key] = (time.process_time() - began) / len(frames)
    return _rates[key]


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
            runs = _take_turns(readers, path, sampling, total, repeats, options.seconds)
            limit = limit_seconds(path, sampling, cores)
            rows = [row for row in rows if (row["file"], row["sampling"]) != (name, sampling)]
            rows.append({"file": name, "sampling": sampling, "limit": limit, "runs": runs})
            answer = {"cores": cores, "machine": _machine(), "size": SIZE, "note": options.note, "rows": rows}
            stored.write_text(json.dumps(answer, indent=1) + "\n")


def _take_turns(
    readers: list[str], path: Path, sampling: str, total: str, repeats: int, seconds: float
) -> dict[str, list[dict[str, Any]]]:
    runs: dict[str, list[dict[str, Any]]] = {reader: [] for reader in readers}
    for _ in range(repeats):
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
