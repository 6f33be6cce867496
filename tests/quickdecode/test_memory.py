"""How much memory a read takes does not depend on how long the file is."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import pytest

import quickdecode
from tests.clips import ClipMaker

PROGRAM = """
import sys, quickdecode
from pathlib import Path

def megabytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

quickdecode.read_video(sys.argv[1], num_frames=2)
for path in sys.argv[1:]:
    Path("/proc/self/clear_refs").write_text("5")
    before = megabytes("VmRSS")
    video = quickdecode.read_video(path, num_frames=64, workers=2)
    print(round(video.info.duration_seconds), megabytes("VmHWM") - before)
"""


def repeated(source: Path, target: Path, times: int) -> Path:
    """The packets of a clip of twelve seconds, over and over."""
    with av.open(str(source)) as given, av.open(str(target), "w") as output:
        stream = given.streams.video[0]
        copy = output.add_stream_from_template(stream)
        packets = [packet for packet in given.demux(stream) if packet.size]
        rows = [(bytes(packet), packet.pts, packet.dts, packet.is_keyframe) for packet in packets]
        length = int(12 / Fraction(stream.time_base))
        for turn in range(times):
            for content, pts, dts, key in rows:
                packet = av.Packet(content)
                packet.pts, packet.dts = pts + turn * length, dts + turn * length
                packet.time_base, packet.is_keyframe, packet.stream = stream.time_base, key, copy
                output.mux(packet)
    return target


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc")
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_an_hour_takes_no_more_than_two_minutes(make_clip: ClipMaker, tmp_path: Path, suffix: str) -> None:
    clip = make_clip("slow.mp4", size=(48, 96), frames=120, fps=10)
    short, long = (repeated(clip, tmp_path / f"{times}.{suffix}", times) for times in (10, 300))
    command = [sys.executable, "-c", PROGRAM, str(short), str(long)]
    root = Path(quickdecode.__file__).parents[1]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout
    (short_seconds, short_peak), (long_seconds, long_peak) = (map(float, line.split()) for line in answer.splitlines())
    assert (short_seconds, long_seconds) == (120, 3600)
    assert long_peak - short_peak < 150
