"""The prefill benchmark on a model so small that only its bookkeeping is seen."""

import json

import pytest

import quickprefill
from examples.benchmarks import launches, prefill
from examples.benchmarks.prefill_report import plot, table
from examples.benchmarks.random_model import TOWERS, VIDEO, build_inputs, build_model, title


def test_a_run_is_measured_once_and_written(tmp_path):
    arguments = ["--shape", "tiny", "--tokens", "128", "--runs", "1", "--new-tokens", "2", "--results", str(tmp_path)]
    prefill.main([*arguments, "--ways", "stock"])
    (path,) = tmp_path.glob("*.json")
    first = json.loads(path.read_text())["runs"]
    results = prefill.main([*arguments, "--ways", "stock", "keep=0.5"])
    stock, half = results["runs"]["128"].values()
    assert stock == first["128"]["stock"]
    assert len(half) == 1
    assert half[0]["cache_bytes"] < 0.8 * stock[0]["cache_bytes"]
    assert half[0]["flops"] < stock[0]["flops"]
    assert half[0]["stages_s"].keys() == {"encode", "decode", "prune"}
    lines = path.with_suffix(".md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| ")] == ["way", "stock", "keep=0.5"]
    assert path.with_suffix(".png").exists()


@pytest.mark.parametrize("family", sorted(TOWERS.keys() & quickprefill.hosts.FAMILIES.keys() - {"qwen2_5_vl"}))
def test_every_family_is_measured(family):
    arguments = prefill.parse(["--family", family, "--shape", "tiny"])
    assert title(arguments) == f"{family}_tiny"
    model = build_model("tiny", device="cpu", family=family)
    inputs = build_inputs(128, model)
    stock, half = (prefill.measure(model, inputs, name, None) for name in ("stock", "keep=0.5"))
    assert 0 < half["vision_flops"] < half["flops"] < stock["flops"]
    assert half["cache_bytes"] < stock["cache_bytes"]


@pytest.mark.parametrize("family", TOWERS)
def test_random_prompts_have_as_many_video_tokens_as_asked_for(family):
    model = build_model("tiny", device="cpu", family=family)
    inputs = build_inputs(128, model)
    newlines = family == "llava_onevision"
    assert int((inputs["input_ids"] == VIDEO).sum()) == 128 + newlines
    assert len(model.generate(**inputs, max_new_tokens=1, do_sample=False)[0]) == inputs["input_ids"].shape[1] + 1


def test_a_family_that_quickprefill_does_not_serve_is_refused(capsys, monkeypatch):
    others = {name: host for name, host in prefill.FAMILIES.items() if name != "qwen3_vl"}
    monkeypatch.setattr(prefill, "FAMILIES", others)  # not delitem(): it would come back as the last one
    with pytest.raises(SystemExit):
        prefill.parse(["--family", "qwen3_vl"])
    error = capsys.readouterr().err
    assert "--family qwen3_vl: quickprefill serves" in error and "qwen2_5_vl" in error


def test_a_way_that_does_not_fit_is_said_so(tmp_path):
    run = dict.fromkeys(("first_token_s", "next_token_s", "peak_bytes", "cache_bytes"), 1.0)
    run |= {"flops": 2.0, "vision_flops": 1.0, "matmul_rate": 4.0, "stages_s": {"decode": 0.5, "prune": 0.1}}
    environment = dict.fromkeys(
        ("family", "shape", "group_frames", "machine", "torch", "transformers", "commit", "command"), "that"
    )
    results = {"environment": environment, "runs": {"64": {"stock": [{"out_of_memory": True}], "keep=0.5": [run]}}}
    stock, half = table(results).splitlines()[-2:]
    assert stock.startswith("| stock | 1 | out of memory |")
    assert half.startswith("| keep=0.5 | 1 | 1.00 |  | 0.00 | 0.50 | 50% |")
    assert stock.count("|") == half.count("|")
    plot(results, tmp_path / "plot.png")


def test_launches_do_not_grow_with_what_is_dropped():
    """Two layers: a score costs some calls in each, a question some more, a compressor some once a group."""
    model = build_model("tiny", device="meta")
    rows = launches.table(model, few=2)
    plain, scored = rows["keep=1, default groups"], rows["keep=0.5, default groups"]
    assert 0 < scored["per_group"] - plain["per_group"] <= 2 * 10
    assert rows["keep=0.5, query_attention"]["per_group"] - rows["keep=0.5"]["per_group"] <= 2 * 12
    compressed = rows["keep=0.25, vidcom2 in groups, default groups"]
    assert compressed["entering_tokens"] == plain["entering_tokens"]
    assert compressed["per_group"] - plain["per_group"] <= 150
    assert quickprefill.estimate(model, launches.build_prompt(56)).groups == 4
