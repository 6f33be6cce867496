"""The end-to-end benchmark on a model so small that only its bookkeeping is seen."""

import pytest

import quickprefill
from examples.benchmarks import end_to_end


def test_ways_are_timed_and_agree(make_clip, tmp_path):
    clip = make_clip("short.mp4", frames=48)
    results = end_to_end.main(
        ["--video", str(clip), "--shape", "tiny", "--device", "cpu", "--fps", "8", "--runs", "1"]
        + ["--ways", "read", "stream", "drain", "--results", str(tmp_path)]
    )
    runs = {way: run for way, (run,) in results["runs"].items()}
    assert runs["stream"]["answer"] == runs["read"]["answer"] != []
    assert runs["drain"]["answer"] == []
    assert {run["frames"] for run in runs.values()} == {12}
    assert {run["reader"] for run in runs.values()} == {"quickdecode"}
    assert all(runs["stream"]["spans"][stage] for stage in ("decode", "preprocess", "vision tower", "decoder"))
    (page,) = tmp_path.glob("*.md")
    rows = [line.split("|")[1].strip() for line in page.read_text().splitlines() if line.startswith("| ")]
    assert rows == ["way", "read", "stream", "drain"]
    assert page.with_suffix(".png").exists()


@pytest.mark.parametrize(
    ("family", "size", "tokens"), [("qwen3_vl", 64, 12 // 2 * 4), ("llava_onevision", 56, 12 * 4 + 1)]
)
def test_other_families_are_read_and_answered(make_clip, tmp_path, family, size, tokens):
    way = "read" if family in quickprefill.hosts.FAMILIES else "stock"
    results = end_to_end.main(
        ["--video", str(make_clip("short.mp4", frames=48)), "--family", family, "--shape", "tiny", "--device", "cpu"]
        + ["--size", str(size), str(size), "--fps", "8", "--runs", "1", "--results", str(tmp_path)]
        + ["--ways", way]
    )
    (run,) = results["runs"][way]
    assert run["frames"] == 12 and len(run["answer"]) == 1
    assert tokens < run["tokens"] < tokens + 200
    assert all(run["spans"][stage] for stage in ("decode", "preprocess", "vision tower", "decoder"))
    (page,) = tmp_path.glob(f"end_to_end_{family}_tiny_cpu_*.md")
    assert page.read_text().startswith(f"# File to first token, {family}, tiny shape")


def test_a_shape_that_a_family_does_not_have_is_refused(capsys):
    with pytest.raises(SystemExit):
        end_to_end.parse(["--family", "qwen3_vl", "--shape", "7b"])
    assert "--shape of qwen3_vl is one of tiny, small" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        end_to_end.parse(["--family", "llava_onevision", "--size", "56", "112"])
    assert "--size of llava_onevision is a square" in capsys.readouterr().err
