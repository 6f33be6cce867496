"""The spine on other releases of what this project stands on: `python -m tests.matrix [ROW ...]`.

A row is one or several requirements, joined by "+": `transformers==5.0.0`, `transformers==5.2.0+av==15.1.0`. Each gets
an environment that lies over the one that runs this, so that torch is there once, and what a row asks for in it. Rows
with transformers run the tests marked `spine`, rows with av alone those of the frames and of streaming.

Rows run side by side, each in one thread. Each is written to the result file as soon as it has run; a later call
replaces the rows that it runs.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

__all__ = ["CI", "main", "run_row", "table", "write"]

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "examples" / "benchmarks" / "results" / "releases.json"
CI = [f"transformers=={release}" for release in ("4.57.6", "5.2.0", "5.6.0", "5.16.1", "5.19.0", "5.23.0")]
"""What every change is tested on, beside the newest release."""
LOWEST = "+".join(
    [
        *("accelerate==1.6.0", "av==15.0.0", "httpx==0.27.0", "psutil==5.9.4", "qwen-vl-utils==0.0.14"),
        *("safetensors==0.4.3", "tqdm==4.64.0", "transformers==4.57.1"),
    ]
)
"""The lower bounds in pyproject.toml, all at once; but torch and torchvision, whose packages take 6 GB each."""
WIDE = [
    *CI,
    LOWEST,
    *(f"transformers=={release}" for release in ("5.0.0", "5.5.4", "5.9.0", "5.12.1", "5.14.1", "5.17.0", "5.22.2")),
    *(f"av=={release}" for release in ("15.0.0", "15.1.0", "16.1.0", "17.0.1", "18.0.0")),
]
SPINE = ["-m", "spine", "tests"]
FRAMES = ["tests/quickdecode/test_exact.py", "tests/quickdecode/test_index.py", "tests/test_streaming.py"]
PACKAGES = ("torch", "transformers", "tokenizers", "huggingface_hub", "qwen-vl-utils", "av", "accelerate")


def overlay(row: str, folder: Path) -> Path:
    """The Python of a row's environment, which is made if it is not there: with the pip of the one below, and compiled
    as far as its tests import it."""
    place = folder / row.replace("==", "-")
    python = place / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
        site = sysconfig.get_path("purelib", vars={"base": str(place)})
        (Path(site) / "base.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [python, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([*install, *row.split("+")], check=True)
    return python


def run_row(row: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """Run a row's tests; the row and what came out, by test and reason. One at a time in a process: it is measured."""
    python = overlay(row, folder)
    chosen = SPINE if "transformers" in row else FRAMES
    variables = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report.name}", *chosen]
        said = subprocess.run(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        print(f"== {row}\n{said.stdout.decode()}", end="", flush=True)
        cases = list(ElementTree.parse(report.name).iter("testcase"))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    skipped = [_reason(one) for case in cases if (one := case.find("skipped")) is not None]
    failed = [_name(case) for case in cases if case.find("failure") is not None or case.find("error") is not None]
    return row, {
        "versions": _versions(python),
        "tests": " ".join(chosen),
        "passed": len(cases) - len(skipped) - len(failed),
        "skipped": dict(Counter(skipped).most_common()),
        "failed": failed,
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime),
    }


def _reason(skipped: ElementTree.Element) -> str:
    """Why a test was skipped; where a whole file was, that stands behind its place."""
    message = str(skipped.get("message"))
    return str(skipped.text).rpartition("Skipped: ")[2].rstrip("')") if message == "collection skipped" else message


def _name(case: ElementTree.Element) -> str:
    return f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"


def _versions(python: Path) -> dict[str, str]:
    script = (
        "import json, platform, importlib.metadata as m;"
        f"print(json.dumps({{'python': platform.python_version(), **{{n: m.version(n) for n in {PACKAGES!r}}}}}))"
    )
    versions: dict[str, str] = json.loads(subprocess.check_output([python, "-c", script], text=True))
    return versions


def table(rows: dict[str, Any]) -> str:
    """The page beside the result file."""
    lines = [
        "# The spine on other releases",
        "",
        "`python -m tests.matrix` writes this page: the tests marked `spine`, and for av those of the frames and of",
        "streaming. Why tests are skipped stands in the JSON beside it; it is always that a release lacks something.",
        "",
        "| row | transformers | hub | av | torch | Python | passed | skipped | failed | CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row, found in rows.items():
        names = ("transformers", "huggingface_hub", "av", "torch", "python")
        counts = (found["passed"], sum(found["skipped"].values()), len(found["failed"]), found["cpu_seconds"])
        lines.append(f"| {' | '.join([row, *(found['versions'][name] for name in names), *map(str, counts)])} |")
    return "\n".join(lines) + "\n"


def write(path: Path, rows: dict[str, Any]) -> None:
    """Rows in an order of their own: the other packages, then the releases of each from old to new."""
    ordered = dict(sorted(rows.items(), key=lambda item: [_key(part) for part in item[0].split("+")]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(ordered, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(ordered))


def _key(requirement: str) -> tuple[str, list[int]]:
    name, _, release = requirement.partition("==")
    return name, [int(part) for part in release.split(".")]


def main(arguments: list[str] | None = None) -> int:
    """Run rows; 1 if a test failed in any of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", help="default: all of them")
    parser.add_argument("--ci", action="store_true", help="the rows of CI, without a result file")
    parser.add_argument("--jobs", type=int, default=2, help="rows at a time; default: 2")
    parser.add_argument("--folder", type=Path, help="where the environments stay for the next call; default: nowhere")
    parser.add_argument("--result", type=Path, default=RESULT)
    chosen = parser.parse_args(arguments)
    stored = json.loads(chosen.result.read_text()) if chosen.result.exists() else {}
    failed = False
    with tempfile.TemporaryDirectory() as scratch, multiprocessing.Pool(chosen.jobs) as pool:
        run = functools.partial(run_row, folder=chosen.folder or Path(scratch))
        for row, found in pool.imap_unordered(run, chosen.rows or (CI if chosen.ci else WIDE)):
            failed = failed or bool(found["failed"]) or not found["passed"]
            counts = f"{found['passed']} passed, {len(found['failed'])} failed"
            print(f"{row}: {counts}, {found['cpu_seconds']} CPU seconds", flush=True)
            if not chosen.ci:
                stored[row] = found
                write(chosen.result, stored)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
