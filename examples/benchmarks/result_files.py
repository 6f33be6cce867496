"""Result files: JSON that a later call goes on with, and a page of Markdown beside it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

import quickprefill

RESULTS = Path(__file__).parent / "results"


def environment(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a reader needs to repeat the run."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    return {
        "command": f"python examples/benchmarks/{Path(sys.argv[0]).name} " + " ".join(_without_folders(sys.argv[1:])),
        "commit": commit.stdout.strip(),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else machine,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "quickprefill": quickprefill.__version__,
        "family": arguments.family,
        "shape": arguments.shape,
        "group_frames": arguments.group_frames,
    }


def _without_folders(words: list[str]) -> list[str]:
    folders = {place + step for place, word in enumerate(words) if word in ("--results", "--folder") for step in (0, 1)}
    return [word for place, word in enumerate(words) if place not in folders]


def load(path: Path, now: dict[str, Any]) -> dict[str, Any]:
    """Results to go on with: those of the same versions and settings, else none."""
    if path.exists():
        stored: dict[str, Any] = json.loads(path.read_text())
        if all(stored["environment"].get(name) == now[name] for name in now.keys() - {"command", "commit"}):
            return stored
    return {"environment": now, "runs": {}}


def save(path: Path, results: dict[str, Any], page: str) -> None:
    """Write JSON, and the page beside it; a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for target, text in ((path, json.dumps(results, indent=1) + "\n"), (path.with_suffix(".md"), page)):
        draft = target.with_name(target.name + ".draft")
        draft.write_text(text)
        os.replace(draft, target)
