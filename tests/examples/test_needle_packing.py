"""A packed training batch computes what the stock processor and the stock model compute for each question alone."""

from __future__ import annotations

import pytest
import torch

from examples.needle.checkpoint import build_model, build_processor
from examples.needle.clip import frame_times
from examples.needle.families import FAMILIES
from examples.needle.packed_model import PackedModel
from examples.needle.packing import Batches, BatchPlan, Prompts, slot_mask
from examples.needle.paint import paint
from examples.needle.scene import Difficulty, sample_scene
from examples.needle.tasks import ask

DIFFICULTY = Difficulty(frames=8, spacing=0.25)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def processor(family):
    return build_processor(family)


def random_model(family, processor):
    """A model in which everything counts: as built, newlines, norms and features for later layers hardly do."""
    model = build_model(family, processor.tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def stock_inputs(processor, scene, question):
    message = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question.text}]}]
    prompt = processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    video = torch.from_numpy(paint(scene, frame_times(scene))).permute(0, 3, 1, 2)
    frames, fps = scene.difficulty.frames, 1 / scene.difficulty.spacing
    metadata = {"fps": fps, "frames_indices": list(range(frames)), "total_num_frames": frames}
    return processor(
        text=[prompt], videos=[video], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt"
    )


def test_packed_loss_is_that_of_single_questions(family, processor):
    model = random_model(family, processor)
    batch = Batches(family, processor, "train", 1, lambda number: BatchPlan(2, DIFFICULTY, h264=0.0))[0]
    with torch.no_grad():
        loss = PackedModel(family, random_model(family, processor), processor)(batch)[2]["answers"]
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    expected = []
    for clip in range(2):
        scene = sample_scene("train", clip, DIFFICULTY)
        for question in ask(scene):
            inputs = stock_inputs(processor, scene, question)
            answer = processor.tokenizer.convert_tokens_to_ids(question.answer)
            out = model.generate(
                **inputs,
                max_new_tokens=2,
                output_logits=True,
                return_dict_in_generate=True,
                prefix_allowed_tokens_fn=lambda _, ids, answer=answer, length=inputs.input_ids.shape[1]: [
                    answer if len(ids) == length else end
                ],
            )
            first, second = (step.log_softmax(-1) for step in out.logits)
            expected.append(-first[0, answer] - 0.05 * second[0, end])
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)


def test_a_question_behind_part_of_a_video_is_one_about_a_shorter_video(family, processor):
    packed = PackedModel(family, random_model(family, processor), processor)
    plan = BatchPlan(1, Difficulty(frames=16, spacing=0.25), h264=0.0, cuts=1)
    batch = Batches(family, processor, "train", 1, lambda number: plan)[0]
    cut = batch["slices"][0].min()
    assert cut < 16 // family.slice_frames
    behind = (batch["slices"][0] == cut).nonzero()[:, 0]
    slots = {name: batch[name][:, behind] for name in ("tokens", "answer_at", "task", "slices")}
    short = {name: batch[name][:, :cut] for name in ("visible", "so_far")}
    with torch.no_grad():
        part = packed({**batch, **slots})[2]["answers"]
        alone = packed({**batch, **slots, **short, "frames": batch["frames"][:, : family.slice_frames * cut]})[2][
            "answers"
        ]
    torch.testing.assert_close(part, alone, rtol=1e-4, atol=1e-5)


def test_what_slots_share_is_what_every_question_begins_with(family, processor):
    """The shorter video's prompt is the beginning of the longer one's, whatever stands between slices."""
    prompts = Prompts(family, build_model(family, processor.tokenizer), processor)
    short, long = (prompts.prompt(slices, 1.0) for slices in (3, 12))
    assert torch.equal(long.tokens[: len(short.tokens)], short.tokens)
    assert torch.equal(long.positions[:, : len(short.tokens)], short.positions)
    text = processor.tokenizer.decode(long.tokens)
    assert text.count(processor.video_token) == 12 * 4
    assert ("<11.2 seconds>" in text) == (family is FAMILIES["qwen3_vl"])


def test_a_slot_sees_its_part_of_the_video_and_no_other_slot():
    video = 4 + 2 * 4
    whole, part = slot_mask(torch.tensor([[video, video - 4]]), video)[0]
    assert whole[:, :video].all()
    assert part[:, : video - 4].all() and not part[:, video - 4 : video].any()
    assert torch.equal(whole[:, video:], torch.ones(18, 18).tril().bool())
