"""Cubes with weights under stock trainers, recorded: Trainer, TRL, accelerate, PEFT, DDP, FSDP and DeepSpeed on a CPU.

    python -m examples.integrations.train_clients --folder WORK [--only "TRL SFTTrainer" ...]

Makes an environment with TRL, PEFT and DeepSpeed over this one in WORK; writes cubes_trainers.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from examples.integrations.clients import ENVIRONMENT, ROOT, environment_of, versions_of
from examples.integrations.programs import Client
from examples.integrations.trainers import RUNS
from examples.needle.clip import write_clip
from examples.needle.scene import Difficulty, sample_scene
from examples.needle.tasks import ask
from examples.needle.vocabulary import ANSWERS

RESULTS = ROOT / "examples/benchmarks/results/cubes_trainers"
CLIENT = Client(["trl==1.16.0", "peft==0.21.2", "deepspeed==0.19.8"], {}, ["trl", "peft", "accelerate", "deepspeed"])


def prepare(folder: Path) -> None:
    """Twelve questions, each with an answer that is wrong; ten of them about clips."""
    lines: list[dict[str, Any]] = []
    for number in range(10):
        scene = sample_scene("train", number, Difficulty(frames=16))
        clip = write_clip(scene, folder / f"{number}.mp4").name
        asked = ask(scene)[0]
        wrong = next(answer for answer in ANSWERS[number:] if answer != asked.answer)
        lines.append({"video": clip, "conversations": [{"from": "human", "value": asked.text}]})
        lines[-1]["conversations"].append({"from": "gpt", "value": wrong})
    for number in range(2):
        turns = [
            {"role": "user", "content": "How many crosses appeared?"},
            {"role": "assistant", "content": str(number)},
        ]
        lines.append({"messages": turns})
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def execute(python: Path, name: str, work: Path) -> dict[str, Any]:
    """Run one, in its processes; what the first said, or how it ended."""
    processes = RUNS[name][1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", "29555"]
    command = [*(launcher if processes > 1 else []), "-m", "examples.integrations.trainers", name, str(work)]
    for old in work.glob(f"{name}.*.json"):
        old.unlink()
    start = time.monotonic()
    done = subprocess.run(
        [str(python), "-W", "ignore", *command],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT, "QUICKPREFILL": "", "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    (work / f"{name}.log").write_text(done.stdout + done.stderr)
    errors = [line for line in done.stderr.splitlines() if "Error" in line]
    return {
        "processes": processes,
        "ended": done.returncode,
        "seconds": round(time.monotonic() - start, 1),
        "results": [json.loads(file.read_text()) for file in sorted(work.glob(f"{name}.*.json"))],
        "error": "" if done.returncode == 0 else errors[0].strip()[:300] if errors else done.stderr[-300:],
    }


def table(record: dict[str, Any]) -> str:
    """The runs in Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [f"`python -m examples.integrations.train_clients --folder WORK`, on a CPU: {versions}.", ""]
    lines += [
        "Each loss is of another batch of wrong answers, at a high rate: steps are taken, nothing useful is learned."
    ]
    lines += ["Moved: tensors of the policy that changed; for FSDP and DeepSpeed in the adapter that was saved.", ""]
    lines += ["| trainer | processes | ended | what was seen |", "|---|---|---|---|"]
    for name, run in record["runs"].items():
        seen = "<br>".join(_told(result) for result in run["results"]) or run["error"]
        lines.append(f"| {name} | {run['processes']} | {run['ended']} | {seen.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def _told(result: dict[str, Any]) -> str:
    parts = []
    for name, value in result.items():
        if isinstance(value, dict):
            parts.append(f"{name}: {_told(value)}")
        elif isinstance(value, list):
            parts.append(f"{name} {value[0]} to {value[-1]} in {len(value)} steps")
        else:
            parts.append(f"{name}: {value:.6g}" if isinstance(value, float) else f"{name}: {value}")
    return "; ".join(parts)


def main(argv: list[str] | None = None) -> None:
    """Run what is asked for, and add it to the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the environment and runs are put")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    arguments = parser.parse_args(argv)
    work = arguments.folder.resolve() / "runs" / "trainers"
    work.mkdir(parents=True, exist_ok=True)
    prepare(work)
    python = environment_of("trainers", CLIENT, arguments.folder.resolve())
    file = RESULTS.with_suffix(".json")
    runs: dict[str, Any] = json.loads(file.read_text())["runs"] if file.exists() else {}
    for name in arguments.only:
        runs[name] = execute(python, name, work)
        print(name, json.dumps(runs[name], indent=1))
        record = {
            "versions": versions_of(python, CLIENT.packages),
            "runs": {key: runs[key] for key in RUNS if key in runs},
        }
        file.write_text(json.dumps(record, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(table(record))


if __name__ == "__main__":
    main()
