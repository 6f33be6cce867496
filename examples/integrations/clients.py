"""Real runs of other people's programs, stock and patched: makes their environments, runs, records.

    python -m examples.integrations.clients --folder .cache/clients [--only trl ...] [--runs pipeline ...] [--ways ...]

Each client gets a virtual environment above the current one, whose torch it shares, with the transformers it wants. A
run is one program, started in several ways: as it is; patched, under the launcher, with the client's own flag for
plugins or by the hook; streamed; and patched, then with everything removed, once more in the same process. What they
answered, their losses and the report go to examples/benchmarks/results/clients.*
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from examples.integrations.lmms_eval import make_clips
from examples.integrations.programs import CLIENTS, WAYS, Client, Run

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "examples/benchmarks/results/clients"
ACTIVE = "quickprefill: active: "
ENVIRONMENT = {
    **{"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    **{"QUICKPREFILL": '{"keep": 1, "group_frames": 8}', "FPS": "2", "FPS_MAX_FRAMES": "64"},
    **{"VIDEO_MAX_PIXELS": "3136", "VIDEO_MIN_PIXELS": "3136", "DISABLE_VERSION_CHECK": "1"},
}


def environment_of(name: str, client: Client, folder: Path) -> Path:
    """The client's Python, installed if it is not there."""
    python = folder / name / "bin" / "python"
    if python.exists():
        return python
    venv.create(folder / name, with_pip=True)
    (purelib_of(python) / "base.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([python, "-m", "pip", "install", "-q", *client.requirements], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(ROOT)], check=True)  # its entry points
    return python


def purelib_of(python: Path) -> Path:
    """Where it has its packages."""
    script = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.check_output([python, "-c", script], text=True).strip())


