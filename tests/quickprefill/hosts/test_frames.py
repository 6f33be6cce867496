"""Families whose tower sees each frame as a picture: chats through their real processors, what the stock model does."""

from __future__ import annotations

import pytest
import torch
import transformers

import quickprefill
from quickprefill import InputError, UnsupportedModelError, release
from quickprefill.budget.activations import tower_bytes
from tests import frame_families
from tests.families import ENCODES_FIRST, FAMILIES, build_inputs, random_model
from tests.frame_families import CHATS, EVEN, internvl_config
from tests.live_memory import PeakLiveBytes
from tests.quickprefill.calls import CACHE, assert_same_logits, generate
from tests.tiny import Clip, prompt

PROMPT = prompt(3, Clip((5, 0, 0)), 4)


@pytest.fixture(scope="module", params=CHATS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return FAMILIES[family].model()


@pytest.mark.spine
def test_a_chat_through_the_processor_equals_stock(family, model):
    processor = CHATS[family]()
    content = [{"type": "video"}, {"type": "text", "text": "w9 w30 w12"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    video = torch.randint(0, 256, (12, 3, 2 * EVEN, 3 * EVEN), dtype=torch.uint8, generator=torch.Generator())
    metadata = {"fps": 0.02, "total_num_frames": 12, "duration": 600, "frames_indices": list(range(12))}
    inputs = dict(processor(text=[text], videos=[[video]], video_metadata=[metadata], return_tensors="pt"))
    stock = generate(model, inputs)
    with quickprefill.patched(model, keep=1.0, group_frames=4):
        guess = quickprefill.estimate(model, inputs)
        assert_same_logits(generate(model, inputs), stock)
        assert (quickprefill.report(model).groups, guess.groups) == (3, 3)
        assert quickprefill.report(model).video_tokens == guess.video_tokens == 12 * 9


@pytest.mark.parametrize(
    "options",
    [
        {"cache_implementation": "static", "disable_compile": True, "num_beams": 3},
        {"output_hidden_states": True},
        pytest.param(
            {"prefill_chunk_size": 64},
            marks=pytest.mark.skipif(not ENCODES_FIRST, reason="this release cannot cut a prompt with pixels"),
        ),
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_takes_the_stock_path_finds_one_tensor(family, model, caplog, options):
    inputs = build_inputs(family, prompt(3, Clip((5, 0, 0)), 2, Clip((5, 0, 0)), 4))
    stock = generate(model, inputs, **options)
    with quickprefill.patched(model, keep=0.5):
        assert_same_logits(generate(model, inputs, **options), stock)
    assert "stock model, unpruned" in caplog.text


def test_the_features_that_a_call_asks_for_are_taken(family, model):
    if not hasattr(model.config, "vision_feature_layer"):
        pytest.skip("it has features of one layer only")
    if family == "internvl" and release.is_older_than("5.0"):
        pytest.skip("the stock model of 4.x looks for its tower under a name that it has not got")
    inputs = {**build_inputs(family, PROMPT), "vision_feature_layer": -3}
    stock = generate(model, inputs)
    with quickprefill.patched(model, keep=1.0, group_frames=4):
        assert_same_logits(generate(model, inputs), stock)
        del inputs["vision_feature_layer"]
        assert (generate(model, inputs).logits[0] - stock.logits[0]).abs().max() > 1e-2, "it matters"


def test_auto_takes_an_even_number_of_frames(family, model):
    inputs = build_inputs(family, PROMPT)
    with quickprefill.patched(model, keep=0.5, group_frames="auto"):
        generate(model, inputs)
        assert (quickprefill.report(model).groups, quickprefill.estimate(model, inputs).groups) == (2, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_a_wide_decoder_makes_of_a_narrow_tower_is_foreseen(family, dtype):
    config, head, _ = frame_families.FAMILIES[family]
    config = config()
    config.text_config.hidden_size = 16 * config.vision_config.hidden_size
    model = random_model(config, getattr(transformers, head), "sdpa").to(dtype)
    host, inputs = quickprefill.FAMILIES[family], build_inputs(family, prompt(3, Clip((16, 0, 0)), 4))
    (video,) = host.videos(model.model, inputs)
    with torch.no_grad(), PeakLiveBytes() as peak:
        video.encode(0, 16)
    least, most = (0.85, 1.4) if release.is_older_than("5.0") else (0.9, 1.1)  # early towers keep other states
    assert least < tower_bytes(host.geometry(model.model), video.grid) / peak.bytes < most


def test_images_alone_are_the_stock_models(family, model, caplog):
    inputs = build_inputs(family, prompt(3, Clip((1, 0, 0), image=True), 4))
    stock = generate(model, inputs)
    with quickprefill.patched(model, keep=0.5):
        assert_same_logits(generate(model, inputs), stock)
        with pytest.raises(InputError, match="no prefill yet"):
            quickprefill.report(model)
    assert "quickprefill" not in caplog.text


@pytest.mark.spine
def test_a_later_turn_with_another_video_equals_stock(family, model):
    first, second = (build_inputs(family, PROMPT, seed=seed) for seed in (1, 2))

    def two_turns():
        before = generate(model, first, max_new_tokens=2, suppress_tokens=list(range(10)))
        ids = torch.cat([before.sequences, second["input_ids"]], dim=1)
        return generate(
            model, {**second, "input_ids": ids, "attention_mask": torch.ones_like(ids), CACHE: before[CACHE]}
        )

    stock = two_turns()
    with quickprefill.patched(model, keep=1.0, group_frames=4):
        assert_same_logits(two_turns(), stock)
        assert quickprefill.report(model).groups == 2


def test_pixels_of_another_shape_are_named(family, model):
    inputs = build_inputs(family, PROMPT)
    name = "pixel_values_videos" if "llava" in family else "pixel_values"
    for pixels, given in ((inputs[name][0], r"\(\d+, "), (list(inputs[name]), "list")):
        with quickprefill.patched(model), pytest.raises(InputError, match=rf"{name} must be a tensor .*, got {given}"):
            generate(model, {**inputs, name: pixels})


def test_a_decoder_of_another_kind_is_refused(caplog):
    """Its attention has sinks, which ours knows nothing of."""
    from transformers import InternVLForConditionalGeneration

    config = internvl_config(text={"model_type": "gpt_oss", "num_local_experts": 2, "num_experts_per_tok": 2})
    model, inputs = random_model(config, InternVLForConditionalGeneration, "eager"), build_inputs("internvl", PROMPT)
    with pytest.raises(UnsupportedModelError, match="its decoder is a 'gpt_oss'"):
        quickprefill.apply(model, keep=1.0)
    stock = generate(model, inputs)
    with quickprefill.patched(InternVLForConditionalGeneration, keep=0.5):
        assert_same_logits(generate(model, inputs), stock)
    assert "its decoder is a 'gpt_oss'" in caplog.text


@pytest.mark.parametrize("kind", ["mistral", "qwen3_moe"])
def test_other_decoders(kind):
    from transformers import InternVLForConditionalGeneration

    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    config = internvl_config(
        text={"model_type": kind, **(experts if kind == "qwen3_moe" else {"sliding_window": None})}
    )
    model, inputs = random_model(config, InternVLForConditionalGeneration, "sdpa"), build_inputs("internvl", PROMPT)
    stock = generate(model, inputs)
    with quickprefill.patched(model, keep=1.0, group_frames=4):
        assert_same_logits(generate(model, inputs), stock)
