"""Two runs of lmms-eval side by side, question by question, from what --log_samples wrote.

    python -m examples.integrations.lmms_eval.compare logs/stock logs/quick

For each task and metric: how many answers are the same, both scores, how many questions each run did better at, and the
exact two-sided sign test of these (McNemar's, where a question is either right or wrong).
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.needle.statistics import sign_test

_NOT_METRICS = {
    *("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "token_counts", "doc_hash"),
    *("input", "input_media", "submission"),
}
_ANSWER_AND_TRUTH = [("pred_answer", "answer"), ("parsed_pred", "answer"), ("pred", "ground_truth")]
"""Keys under which tasks that log no score log what it is made of (MLVU, LongVideoBench, EgoSchema)."""


class LogError(ValueError):
    """Logs that are not there, or not of the same questions."""


@dataclass(frozen=True)
class Row:
    """One metric of one task in two runs."""

    task: str
    metric: str
    questions: int
    same_answers: int
    first: float
    second: float
    better: int
    """Questions at which the second run scored higher."""
    worse: int

    @property
    def p(self) -> float:
        """How likely so uneven a split is if the runs are equally good."""
        return sign_test(self.better, self.worse)


def compare(first: Path, second: Path) -> list[Row]:
    """A row for each metric of each task that both runs have. Raises LogError if there is none, or questions differ."""
    logs = [_logs(run) for run in (first, second)]
    tasks = sorted(logs[0].keys() & logs[1].keys())
    if not tasks:
        raise LogError(f"no task is in both: {first} has {sorted(logs[0])}, {second} has {sorted(logs[1])}")
    return [row for task in tasks for row in _rows(task, *(_samples(log[task]) for log in logs))]


def score(value: Any) -> float | None:
    """What a task logged for one question, as a number; None if it is none."""
    if isinstance(value, bool | int | float):
        return float(value)
    if not isinstance(value, dict):
        return None
    if "Correctness" in value:  # ActivityNet-QA, whose "score" is a judge's from 0 to 5
        return float(str(value["Correctness"]).lower() == "yes")
    if isinstance(value.get("score"), bool | int | float):
        return float(value["score"])
    for answer, truth in _ANSWER_AND_TRUTH:
        if answer in value and truth in value:
            return float(value[answer] == value[truth])
    return None


def _logs(run: Path) -> dict[str, Path]:
    """Task -> its newest log in a folder, or the file itself."""
    files = [run] if run.is_file() else sorted(run.rglob("*_samples_*.jsonl"), key=lambda file: file.name)
    if not files:
        raise LogError(f"{run} holds no *_samples_*.jsonl; give lmms-eval --log_samples and --output_path {run}")
    return {re.sub(r"^.*?_samples_", "", file.stem): file for file in files}


def _samples(file: Path) -> dict[int, dict[str, Any]]:
    lines = file.read_text().splitlines()
    return {sample["doc_id"]: sample for sample in map(json.loads, lines)}


def _rows(task: str, first: dict[int, Any], second: dict[int, Any]) -> list[Row]:
    for number in sorted(first.keys() | second.keys()):
        asked = [(run.get(number) or {}).get("target", "nothing") for run in (first, second)]
        if asked[0] != asked[1]:
            raise LogError(f"{task}: question {number} is another one in the second run (targets: {asked})")
    same = sum(first[number]["filtered_resps"] == second[number]["filtered_resps"] for number in first)
    rows = []
    for metric in sorted(set().union(*first.values()) - _NOT_METRICS):
        pairs = [(score(first[number].get(metric)), score(second[number].get(metric))) for number in first]
        scored = [(one, other) for one, other in pairs if one is not None and other is not None]
        if scored:
            ones, others = zip(*scored, strict=True)
            better, worse = (sum(a < b for a, b in scored), sum(a > b for a, b in scored))
            means = sum(ones) / len(scored), sum(others) / len(scored)
            rows.append(Row(task, metric, len(scored), same, *means, better, worse))
    return rows


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| task | metric | questions | same answers | first | second | better | worse | p |", "|---" * 9 + "|"]
    for row in rows:
        cells = [row.task, row.metric, row.questions, row.same_answers, f"{row.first:.4f}", f"{row.second:.4f}"]
        lines.append("| " + " | ".join(map(str, [*cells, row.better, row.worse, f"{row.p:.2g}"])) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="--output_path of one run, or one of its *_samples_*.jsonl")
    parser.add_argument("second", type=Path, help="the same of the other")
    arguments = parser.parse_args(argv)
    try:
        print(table(compare(arguments.first, arguments.second)))
    except LogError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
