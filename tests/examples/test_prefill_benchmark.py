"""The prefill benchmark on a model so small that only its bookkeeping is seen."""

import json

import quickprefill
from examples.benchmarks import launches, prefill
from examples.benchmarks.prefill_report import plot, table
from examples.benchmarks.random_model import build_model


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


def test_a_way_that_does_not_fit_is_said_so(tmp_path):
    run = dict.fromkeys(("first_token_s", "next_token_s", "peak_bytes", "cache_bytes"), 1.0)
    run |= {"flops": 2.0, "vision_flops": 1.0, "matmul_rate": 4.0, "stages_s": {"decode": 0.5, "prune": 0.1}}
    environment = dict.fromkeys(
        ("shape", "group_frames", "machine", "torch", "transformers", "commit", "command"), "that"
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
