"""The quality benchmark: its statistics, its files, and what it says about results that are not its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

import quickdecode
import quickprefill
from examples.benchmarks import quality
from examples.benchmarks.quality_report import plot, summarise, table
from examples.needle.answering import Answer, Answerer, CheckpointError
from examples.needle.clip import write_clip
from examples.needle.families import FAMILIES
from examples.needle.scene import Difficulty, sample_scene
from examples.needle.statistics import interval, mcnemar, relative_interval
from examples.needle.tasks import ask

SMALL = [
    "--frames",
    "8",
    "--clips",
    "2",
    "--keeps",
    "1",
    "0.5",
    "--policies",
    "key_norm",
    "prunevid",
    "uniform",
    "vidcom2",
]


@pytest.fixture
def checkpoint(checkpoints):
    return checkpoints["qwen2_5_vl"]


def options(checkpoint: Path, folder: Path) -> list[str]:
    return [*SMALL, "--model", str(checkpoint), "--work", str(folder / "work"), "--output", str(folder / "out")]


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() & quickprefill.FAMILIES.keys()))
def test_a_run_reads_real_files_and_writes_its_results(checkpoints, name, tmp_path):
    pytest.importorskip("matplotlib")
    summary = quality.main(options(checkpoints[name], tmp_path))
    same, asked = summary["identical_at_keep_1"]
    assert same == asked > 0
    ways = summary["lengths"][0]["ways"]
    assert list(ways) == ["full", "blind", "patched@1", "key_norm@0.5", "prunevid@0.5", "uniform@0.5", "vidcom2@0.5"]
    assert ways["uniform@0.5"]["mean_cache_bytes"] < ways["full"]["mean_cache_bytes"]
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(json.dumps(summary))
    assert "| key_norm@0.5 |" in (tmp_path / "out.md").read_text()
    assert (tmp_path / "out.png").stat().st_size > 0


def test_an_interrupted_run_goes_on(checkpoint, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    answer_clip, asked = quality.answer_clip, []

    def breaks_at_second(answerer, arguments, frames, clip):
        asked.append(clip)
        if asked == [0, 1]:
            raise KeyboardInterrupt
        return answer_clip(answerer, arguments, frames, clip)

    monkeypatch.setattr(quality, "answer_clip", breaks_at_second)
    with pytest.raises(KeyboardInterrupt):
        quality.main(options(checkpoint, tmp_path))
    assert [path.name for path in (tmp_path / "work" / "answers").iterdir()] == ["00008-0000.json"]
    assert not (tmp_path / "out.json").exists()
    quality.main(options(checkpoint, tmp_path))
    assert asked == [0, 1, 1]


def test_results_of_another_version_are_refused(checkpoint, tmp_path):
    work = tmp_path / "work"
    settings = quality.run_settings(quality.parse_arguments(options(checkpoint, tmp_path)))
    quality.write_json(work / "settings.json", {**settings, "format": 0})
    with pytest.raises(quality.ResultError, match="answers of another run .format: 0 there, 2 now.*--work"):
        quality.main(options(checkpoint, tmp_path))


def test_a_checkpoint_without_video_tokens_is_refused(tmp_path, checkpoint, monkeypatch):
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    monkeypatch.setattr(
        "examples.needle.answering.AutoModelForImageTextToText.from_pretrained",
        lambda _, dtype: LlamaForCausalLM(config),
    )
    with pytest.raises(CheckpointError, match="model_type 'llama'.*no video token.*--model"):
        Answerer(str(checkpoint), frame_size=56)


@pytest.mark.parametrize(("name", "size"), [("qwen2_5_vl", 56), ("qwen3_vl", 64), ("llava_onevision", 56)])
def test_each_family_is_asked_with_as_many_tokens_as_it_was_trained_on(checkpoints, name, size, tmp_path):
    scene = sample_scene("test", 0, Difficulty(frames=8))
    path = write_clip(scene, tmp_path / "clip.mp4", oversample=2)
    answerer = Answerer(str(checkpoints[name]), frame_size=56)
    quickdecode.register()
    try:
        video = answerer.watch(path, 8)
    finally:
        quickdecode.unregister()
    inputs = answerer.prepare(video, ask(scene)[0])
    assert inputs["pixel_values_videos"].numel() == 8 * 3 * size**2
    places = int((inputs["input_ids"] == answerer.model.config.video_token_id).sum())
    assert places == 8 // FAMILIES[name].slice_frames * 4 + (name == "llava_onevision")
    assert answerer.answer(inputs).cache_bytes > 0
    noise = answerer.prepare(video.noise(0), ask(scene)[0])
    assert noise["input_ids"].equal(inputs["input_ids"])
    assert not noise["pixel_values_videos"].equal(inputs["pixel_values_videos"])


def test_a_frame_size_that_the_processor_will_not_keep_is_refused(checkpoints):
    with pytest.raises(CheckpointError, match="every frame to 56 x 56 pixels, not to 224 x 224; pass --frame-size 56"):
        Answerer(str(checkpoints["llava_onevision"]), frame_size=224)


def test_one_clip_count_or_one_for_each_length(capsys):
    assert quality.parse_arguments(["--frames", "8", "16", "--clips", "3"]).clips == [3, 3]
    with pytest.raises(SystemExit):
        quality.parse_arguments(["--frames", "8", "16", "--clips", "3", "3", "3"])
    assert "one for each of the 2 lengths" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "right"), [("red", True), ("Red.", True), ("", False), ("reddish", False)])
def test_the_first_word_is_the_answer(text, right):
    assert Answer(text, 0).says("red") is right


def test_mcnemar_by_hand():
    ones, zeros = np.ones(6), np.zeros(6)
    assert mcnemar(ones, ones) == 1.0
    assert mcnemar(ones, zeros) == pytest.approx(2 / 64)
    mixed = np.array([1, 1, 1, 0, 0, 0])
    assert mcnemar(mixed, 1 - mixed) == 1.0


def test_intervals_hold_the_share_and_draw_whole_clips():
    right = np.array([1, 1, 0, 0] * 10, float)
    clips = np.repeat(np.arange(20), 2)
    low, high = interval(right, clips)
    assert low < 0.5 < high
    assert interval(np.ones(8), np.arange(8)) == (1.0, 1.0)
    assert relative_interval(right, right, clips) == (1.0, 1.0)


def test_the_report_counts_what_was_answered(tmp_path):
    def way(*right):
        return {"texts": ["x"] * 2, "right": list(right), "bytes": [1024, 1024]}

    questions = [{"task": "needle", "answer": "red"}, {"task": "order", "answer": "ring"}]
    ways = {"full": way(True, True), "blind": way(False, False), "patched@1": way(True, True)}
    ways |= {"key_norm@0.5": way(True, False), "uniform@0.5": way(False, False)}
    records = [{"frames": 64, "clip": clip, "questions": questions, "ways": ways} for clip in range(3)]
    summary = {"settings": {"model": "m"}, **summarise(records)}
    found = summary["lengths"][0]["ways"]["key_norm@0.5"]
    assert found["accuracy"] == found["relative"] == 0.5
    assert found["tasks"] == {"needle": 1.0, "order": 0.0}
    assert found["p_against_full"] == found["p_against_uniform"] == 0.25
    assert "| key_norm@0.5 | 100% |  |  | 0% |" in table(summary)
    pytest.importorskip("matplotlib")
    plot(summary, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()
