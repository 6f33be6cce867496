"""Scenes whose events lie in a few short stretches."""

from __future__ import annotations

import numpy as np
import pytest

from examples.needle.bursts import sample_bursts
from examples.needle.paint import paint
from examples.needle.scene import Difficulty, SceneError, sample_scene
from examples.needle.tasks import ask


def events(scene):
    """Frames at which something but the backdrop changes."""
    times = [time for symbol in scene.symbols for time in (symbol.start, symbol.stop)]
    times += [start for start, _ in scene.lamp if start]
    if scene.changed != "nothing":
        times.append(scene.change_second)
    frames = {int(np.ceil(time / scene.difficulty.spacing)) for time in times}
    return sorted(frame for frame in frames if 0 < frame < scene.difficulty.frames)


@pytest.mark.parametrize("bursts", [(16,), (8, 8), (8, 4, 8)])
@pytest.mark.parametrize("index", range(12))
def test_all_that_happens_lies_in_as_many_frames(bursts, index):
    scene = sample_bursts("test", index, Difficulty(frames=64), bursts)
    frames = events(scene)
    assert frames, "nothing happens"
    gaps = np.diff(frames)
    still = gaps > max(bursts)
    assert still.sum() < len(bursts)
    assert gaps[~still].sum() <= sum(bursts) * len(bursts)


def test_the_questions_and_answers_are_those_of_the_short_scene_but_for_times():
    for index in range(8):
        long, short = (
            sample_bursts("test", index, Difficulty(frames=64), (8, 8)),
            sample_scene("test", index, Difficulty()),
        )
        answers = [[(q.text, q.answer) for q in ask(scene) if q.task != "time"] for scene in (long, short)]
        assert answers[0] == answers[1]
        assert len(long.lamp) == len(short.lamp)


def test_the_backdrop_moves_all_along():
    scene = sample_bursts("test", 3, Difficulty(frames=64), (16,))
    pictures = paint(scene, np.arange(64) * 0.5).astype(int)
    assert (np.abs(np.diff(pictures, axis=0)).max(axis=(1, 2, 3)) > 0).mean() > 0.8


@pytest.mark.parametrize("bursts", [(), (0, 16), (32, 33)])
def test_stretches_that_do_not_fit(bursts):
    with pytest.raises(SceneError, match=r"bursts must be frames that add up to at most 64, got \["):
        sample_bursts("test", 0, Difficulty(frames=64), bursts)
