"""The task of needle clips for lmms-eval, and two runs side by side."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from examples.integrations.lmms_eval import make_clips
from examples.integrations.lmms_eval.compare import LogError, compare, main, score
from examples.needle.answering import Answer
from examples.needle.statistics import sign_test

FOLDER = Path(make_clips.__file__).parent


def test_questions_name_files_that_are_there(tmp_path):
    questions = make_clips.main(["--frames", "8", "--clips", "2", "--output", str(tmp_path)])
    asked = [json.loads(line) for line in questions.read_text().splitlines()]
    assert {Path(one["video"]).name for one in asked} == {"00008-0000.mp4", "00008-0001.mp4"}
    assert all(Path(one["video"]).stat().st_size > 0 and one["question"].endswith("?") for one in asked)


@pytest.mark.parametrize("said", ["Red.", " red, I think", "RED", "blue", "", "the red one"])
def test_an_answer_is_right_where_the_benchmark_says_so(said):
    spec = importlib.util.spec_from_file_location("needle_clips_utils", FOLDER / "utils.py")
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    assert utils.process_results({"answer": "red"}, [said]) == {"right": float(Answer(said, 0).says("red"))}


@pytest.mark.parametrize(
    ("logged", "expected"),
    [
        (True, 1.0),
        (0.5, 0.5),
        ({"pred_answer": "A", "answer": "A", "score": 1.0, "videoID": "x"}, 1.0),  # VideoMME
        ({"parsed_pred": "B", "answer": "A", "id": "x"}, 0.0),  # LongVideoBench
        ({"pred_answer": "C", "answer": "C", "task_type": "x"}, 1.0),  # MLVU
        ({"pred_answer": "(C) it", "gt_answer": "B", "score": 0}, 0.0),  # MVBench
        ({"pred": 3, "ground_truth": 3}, 1.0),  # EgoSchema
        ({"Correctness": "yes", "score": 4, "pred": "x", "answer": "y"}, 1.0),  # ActivityNet-QA
        ({"some": "thing"}, None),
        ("text", None),
    ],
)
def test_what_tasks_log_is_a_score(logged, expected):
    assert score(logged) == expected


def log(folder: Path, scores: list[float], *, date: str = "20261124_100000", targets: str = "abcdef") -> Path:
    file = folder / "model" / f"{date}_samples_needle_clips.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {"doc_id": number, "target": target, "filtered_resps": f"said {value}", "doc_hash": "x", "right": value}
        for number, (value, target) in enumerate(zip(scores, targets, strict=False))
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in reversed(lines)))
    return folder


def test_two_runs_side_by_side(tmp_path, capsys):
    log(tmp_path / "stock", [0, 0, 0, 0, 0, 0], date="20261124_090000")  # an older run, which does not count
    stock = log(tmp_path / "stock", [1, 1, 1, 1, 1, 0])
    quick = log(tmp_path / "quick", [1, 0, 0, 0, 0, 1])
    (row,) = compare(stock, quick)
    assert (row.task, row.metric, row.questions, row.same_answers) == ("needle_clips", "right", 6, 1)
    assert (row.first, row.second, row.better, row.worse) == (5 / 6, 2 / 6, 1, 4)
    assert row.p == sign_test(1, 4) == 0.375
    main([str(stock), str(quick)])
    assert "| needle_clips | right | 6 | 1 | 0.8333 | 0.3333 | 1 | 4 | 0.38 |" in capsys.readouterr().out


def test_logs_that_do_not_belong_together(tmp_path, capsys):
    stock = log(tmp_path / "stock", [1, 0])
    with pytest.raises(LogError, match="question 1 is another one"):
        compare(stock, log(tmp_path / "other", [1, 0], targets="ax"))
    with pytest.raises(LogError, match=r"question 2 is another one .*'nothing', 'c'"):
        compare(stock, log(tmp_path / "longer", [1, 0, 0]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit):
        main([str(stock), str(tmp_path / "empty")])
    assert "--log_samples" in capsys.readouterr().err
