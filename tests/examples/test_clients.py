"""What the recorder of other people's programs reads from a run, and how it says what was equal."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from transformers import Qwen2_5_VLForConditionalGeneration

import quickdecode
import quickprefill
from examples.integrations.clients import answers_in, execute, losses_in, table
from examples.integrations.programs import CLIENTS
from examples.integrations.traces import traces

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


def test_what_follows_the_removal_is_what_counts(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        "print('PREFILLED 8 video tokens')\nprint('ANSWER red')\nprint('REMOVED', ['a.b'])\nprint('ANSWER blue')"
    )
    run = execute(Path(sys.executable), [str(script)], tmp_path / "work", {})
    assert (run["answers"], run["left"], run["prefilled"]) == (["blue"], ["a.b"], "8 video tokens")


def test_what_children_of_torchrun_said(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        "import pathlib, sys\nfor rank in '10':\n log = pathlib.Path(sys.argv[1], rank, 'stdout.log')\n"
        " log.parent.mkdir()\n log.write_text(f'ANSWER of {rank}')\n print(f'[default{rank}]:ANSWER of {rank}')"
    )
    assert execute(Path(sys.executable), [str(script), "{work}"], tmp_path / "work", {})["answers"] == ["of 0", "of 1"]


def test_traces_are_found_and_gone():
    before = set(traces())
    quickprefill.apply(Qwen2_5_VLForConditionalGeneration)
    quickdecode.register()
    found = set(traces()) - before
    quickprefill.remove(Qwen2_5_VLForConditionalGeneration)
    quickdecode.unregister()
    place = "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl.Qwen2_5_VLForConditionalGeneration"
    assert {f"{place}.forward", f"{place}._quickprefill"} < found
    assert any(name.startswith("qwen_vl_utils.vision_process.") for name in found)
    assert set(traces()) == before


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
            for way in run.keys() & {"streamed", "removed"}:
                assert (run[way]["answers"], run[way]["losses"]) == (run["stock"]["answers"], run["stock"]["losses"])
            assert run.get("removed", {"left": []})["left"] == []
