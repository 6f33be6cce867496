"""The quickstart on other families than that of its own checkpoint."""

from __future__ import annotations

import pytest

from examples import quickstart


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("name", "size"), [("qwen3_vl", 384), ("llava_onevision", 336)])
def test_quickstart_runs_other_families(checkpoints, tmp_path, capsys, name, size):
    quickstart.write_needle_clip(tmp_path / "clip.mp4", minutes=0.1)
    options = ["--video", str(tmp_path / "clip.mp4"), "--fps", "1", "--keep", "1", "--max-new-tokens", "2"]
    ((stock, ours),) = quickstart.main(["--model", str(checkpoints[name]), *options])
    assert ours.answer == stock.answer
    assert ours.cache_bytes == stock.cache_bytes
    assert f"16 frames of {size} x {size}" in capsys.readouterr().out
