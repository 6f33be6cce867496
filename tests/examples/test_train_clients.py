"""The record of trainers: what it says, and that the table is its."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.integrations.train_clients import RESULTS, prepare, table
from examples.integrations.trainers import RUNS

RECORD = json.loads(RESULTS.with_suffix(".json").read_text())


def test_the_committed_table_is_that_of_the_record():
    assert RESULTS.with_suffix(".md").read_text() == table(RECORD)
    assert list(RECORD["runs"]) == list(RUNS)


@pytest.mark.parametrize("name", list(RUNS))
def test_the_weights_trained(name):
    run = RECORD["runs"][name]
    assert run["ended"] == 0
    assert len(run["results"]) == run["processes"]
    assert run["results"][0]["moved"] == "18 of 18"


@pytest.mark.parametrize("name", ["Trainer", "TRL SFTTrainer"])
def test_evaluation_is_a_plain_forward(name):
    (result,) = RECORD["runs"][name]["results"]
    assert result["eval loss"] == pytest.approx(result["plain forward"], rel=1e-5)


def test_processes_agree():
    both = RECORD["runs"]["DDP"]["results"]
    assert [result["videos of this process"] for result in both] == [1, 0]
    assert [result["gradients apart"] for result in both] == [0, 0]


def test_questions_are_lines_to_train_on(tmp_path):
    prepare(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    assert all(Path(tmp_path, line["video"]).is_file() for line in lines[:10])
