"""The models for lmms-eval. What needs lmms-eval runs where it is installed, through its own command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText

import quickprefill
from examples.integrations.lmms_eval import make_clips
from examples.integrations.lmms_eval.compare import compare
from quickprefill.integrations import lmms_eval as ours
from quickprefill.policies import Cubes

ROOT = Path(__file__).resolve().parents[3]


def test_only_models_that_lmms_eval_asks_for_are_attributes():
    with pytest.raises(AttributeError, match="no attribute 'chat_gpt4v'"):
        _ = ours.chat_gpt4v


def test_the_guide_names_every_model():
    guide = (ROOT / "examples/guides/evaluation.md").read_text()
    assert all(f"`{model}{ours.SUFFIX}`" in guide for model in ours.SERVED)


def test_the_config_is_taken_out_of_the_model_arguments():
    options = {"pretrained": "x", "keep": 0.25, "policy": '{"name": "vidcom2", "retention_ratio": 0.5}', "fps": 1}
    config = ours._config(options)
    assert (config.keep, config.compressor.retention_ratio) == (0.25, 0.5)
    assert options == {"pretrained": "x", "fps": 1}
    with pytest.raises(quickprefill.ConfigError, match="neither a name nor JSON"):
        ours._config({"policy": "{name: vidcom2}"})
    with pytest.raises(quickprefill.ConfigError, match="keep must be"):
        ours._config({"keep": "much"})


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A folder to run lmms-eval in: questions about four clips of 32 frames."""
    folder = tmp_path_factory.mktemp("lmms_eval")
    make_clips.main(["--frames", "32", "--clips", "2", "--output", str(folder / make_clips.FOLDER)])
    return folder


def evaluate(task, run, model, arguments, *options, launcher=()):
    """python -m lmms_eval, and what it wrote to the terminal."""
    pytest.importorskip("lmms_eval")
    pytest.importorskip("decord")  # imported by lmms-eval's Qwen models
    command = [sys.executable, *(launcher or ("-m",)), "lmms_eval", "--model", model, "--model_args", arguments]
    command += ["--device", "cpu", "--tasks", "needle_clips", "--log_samples", "--output_path", str(task / run)]
    command += ["--include_path", str(ROOT / "examples/integrations/lmms_eval"), *options]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(task / "hf"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=task, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


PIXELS = "device_map=cpu,min_pixels=3136,max_pixels=3136,max_num_frames=32"


@pytest.mark.parametrize(
    ("model", "family", "arguments", "options"),
    [
        ("qwen2_5_vl", "qwen2_5_vl", PIXELS, []),
        ("qwen2_5_vl", "qwen2_5_vl", PIXELS, ["--force_simple"]),
        ("qwen3_vl", "qwen3_vl", PIXELS.replace("3136", "4096"), []),
        ("llava_hf", "llava_onevision", "device_map=cpu,max_frames_num=32", ["--force_simple"]),
    ],
)
def test_answers_at_keep_1_are_the_stock_models(task, checkpoints, model, family, arguments, options):
    arguments = f"pretrained={checkpoints[family]},{arguments}"
    stock, quick = "-".join([model, *options, "stock"]), "-".join([model, *options, "quick"])
    evaluate(task, stock, model, arguments, *options)
    said = evaluate(task, quick, f"{model}_quick", f"{arguments},keep=1,group_frames=8", *options)
    assert "in 4 groups of 8 frames" in said
    (row,) = compare(task / stock, task / quick)
    assert row.same_answers == row.questions > 10


def test_an_adapter_is_loaded(task):
    checkpoint = ROOT / "examples/tiny-qwen2.5-vl"
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    quickprefill.apply(model, policy=Cubes(frames_per_cube=4, gate="learned", resampler="attention"))
    folder = quickprefill.save_adapter(model, task / "adapter")
    said = evaluate(task, "adapter", "qwen2_5_vl_quick", f"pretrained={checkpoint},{PIXELS},adapter={folder}")
    assert "64 video tokens" in said and "32 entered the decoder" in said


@pytest.mark.parametrize("options", [["--batch_size", "4"], []])
def test_batches_and_processes_answer_as_one(task, options):
    """Two processes on the CPU are more than the stock class can do."""
    arguments = f"pretrained={ROOT / 'examples/tiny-qwen2.5-vl'},{PIXELS},keep=0.5,group_frames=8,stream=True"
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m"]
    evaluate(task, "one", "qwen2_5_vl_quick", arguments)
    evaluate(task, "many", "qwen2_5_vl_quick", arguments, *options, launcher=() if options else launcher)
    (row,) = compare(task / "one", task / "many")
    assert row.same_answers == row.questions > 10


def test_tasks_give_our_models_the_prompts_of_the_stock_ones(task, tmp_path, monkeypatch):
    pytest.importorskip("lmms_eval")
    pytest.importorskip("decord")
    from lmms_eval.models import get_model
    from lmms_eval.tasks import TaskManager

    monkeypatch.chdir(task)
    assert issubclass(get_model("qwen3_vl_quick"), get_model("qwen3_vl"))
    questions = task / make_clips.FOLDER / "questions.jsonl"
    (tmp_path / "prompted.yaml").write_text(
        f"""{{task: prompted, dataset_path: json, dataset_kwargs: {{data_files: {questions}}}, test_split: train,
        output_type: generate_until, doc_to_text: question, doc_to_target: answer,
        metric_list: [{{metric: exact_match}}],
        lmms_eval_specific_kwargs: {{default: {{pre_prompt: any}}, qwen3_vl: {{pre_prompt: its own}}}}}}"""
    )
    expected = {"qwen3_vl": "its own", "qwen3_vl_quick": "its own", "qwen2_5_vl_quick": "any", "qwen2_5_vl": "any"}
    prompts = {}
    for name in expected:
        loaded = TaskManager(include_path=str(tmp_path), model_name=name).load_task_or_group(["prompted"])
        prompts[name] = loaded["prompted"].lmms_eval_specific_kwargs["pre_prompt"]
    assert prompts == expected
