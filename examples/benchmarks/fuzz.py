"""Damaged files, thousands of them: each gives frames or one of our errors, soon and in little memory.

    python examples/benchmarks/fuzz.py --files 3000

23 kinds of clips are damaged in seven ways (tests/quickdecode/fuzzing.py); a process of its own reads each file. A run
that is broken off goes on where it was when it is started again with the same --work folder.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import av
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from examples.benchmarks.result_files import RESULTS, save
from tests.quickdecode import fuzzing
from tests.quickdecode.mutations import MUTATIONS

FINE = ("frames", "error")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--work", type=Path, default=Path("fuzz-work"), help="clips, and rows that are there already")
    parser.add_argument("--results", type=Path, default=RESULTS / "fuzz.json")
    parser.add_argument("--keep", action="store_true", help="leave files that fail in the work folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    facts = environment(arguments)
    summary = {"environment": facts, **summarised(run(arguments))}
    save(arguments.results, summary, page(summary))
    print(page(summary))


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of all files; each is stored as soon as it is there."""
    stored = arguments.work / "rows.jsonl"
    rows = [json.loads(line) for line in stored.read_text().splitlines()] if stored.exists() else []
    done = {row["number"] for row in rows}
    seeds = fuzzing.make_seeds(arguments.work)
    with stored.open("a") as file:
        for number in range(arguments.files):
            if number in done:
                continue
            case = fuzzing.make_case(number, seeds, arguments.work)
            outcome = fuzzing.run(case)
            if outcome.fine or not arguments.keep:
                case.path.unlink()
            rows.append(fuzzing.as_row(outcome))
            file.write(json.dumps(rows[-1]) + "\n")
            file.flush()
            if not outcome.fine:
                print(rows[-1], flush=True)
    return [row for row in rows if row["number"] < arguments.files]


def environment(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a reader needs to repeat the run."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "command": f"python examples/benchmarks/fuzz.py --files {arguments.files}",
        "commit": commit.stdout.strip(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "av": av.__version__,
        "ffmpeg": av.ffmpeg_version_info if hasattr(av, "ffmpeg_version_info") else str(av.library_versions),
        "torch": torch.__version__,
    }


def summarised(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts by kind of clip, and what stands out."""
    return {
        "files": len(rows),
        "kinds": dict(Counter(row["kind"] for row in rows)),
        "seeds": {seed: dict(Counter(row["kind"] for row in rows if row["seed"] == seed)) for seed in fuzzing.SEEDS},
        "mutations": {
            mutate.__name__: dict(Counter(row["kind"] for row in rows if row["mutation"] == mutate.__name__))
            for mutate in MUTATIONS
        },
        "most_mib": max(rows, key=lambda row: row["peak_mib"], default={}),
        "slowest": max(rows, key=lambda row: row["seconds"], default={}),
        "wrong": [row for row in rows if row["kind"] not in FINE],
    }


def page(summary: dict[str, Any]) -> str:
    """The same as Markdown."""
    facts = summary["environment"]
    wrong = summary["wrong"]
    most, slowest = summary["most_mib"], summary["slowest"]
    lines = [
        f"{summary['files']} damaged files, each read by a process of its own: `{facts['command']}`, commit "
        f"{facts['commit']}, PyAV {facts['av']}, FFmpeg {facts['ffmpeg']}, torch {facts['torch']}, Python "
        f"{facts['python']}, {facts['machine']}.",
        "",
        f"Frames or one of our errors within {fuzzing.SECONDS:.0f} s and {fuzzing.MEMORY_BYTES >> 20} MiB beyond what "
        f'was delivered, no crash, no hang, no thread left, and with on_error="raise" as many frames as a plain decode '
        f"gives: {summary['files'] - len(wrong)} of {summary['files']}. Most memory {most['peak_mib']} MiB (file "
        f"{most['number']}, {most['mutation']}, {most['seed']}), slowest {slowest['seconds']} s (file "
        f"{slowest['number']}, {slowest['mutation']}, {slowest['seed']}).",
        "",
        *_table("clip", summary["seeds"]),
        "",
        *_table("damage", summary["mutations"]),
    ]
    if wrong:
        lines += ["", "| file | clip | damage | what | |", "|---|---|---|---|---|"]
        lines += [f"| {w['number']} | {w['seed']} | {w['mutation']} | {w['kind']} | {w['said'][:200]} |" for w in wrong]
    return "\n".join(lines) + "\n"


def _table(name: str, counts: dict[str, dict[str, int]]) -> list[str]:
    lines = [f"| {name} | frames | our error | anything else |", "|---|---|---|---|"]
    for row, kinds in counts.items():
        other = sum(count for kind, count in kinds.items() if kind not in FINE)
        lines.append(f"| {row} | {kinds.get('frames', 0)} | {kinds.get('error', 0)} | {other} |")
    return lines


if __name__ == "__main__":
    main()
