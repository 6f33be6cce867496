"""Compare quickdecode with other readers: speed, CPU time, memory, distance from the limit, and wrong frames.

    python examples/benchmarks/decode.py                   # long videos, every installed reader: about two hours
    python examples/benchmarks/decode.py --group formats   # or short, clips, cold, http: decode_rows.py lists them
    python examples/benchmarks/decode.py --files h264_360p_2m.mp4 --samplings u64 --turns 1
    python examples/benchmarks/decode.py --check           # which readers return which wrong frames

Readers: `pip install -e .[bench]`; one that is not installed or does not load is left out. Every run is a fresh
process; readers take turns; the median of the runs counts. All return the same frames at the same size (252 x 448),
each with its own resize. Files are in the page cache, except those of `cold`, which are taken out of it before every
run, and of `http`, which come through a slow link (decode_server.py). Results go to examples/benchmarks/results/.

The limit is the time in which perfectly busy cores would decode what must be decoded: for H.264 and HEVC the
reference pictures from the key frame to the last wanted frame of each group and the wanted pictures, else all of
them from the key frame on; at the rate of this machine's single-threaded decoder, plus the resize of the wanted frames;
opening and indexing are left out of it. It is CPU time, measured in turn with the readers. One decoder alone is faster
than each of several at once, which share caches and memory; the limit leaves that out too, and the report says how
much it is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from examples.benchmarks.decode_files import FILES, make
from examples.benchmarks.decode_kept import KEPT
from examples.benchmarks.decode_limit import SIZE, Limit, read_packets
from examples.benchmarks.decode_readers import READERS, usable_readers, versions
from examples.benchmarks.decode_report import write_speed
from examples.benchmarks.decode_rows import GROUPS, Row, wishes
from examples.benchmarks.decode_run import STREAM
from examples.benchmarks.decode_server import Link, serving

HERE = Path(__file__).parent


def in_fresh_process(*arguments: str, seconds: float) -> dict[str, Any]:
    """What decode_run.py says, or the error it ended in."""
    command = [sys.executable, str(HERE / "decode_run.py"), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {seconds:.0f} s"}
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        return {"error": lines[-1][:160] if lines else f"exit status {done.returncode}"}
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


@contextlib.contextmanager
def place(row: Row, path: Path) -> Iterator[tuple[str, Link | None]]:
    """What readers are given for the file at `path`, and the link if there is one between."""
    if row.source == "http":
        with serving(path.parent) as (address, link):
            yield address + path.name, link
    else:
        path.read_bytes()  # into the page cache
        yield str(path), None


def forget(path: Path) -> None:
    """Take a file out of the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(options: argparse.Namespace, stored: Path) -> None:
    """Run everything, and store each row as soon as it is there, beside rows of earlier calls."""
    readers = usable_readers(options.readers)
    cores = len(os.sched_getaffinity(0))
    rows = json.loads(stored.read_text())["rows"] if stored.exists() else []
    for row in chosen(options):
        path = make(options.folder, row.file, options.length)
        measured = measure_row(row, path, readers, options)
        rows = [old for old in rows if _key(old) != _key(measured)] + [measured]
        answer = {"cores": cores, "machine": _machine(), "size": SIZE, "note": options.note, "rows": rows}
        stored.write_text(json.dumps(answer, indent=1) + "\n")


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["file"], row["sampling"], row.get("source", "cached")


def chosen(options: argparse.Namespace) -> list[Row]:
    """The rows of the group that the options leave in."""
    return [
        row
        for row in GROUPS[options.group]
        if (not options.files or row.file in options.files)
        and (not options.samplings or row.sampling in options.samplings)
    ]


def measure_row(row: Row, path: Path, readers: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Every reader in turn, and the limit with them."""
    total = len(read_packets(path))
    cached = row.source == "cached"
    limit = Limit(path, wishes(row.sampling, total), len(os.sched_getaffinity(0))) if cached else None
    able = KEPT if row.sampling in ("clips", "anew") else READERS
    readers = [name for name in readers if name in able and name.split()[0].rstrip(",") not in row.without]
    runs: dict[str, list[dict[str, Any]]] = {reader: [] for reader in readers}
    with place(row, path) as (where, link):
        for _ in range(options.turns or row.turns):
            if limit is not None:
                limit.measure()
            for reader in readers:
                if any("error" in run for run in runs[reader]):
                    continue
                if row.source == "cold":
                    forget(path)
                sent = link.sent if link else 0
                run = in_fresh_process(reader, where, row.sampling, str(total), seconds=options.seconds)
                if link:
                    run["read_mb"] = (link.sent - sent) / 1e6
                runs[reader].append(run)
                print(row.file, row.sampling, row.source, reader, run, flush=True)
    answer: dict[str, Any] = {"file": row.file, "sampling": row.sampling, "source": row.source, "commit": _commit()}
    answer |= {"limit": limit.row() if limit else None, "runs": runs}
    if row == GROUPS[""][-1] and "quickdecode" in readers:
        answer["stream"] = in_fresh_process(STREAM, str(path), row.sampling, str(total), seconds=options.seconds)
    return answer


def _machine() -> str:
    model = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{model[0] if model else platform.machine()}, Python {platform.python_version()}, {versions()}"


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, cwd=HERE).stdout.strip()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--group", choices=GROUPS, default="", help="which rows; default: long videos")
    parser.add_argument("--files", nargs="+", choices=FILES, help="of the group; default: all")
    parser.add_argument("--samplings", nargs="+", help="of the group; default: all")
    parser.add_argument("--readers", nargs="+", choices=READERS, help="default: all that are installed")
    parser.add_argument("--turns", type=int, help="runs of each reader; default: the row's own number")
    parser.add_argument("--seconds", type=float, default=300, help="a reader that takes longer has failed")
    parser.add_argument("--length", type=int, help="make files of so many seconds; give another --folder too")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "quickdecode-bench")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--check", action="store_true", help="count wrong frames instead of measuring")
    parser.add_argument("--report", action="store_true", help="write table and plot again from the stored JSON")
    parser.add_argument("--note", default="", help="a sentence for the report, such as on other load")
    options = parser.parse_args(arguments)
    if not options.check and not chosen(options):
        samplings = ", ".join(dict.fromkeys(f"{row.file} {row.sampling}" for row in GROUPS[options.group]))
        parser.error(f"no row of group {options.group!r} is left; it has {samplings}")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    options.results.mkdir(parents=True, exist_ok=True)
    if options.check:
        from examples.benchmarks.decode_check import check, write_check

        write_check(options.results, check(options.folder, usable_readers(options.readers)))
        return
    group = f"_{options.group}" if options.group else ""
    stored = options.results / f"decode{group}_{len(os.sched_getaffinity(0))}_cores.json"
    if not options.report:
        measure(options, stored)
    elif options.note:
        stored.write_text(json.dumps({**json.loads(stored.read_text()), "note": options.note}, indent=1) + "\n")
    write_speed(stored)


if __name__ == "__main__":
    main()
