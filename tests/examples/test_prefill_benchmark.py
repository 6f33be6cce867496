"""The prefill benchmark on a model so small that only its bookkeeping is seen."""

import json

from examples.benchmarks import prefill
from examples.benchmarks.prefill_report import plot, table


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
