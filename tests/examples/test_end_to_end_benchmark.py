"""The end-to-end benchmark on a model so small that only its bookkeeping is seen."""

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
