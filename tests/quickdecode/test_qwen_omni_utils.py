"""qwen-omni-utils carries a copy of qwen-vl-utils' reader table; run where it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

import quickdecode
from tests.clips import read_number

omni = pytest.importorskip("qwen_omni_utils")


def test_omni_reads_with_quickdecode(clip: Path) -> None:
    before = omni.fetch_video
    quickdecode.register("qwen_omni_utils")
    try:
        assert omni.fetch_video is not before
        talk = [{"role": "user", "content": [{"type": "video", "video": str(clip), "nframes": 4}]}]
        _, videos = omni.v2_5.process_vision_info(talk)
        assert [read_number(frame) for frame in videos[0]] == [0, 20, 39, 59]
        talk[0]["content"][0]["video"] = "/nonexistent/talk.mp4"
        with pytest.raises(quickdecode.SourceError, match="no such file"):
            omni.v2_5.process_vision_info(talk)
    finally:
        quickdecode.unregister()
    assert omni.fetch_video is before
