"""The benchmark of cubes: it trains, asks and goes on; and the adapter that is shipped answers as its row says."""

import json
from pathlib import Path

import pytest

from examples.benchmarks import cubes, cubes_training

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "examples" / "tiny-qwen2.5-vl"


def test_the_shipped_adapter_reproduces_its_row():
    row = json.loads((ROOT / "examples/benchmarks/results/cubes_learned.json").read_text())
    verdicts = row["sets"]["one stretch"]["ways"]["learned, 8x, seed 0"]["verdicts"]
    model, prompts = cubes.load(str(CHECKPOINT))
    cubes.patched(model, CHECKPOINT / "cubes")
    for clip in range(6):
        said = cubes.answers(model, prompts, "one stretch", clip)
        assert "".join(map(str, said["right"])) == verdicts[clip]


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(cubes_training, "_WATCHED_CLIPS", 2)
    monkeypatch.setattr(cubes_training, "_WATCH_STEPS", 1)


def test_it_trains_asks_and_does_nothing_twice(few, tmp_path, capsys):
    options = ["--model", str(CHECKPOINT), "--work", str(tmp_path / "work"), "--output", str(tmp_path / "out")]
    options += ["--steps", "2", "--batch", "1", "--seeds", "0", "--ratios", "8", "--clips", "2", "--ways", "learned"]
    options += ["--sets", "one stretch"]
    summary = cubes.main(options)
    assert [point["step"] for point in summary["curves"]["learned, 8x, seed 0"]] == [0, 1, 2]
    figures = summary["sets"]["one stretch"]["ways"]
    assert set(figures) == {"unpruned", "fixed, 8x", "momentum, 8x", "learned, 8x, seed 0"}
    assert figures["unpruned"]["accuracy"] > figures["fixed, 8x"]["accuracy"] > 0.3
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"work", "out.json", "out.md", "out_training.png", "out_example.png"}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.*")}
    assert cubes.main(options)["sets"] == summary["sets"]
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.*")}
    with pytest.raises(ValueError, match="name another folder with --work"):
        cubes.main([*options, "--steps", "3"])