def prepare(folder: Path) -> tuple[Path, Path]:
    """The clips, and their questions as each client wants them; the questions' file and one clip."""
    questions = make_clips.main(["--clips", "4", "--output", str(ROOT / make_clips.FOLDER)])
    asked = [json.loads(line) for line in questions.read_text().splitlines()]
    lines, turns = [], []
    for one in asked[:8]:
        video = {"videos": [one["video"]]}
        messages = [
            {"role": "user", "content": f"<video>{one['question']}"},
            {"role": "assistant", "content": one["answer"]},
        ]
        lines.append(json.dumps({"messages": messages, **video}))
        turns.append({"conversations": [{"from": "human", "value": messages[0]["content"]}], **video})
        turns[-1]["conversations"].append({"from": "gpt", "value": one["answer"]})
    (folder / "runs" / "llamafactory").mkdir(parents=True, exist_ok=True)
    (folder / "runs" / "swift.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "runs" / "llamafactory" / "clips.json").write_text(json.dumps(turns))
    columns = {"messages": "conversations", "videos": "videos"}
    info = {"clips": {"file_name": "clips.json", "formatting": "sharegpt", "columns": columns}}
    (folder / "runs" / "llamafactory" / "dataset_info.json").write_text(json.dumps(info))
    return questions, Path(asked[0]["video"])


def execute(python: Path, arguments: list[str], work: Path, names: dict[str, str]) -> dict[str, Any]:
    """Run it; what it said, and how it ended."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for key, value in {"work": str(work), **names}.items():
        arguments = [argument.replace(f"{{{key}}}", value) for argument in arguments]
    start = time.monotonic()
    done = subprocess.run(
        [python, "-W", "ignore", *arguments],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    (work / "log.txt").write_text(done.stdout + done.stderr)
    logs = [done.stdout, *(log.read_text() for log in sorted(work.rglob("stdout.log")))]  # of torchrun's children
    said = [line for log in logs for line in log.splitlines()]
    prefilled = [line.partition("PREFILLED ")[2] for line in said if line.startswith("PREFILLED ")]
    prefilled += [line for line in done.stdout.splitlines() if " video tokens in " in line and "PREFILLED" not in line]
    removed = [at for at, line in enumerate(said) if line.startswith("REMOVED ")]
    left = {"left": ast.literal_eval(said[removed[-1]].removeprefix("REMOVED "))} if removed else {}
    said = said[removed[-1] + 1 :] if removed else said
    return {
        "command": "python " + " ".join(arguments).replace(str(work), "WORK").replace(f"{ROOT}/", ""),
        "ended": done.returncode,
        "seconds": round(time.monotonic() - start, 1),
        "answers": answers_in(said, work),
        "losses": losses_in(said, work),
        "prefilled": prefilled[-1] if prefilled else None,
        "active": (done.stdout + done.stderr).count(f"{ACTIVE}video models"),
        **left,
        "error": "" if done.returncode == 0 else "\n".join(done.stderr.splitlines()[-3:]),
    }


@contextlib.contextmanager
def hook_on(python: Path) -> Iterator[None]:
    """`python -m quickprefill.hook on` for a while, and what the processes that it reaches say at their end."""
    teller = purelib_of(python) / "quickprefill_tell.pth"
    hook = [python, "-m", "quickprefill.hook"]
    subprocess.run([*hook, "on"], check=True, cwd=ROOT, env={**os.environ, **ENVIRONMENT})
    teller.write_text('import os; "RANK" in os.environ and __import__("examples.integrations.tell")\n')
    try:
        yield
    finally:
        teller.unlink()
        subprocess.run([*hook, "off"], check=True, cwd=ROOT, env={**os.environ, **ENVIRONMENT})


def answers_in(said: list[str], work: Path) -> list[str]:
    """What it printed, or wrote as ms-swift and lmms-eval do."""
    answers = [line.removeprefix("ANSWER ") for line in said if line.startswith("ANSWER ")]
    for file in work.glob("answers.jsonl"):
        answers += [json.loads(line)["response"] for line in file.read_text().splitlines()]
    for file in work.rglob("*_samples_*.jsonl"):
        samples = sorted(map(json.loads, file.read_text().splitlines()), key=lambda sample: sample["doc_id"])
        answers += [str(sample["filtered_resps"]) for sample in samples]
    return answers


def losses_in(said: list[str], work: Path) -> list[float]:
    """What it printed, or logged as ms-swift and LLaMA-Factory do."""
    for line in said:
        if line.startswith("LOSSES "):
            return list(ast.literal_eval(line.removeprefix("LOSSES ")))
    for file in (*work.rglob("logging.jsonl"), *work.glob("trainer_log.jsonl")):
        return [step["loss"] for step in map(json.loads, file.read_text().splitlines()) if "loss" in step]
    return []


def versions_of(python: Path, packages: list[str]) -> dict[str, str]:
    """Installed versions."""
    names = [*packages, "transformers", "av", "torch"]
    script = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names!r}}}))"
    found: dict[str, str] = json.loads(subprocess.check_output([python, "-c", script], text=True, cwd="/"))
    return found


def table(record: dict[str, Any]) -> str:
    """The runs in Markdown."""
    heads = ["client", "transformers, av", "run", "answers as stock", "losses as stock", "groups prefilled"]
    lines = [f"| {' | '.join([*heads, 'answers, streamed', 'after remove()'])} |", "|---" * 8 + "|"]
    for name, client in record.items():
        version = ", ".join(client["versions"][package] for package in ("transformers", "av"))
        label = " ".join((name, *(client["versions"][package] for package in CLIENTS[name].packages)))
        for run, ways in client["runs"].items():
            if not {"stock", "patched"} <= ways.keys():
                continue  # it has only just begun
            stock, patched = ways["stock"], ways["patched"]
            cells = [label, version, run, _equal(stock, patched, "answers"), _equal(stock, patched, "losses")]
            cells.append((patched["prefilled"] or "none").partition(";")[0])
            cells.append(_equal(stock, ways["streamed"], "answers") if "streamed" in ways else "")
            cells.append(_after(stock, ways["removed"]) if "removed" in ways else "")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _after(stock: dict[str, Any], removed: dict[str, Any]) -> str:
    if removed["ended"]:
        return f"ended with {removed['ended']}"
    equal = _equal(stock, removed, "answers" if stock["answers"] else "losses")
    return f"{equal}; {', '.join(removed['left']) or 'nothing'} left"


def _equal(stock: dict[str, Any], patched: dict[str, Any], what: str) -> str:
    one, other = stock[what], patched[what]
    if not one and not other:
        return "-" if not (stock["ended"] or patched["ended"]) else f"stock {stock['ended']}, ours {patched['ended']}"
    if not one:
        return f"stock cannot run; ours: {len(other)}"
    return f"{sum(a == b for a, b in zip(one, other, strict=False))} of {len(one)}"


def started(python: Path, run: Run, way: str, work: Path, names: dict[str, str]) -> dict[str, Any]:
    """One way of a run."""
    with hook_on(python) if run.hook and way == "patched" else contextlib.nullcontext():
        return execute(python, getattr(run, way), work, names)


def write(record: dict[str, Any]) -> None:
    """The record, in the order of CLIENTS, and its table."""
    ordered = {
        name: {**record[name], "runs": {title: runs[title] for title in CLIENTS[name].runs if title in runs}}
        for name, runs in ((name, record[name]["runs"]) for name in CLIENTS if name in record)
    }
    RESULTS.with_suffix(".json").write_text(json.dumps(ordered, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(table(ordered))


def main(argv: list[str] | None = None) -> None:
    """Run what is asked for, and add it to the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the environments and runs are put")
    parser.add_argument("--only", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--runs", nargs="+", help="only these; what was recorded of the others stays")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="only these, where a run has them")
    arguments = parser.parse_args(argv)
    questions, clip = prepare(arguments.folder)
    names = {"questions": str(questions), "clip": str(clip)}
    stored = RESULTS.with_suffix(".json")
    record: dict[str, Any] = json.loads(stored.read_text()) if stored.exists() else {}
    for name in arguments.only:
        client = CLIENTS[name]
        python = environment_of(name, client, arguments.folder)
        before = record.get(name, {}).get("runs", {})
        runs = {title: before[title] for title in client.runs if title in before}
        for at, (title, run) in enumerate(client.runs.items()):
            for way in WAYS if not arguments.runs or title in arguments.runs else ():
                if way not in arguments.ways or getattr(run, way) is None:
                    continue
                work = arguments.folder / "runs" / f"{name}-{at}-{way}"
                runs.setdefault(title, {})[way] = started(python, run, way, work, names)
                print(name, title, way, json.dumps(runs[title][way], indent=1), file=sys.stderr, flush=True)
                record[name] = {"versions": versions_of(python, client.packages), "runs": runs}
                write(record)
    print(table(record))


if __name__ == "__main__":
    main()
