"""What is alive at once while a streamed video goes by in groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from quickdecode import stream
from quickdecode.decode import ring
from tests.live_memory import PeakLiveBytes

LENGTHS = 60, 240
"""Frames of the clips that are compared."""


def check_it_does_not_grow(monkeypatch: pytest.MonkeyPatch, streamed: Callable[[int], tuple[Any, int]]) -> None:
    """Tensors and pictures, counted in bytes. `streamed` gives the pixels of a clip of that many frames, and how many
    of their rows are a group; where pixels have a batch of one, those of its video."""
    rings, peaks, wholes = [], [], []

    class NotedRing(ring.Ring):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            rings.append(self.nbytes)

    monkeypatch.setattr(stream, "Ring", NotedRing)
    for length in LENGTHS:
        pixels, part = streamed(length)
        video = pixels[0] if pixels.ndim == 5 else pixels
        with PeakLiveBytes() as peak:
            for start in range(0, len(video), part):
                video.rows(start, min(start + part, len(video)))
        peaks.append(peak.bytes + rings[-1])
        wholes.append(pixels.nbytes)
        assert pixels.known() is None, "it was there as a whole"
    assert len(rings) == 2, "one pass each"
    assert wholes[1] == 4 * wholes[0]
    assert peaks[1] <= peaks[0] < wholes[1]
