"""What the recorder of other people's programs reads from a run, and how it says what was equal."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from examples.integrations.clients import answers_in, execute, losses_in, table
from examples.integrations.programs import CLIENTS

RECORD = Path(__file__).resolve().parents[2] / "examples/benchmarks/results/clients"


def test_a_run_is_read_from_what_it_says_and_writes(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        "import sys\nprint('ANSWER red')\nprint('LOSSES [2.5, 1.5]')\nprint('PREFILLED 8 video tokens; more')\n"
        "print(sys.argv[1:])\nraise ValueError('its own')"
    )
    run = execute(Path(sys.executable), [str(script), "{work}", "{clip}"], tmp_path / "work", {"clip": "a.mp4"})
    assert (run["answers"], run["losses"], run["ended"]) == (["red"], [2.5, 1.5], 1)
    assert run["prefilled"] == "8 video tokens; more"
    assert run["error"].endswith("ValueError: its own")
    assert run["command"].endswith("program.py WORK a.mp4")


def test_answers_and_losses_in_files(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"response": "a"}\n')
    samples = [{"doc_id": 1, "filtered_resps": "c"}, {"doc_id": 0, "filtered_resps": "b"}]
    (tmp_path / "1_samples_x.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    (tmp_path / "logging.jsonl").write_text('{"loss": 2.0}\n{"epoch": 1}\n{"loss": 1.0}\n')
    assert answers_in([], tmp_path) == ["a", "b", "c"]
    assert losses_in([], tmp_path) == [2.0, 1.0]


def test_the_committed_table_is_that_of_the_record():
    record = json.loads(RECORD.with_suffix(".json").read_text())
    assert list(record) == list(CLIENTS)
    assert RECORD.with_suffix(".md").read_text() == table(record)
    for client in record.values():
        for run in client["runs"].values():
            assert run["stock"]["answers"] == run["patched"]["answers"]
            assert run["stock"]["losses"] == run["patched"]["losses"]
            assert bool(run["patched"]["prefilled"]) == bool(run["patched"]["answers"])
