"""The needle suite's clips and questions: deterministic, apart from each other, true to what is shown."""

from __future__ import annotations

import dataclasses

import av
import numpy as np
import pytest

from examples.needle.clip import ClipError, frame_times, through_h264, write_clip
from examples.needle.paint import paint
from examples.needle.scene import SPLITS, Difficulty, SceneError, sample_scene
from examples.needle.tasks import CHOICES, TASKS, ask
from examples.needle.truth import NUM_SO_FAR, NUM_VISIBLE, so_far, visible
from examples.needle.vocabulary import COLOURS


def picture_of(split, index, **difficulty):
    scene = sample_scene(split, index, Difficulty(**difficulty))
    return scene, paint(scene, frame_times(scene))


def test_a_scene_depends_on_its_seed_alone():
    scene, pictures = picture_of("train", 5, frames=16)
    again, same = picture_of("train", 5, frames=16)
    assert scene == again and ask(scene) == ask(again)
    np.testing.assert_array_equal(pictures, same)


def test_splits_share_no_scene():
    scenes = [dataclasses.replace(picture_of(split, n, frames=16)[0], seed=()) for split in SPLITS for n in range(40)]
    assert len(set(scenes)) == len(scenes)


@pytest.mark.parametrize("frames", [8, 16, 64, 1024])
def test_every_task_is_asked_and_answered_from_its_choices(frames):
    for index in range(30):
        asked = set()
        for lone in (True, False):
            questions = ask(sample_scene("test", index, Difficulty(frames=frames, lone=lone)))
            assert all(question.answer in CHOICES[question.task] for question in questions)
            asked |= {question.task for question in questions}
        assert asked == set(TASKS)


def test_answers_are_spread_evenly():
    scenes = [sample_scene("test", n, Difficulty(frames=64, lone=n % 2 == 0)) for n in range(800)]
    questions = [question for scene in scenes for question in ask(scene)]
    for task in set(TASKS) - {"shape"}:  # whose answers are of two kinds
        answers = [question.answer for question in questions if question.task == task]
        shares = [answers.count(choice) / len(answers) * len(CHOICES[task]) for choice in CHOICES[task]]
        assert min(shares) > 0.6 and max(shares) < 1.5, (task, shares)


def test_a_lone_symbol_is_the_same_scene_without_the_other():
    both, one = (sample_scene("test", 3, Difficulty(frames=32, lone=lone)) for lone in (False, True))
    (absent,) = [shape for shape in ("square", "ring") if not one.appearances(shape)]
    assert one.symbols == tuple(symbol for symbol in both.symbols if symbol.shape != absent)
    assert {question.task for question in ask(one)} == set(TASKS) - {"order"}


@pytest.mark.parametrize("least", [2, 5])
def test_a_needle_is_seen_for_as_many_frames_as_asked(least):
    for index in range(20):
        scene = sample_scene("test", index, Difficulty(frames=32, needle_frames=(least, least), distractors=0))
        times = frame_times(scene)
        for symbol in scene.symbols:
            assert ((times >= symbol.start) & (times < symbol.stop)).sum() == least


def test_a_cut_scene_is_what_was_seen_by_then():
    for index in range(40):
        scene = sample_scene("test", index, Difficulty(frames=32))
        for cut in range(8, 32, 2):
            if not scene.is_clear_at(cut):
                continue
            begun = {question.text: question.answer for question in ask(scene.cut(cut), times=99)}
            crosses = [symbol.start for symbol in scene.appearances("cross")]
            shown = sum(start < frame_times(scene)[cut - 1] for start in crosses)
            assert begun.get("How many crosses appeared?", "0") == str(shown)
            for shape in ("square", "ring"):
                symbol = scene.appearances(shape)[0]
                seen = symbol.start < frame_times(scene)[cut - 1]
                assert (begun.get(f"What colour was the {shape}?") == symbol.colour) == seen
            late = scene.change_second > frame_times(scene)[cut - 1]
            assert begun["What changed between beginning and end?"] == ("nothing" if late else scene.changed)


def test_dense_targets_say_what_is_painted():
    for index in range(20):
        scene, pictures = picture_of("test", index, frames=16)
        shows, knows = visible(scene), so_far(scene)
        assert shows.shape == (8, NUM_VISIBLE) and knows.shape == (8, NUM_SO_FAR)
        colours = np.array(list(COLOURS.values()))
        lamps = [[tuple(pictures[frame, 6, 7]) == tuple(colour) for colour in colours] for frame in range(16)]
        np.testing.assert_array_equal(shows[:, :8], np.array(lamps).reshape(8, 2, 8).mean(1))
        assert knows[-1, :2].tolist() == [1.0, 1.0]
        assert knows[-1, 2:4].tolist() == [float(scene.first == shape) for shape in ("square", "ring")]
        assert knows[-1, 4:8].sum() == len(scene.appearances("cross"))
        assert (np.diff(knows, axis=0) >= 0).all()


def test_needle_position_is_a_parameter():
    for position in (0.0, 0.5, 1.0):
        scene = sample_scene("test", 1, Difficulty(frames=256, needle_position=position))
        for shape in ("square", "ring"):
            assert abs(scene.appearances(shape)[0].start / scene.difficulty.seconds - position) < 0.05


def test_the_lamp_shows_what_the_answer_says():
    for index in range(10):
        scene, pictures = picture_of("test", index, frames=32)
        for question in ask(scene):
            if question.task == "time":
                second = int(question.text.rstrip("?").split()[-1])
                shown = pictures[round(second / scene.difficulty.spacing), 6, 7]
                assert tuple(shown.tolist()) == COLOURS[question.answer]


def test_h264_keeps_the_frames_apart_and_alike():
    scene, pictures = picture_of("test", 0, frames=16)
    decoded = through_h264(scene)
    assert decoded.shape == pictures.shape
    own = np.abs(decoded.astype(int) - pictures).mean()
    assert own < 12


def test_an_hour_long_clip_keeps_its_times(tmp_path):
    scene = sample_scene("test", 0, Difficulty(frames=8, spacing=450.0))
    path = write_clip(scene, tmp_path / "hour.mp4", oversample=4)
    with av.open(str(path)) as container:
        assert container.duration / av.time_base == pytest.approx(3600, rel=0.05)
        assert container.streams.video[0].codec_context.name == "h264"


def test_a_missing_encoder_fails_and_leaves_nothing(tmp_path):
    scene = sample_scene("test", 0, Difficulty(frames=8))
    with pytest.raises(ClipError, match="no encoder 'libnothing'.*install a PyAV wheel"):
        write_clip(scene, tmp_path / "clip.mp4", codec="libnothing")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"frames": 7}, "frames must be even and at least 8, got 7"),
        ({"spacing": 0.0}, "spacing must be a number of seconds above 0"),
        ({"needle_frames": (1, 3)}, "2 <= least <= most"),
        ({"frames": 8, "needle_frames": (5, 5)}, "at most half"),
        ({"distractors": 9}, "distractors must be 0 to 3, got 9"),
        ({"needle_position": 1.5}, "needle_position must be None or from 0 to 1"),
    ],
)
def test_impossible_difficulties_fail(options, match):
    with pytest.raises(SceneError, match=match):
        Difficulty(**options)


def test_unknown_split_fails():
    with pytest.raises(SceneError, match="split must be one of"):
        sample_scene("holdout", 0, Difficulty())
