"""Every family's tiny model: small, whole, in its real classes, prompted as the real one; old training unchanged."""

from __future__ import annotations

import functools

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from examples.needle import train
from examples.needle.checkpoint import build_model, build_processor
from examples.needle.families import FAMILIES
from examples.needle.packed_model import PackedModel
from examples.needle.packing import Batches
from examples.needle.vocabulary import ANSWERS, MAX_SECOND

CHATML = "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>What?<|im_end|>\n<|im_start|>assistant\n"
PROMPTS = {
    "qwen2_5_vl": CHATML,
    "qwen3_vl": CHATML,
    "llava_onevision": "<|im_start|>user <video>\nWhat?<|im_end|><|im_start|>assistant\n",
}
RECORDED = [7.891778945922852, 7.788204193115234, 7.784941673278809, 7.758300304412842]
"""Losses of the first steps below of the training that made examples/tiny-qwen2.5-vl, from commit 2dff441."""


@pytest.fixture(params=FAMILIES)
def saved(request, checkpoints):
    """(name, folder) of a checkpoint with random weights."""
    return request.param, checkpoints[request.param]


def test_a_checkpoint_is_small_and_loads_through_the_auto_classes(saved, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name, folder = saved
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(model) is FAMILIES[name].head
    assert model.config.model_type == name
    assert 1e6 < model.num_parameters() < 2e6
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 15 << 20
    again = AutoProcessor.from_pretrained(folder)
    assert type(again) is type(build_processor(FAMILIES[name]))
    content = [{"type": "video", "video": "x"}, {"type": "text", "text": "What?"}]
    turn = [{"role": "user", "content": content}]
    assert again.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) == PROMPTS[name]


def test_a_frame_of_any_size_is_as_many_tokens_as_in_training(saved):
    name, folder = saved
    processor, slices = AutoProcessor.from_pretrained(folder), 8 // FAMILIES[name].slice_frames
    for height, width in ((56, 56), (64, 64), (240, 240)):
        inputs = processor(
            text=[processor.video_token],
            videos=[torch.zeros(8, 3, height, width, dtype=torch.uint8)],
            video_metadata=[{"fps": 2.0, "frames_indices": list(range(8)), "total_num_frames": 8}],
            do_sample_frames=False,
            return_tensors="pt",
        )
        placeholders = int((inputs["input_ids"] == processor.video_token_id).sum())
        assert placeholders == slices * 4 + (name == "llava_onevision")


def test_every_answer_and_second_is_one_token_and_any_text_is_kept(saved):
    tokenizer = AutoProcessor.from_pretrained(saved[1]).tokenizer
    seconds = [spelling.format(second) for spelling in FAMILIES[saved[0]].seconds for second in (0, 7, MAX_SECOND)]
    assert all(len(tokenizer(word).input_ids) == 1 for word in (*ANSWERS, *seconds))
    for text in ("What colour was the lamp at second 12?", "<12.3 seconds>", "naïve 日本語\n\t"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_neighbouring_seconds_start_as_neighbours(saved):
    family = FAMILIES[saved[0]]
    tokenizer = AutoProcessor.from_pretrained(saved[1]).tokenizer
    rows = AutoModelForImageTextToText.from_pretrained(saved[1]).get_input_embeddings().weight
    for spelling in family.seconds:
        near, far, here = (rows[tokenizer(spelling.format(second)).input_ids[0]] for second in (41, 100, 40))
        assert torch.dist(here, near) < torch.dist(here, far)


def test_what_a_step_sees_depends_on_its_number_and_the_family_alone():
    plans = {name: [train.plan(family, step) for step in range(2000, 2040)] for name, family in FAMILIES.items()}
    assert plans["qwen2_5_vl"] == plans["qwen3_vl"]
    spacings = {plan.difficulty.spacing for plan in plans["qwen2_5_vl"]}
    assert len(spacings) > 3
    assert {plan.difficulty.spacing for plan in plans["llava_onevision"]} == {0.5}


def test_training_of_qwen2_5_vl_is_what_it_was():
    family = FAMILIES["qwen2_5_vl"]
    processor = build_processor(family)
    packed = PackedModel(family, build_model(family, processor.tokenizer, seed=0).train(), processor)
    arguments = train.parse_arguments(["--output", "unused"])
    optimizer = train.build_optimizer(packed, arguments)
    data = Batches(family, processor, "train", arguments.steps, functools.partial(train.plan, family))
    losses = []
    for number, step in enumerate((0, 1, 1500, 3000)):
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * (number + 1) / arguments.warmup
        loss, _, _ = packed(data[step])
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(packed.parameters(), 1.0)
        optimizer.step()
    assert losses == pytest.approx(RECORDED, rel=1e-5)  # every bit, on the machine and versions of the record
