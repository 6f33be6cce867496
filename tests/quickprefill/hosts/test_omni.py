"""Qwen2.5-Omni's thinker: audio among the text, between a video's slices too, and inside the model that speaks."""

import pytest
import torch
from transformers import processing_utils

import quickprefill
from quickprefill import versions
from quickprefill.hosts.qwen2_5_omni import Qwen2_5_Omni
from tests.families import AUDIO, FAMILIES, build_inputs, skip_without
from tests.processors import clip, omni
from tests.tiny import VIDEO, Clip, prompt

skip_without("qwen2_5_omni_thinker")


@pytest.fixture(scope="module")
def model():
    return FAMILIES["qwen2_5_omni_thinker"].model()


def test_generate_makes_the_last_columns_logits_only(model):
    """The stock head makes those of the whole prompt, for generate() to look at the last."""
    inputs = build_inputs("qwen2_5_omni_thinker", prompt(3, Clip((4, 4, 8)), 4))
    seen = []
    hook = model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    with quickprefill.patched(model, keep=1.0):
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
        model.generate(**inputs, max_new_tokens=2, do_sample=False, prompt_lookup_num_tokens=2)
        with torch.no_grad():
            model(**inputs)
    hook.remove()
    whole = inputs["input_ids"].shape[1]
    assert seen[:2] == [1, 1]
    assert seen[2] >= whole and seen[-1] == whole


# As chat_template.json of Qwen/Qwen2.5-Omni-7B lays a user's turn out, roles left away.
VIDEO_PART = "<|vision_bos|><|VIDEO|><|vision_eos|>"
AUDIO_PART = "<|audio_bos|><|AUDIO|><|audio_eos|>"
IMAGE_PART = "<|vision_bos|><|IMAGE|><|vision_eos|>"


OF_VIDEOS = {"load_audio_from_video": True, "audio_from_video_indices": [0, 1, None]}
"""The first two of three sounds are those of videos."""
if not hasattr(processing_utils, "OmniModalProcessorMixin"):  # up to 5.22
    OF_VIDEOS = {"use_audio_in_video": True}


@pytest.fixture(scope="module")
def processor():
    size = {"shortest_edge": 16 * 16, "longest_edge": 16 * 24}
    return omni(patch_size=4, size=size)


def sound(seconds, seed=0):
    return torch.randn(int(16000 * seconds), generator=torch.Generator().manual_seed(seed)).numpy()


@pytest.fixture(scope="module")
def with_audio(processor):
    """A video of five seconds with its audio, an image, a second video and a spoken question."""
    text = f"watch {VIDEO_PART}then {IMAGE_PART}and {VIDEO_PART}hear {AUDIO_PART}what?"
    videos, images = [clip(10), clip(4, seed=1)], [clip(1, seed=2)[0]]
    inputs = processor(
        text=[text],
        images=images,
        videos=videos,
        size={"shortest_edge": 16 * 16, "longest_edge": 16 * 24 * 64},
        audio=[sound(4.5), sound(1.5, seed=1), sound(2, seed=2)],
        **OF_VIDEOS,
        return_tensors="pt",
    )
    return {**inputs, "use_audio_in_video": True}


def first_logits(model, inputs, **config):
    with torch.no_grad(), quickprefill.patched(model, keep=1.0, group_frames=4, **config):
        return model(**inputs).logits[:, -1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_videos_audio_stands_between_its_slices(model, with_audio):
    ids = with_audio["input_ids"][0]
    slices = with_audio["video_grid_thw"][:, 0].tolist()
    assert slices == [5, 2]
    runs = torch.unique_consecutive(ids)
    assert int((runs == VIDEO).sum()) == 4, "two seconds at a time, three of the first video and one of the second"
    assert int((ids == AUDIO).sum()) > 150
    stock = model.generate(**with_audio, max_new_tokens=4, do_sample=False)
    for group_frames in (2, 6, None):
        with quickprefill.patched(model, keep=1.0, group_frames=group_frames):
            assert torch.equal(model.generate(**with_audio, max_new_tokens=4, do_sample=False), stock)
    with torch.no_grad():
        torch.testing.assert_close(
            first_logits(model, with_audio), model(**with_audio).logits[:, -1], atol=1e-4, rtol=1e-4
        )


def test_a_fault_shows(model, with_audio, monkeypatch):
    with torch.no_grad():
        stock = model(**with_audio).logits[:, -1]
    torch.testing.assert_close(first_logits(model, with_audio), stock, atol=1e-4, rtol=1e-4)
    right, length = Qwen2_5_Omni.features, with_audio["input_ids"].shape[1]
    for fault in (torch.zeros_like, lambda found: found.flip(0)):
        monkeypatch.setattr(Qwen2_5_Omni, "features", lambda *args, fault=fault: fault(right(*args)))
        assert (first_logits(model, with_audio) - stock).abs().max() > 1e-2
    monkeypatch.undo()
    monkeypatch.setattr(Qwen2_5_Omni, "position_ids", lambda *_: torch.arange(length).expand(3, 1, -1))
    assert (first_logits(model, with_audio) - stock).abs().max() > 1e-2, "another family's positions"


def test_audio_without_its_features_is_named(model, with_audio):
    heard = {name: value for name, value in with_audio.items() if name != "input_features"}
    with quickprefill.patched(model), pytest.raises(quickprefill.InputError, match="audio placeholder tokens, but the"):
        model.generate(**heard, max_new_tokens=2)


@pytest.mark.parametrize("policy", ["query_attention", "vidcom2", "uniform"])
def test_audio_is_never_pruned(model, with_audio, policy):
    video = int((with_audio["input_ids"] == VIDEO).sum())
    whole = with_audio["input_ids"].shape[1]
    with torch.no_grad(), quickprefill.patched(model, keep=0.25, policy=policy, group_frames=4):
        output = model(**with_audio)
        report = quickprefill.report(model)
        assert torch.isfinite(output.logits[:, -1]).all()
    assert report.video_tokens == video
    stored = versions.cache_of(output).layers[-1].keys.shape[-2]
    assert stored == whole - video + report.stored_tokens[-1]
    assert report.stored_tokens[-1] == pytest.approx(video / 4, abs=5)


@pytest.fixture(scope="module")
def speaking(model):
    """The model that holds a thinker and speaks, of which generate() in text needs no more than this."""
    from transformers import (
        Qwen2_5OmniConfig,
        Qwen2_5OmniForConditionalGeneration,
        Qwen2_5OmniTalkerConfig,
        Qwen2_5OmniTalkerForConditionalGeneration,
    )

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "embedding_size": 48}
    talker = Qwen2_5OmniTalkerConfig(**small, num_attention_heads=1, num_key_value_heads=1, head_dim=16)
    config = Qwen2_5OmniConfig(thinker_config=model.config.to_dict(), enable_audio_output=False)
    whole = Qwen2_5OmniForConditionalGeneration(config).eval()
    whole.thinker = model
    whole.talker = Qwen2_5OmniTalkerForConditionalGeneration(talker)
    whole.speaker_map = {"Chelsie": {}}
    return whole


def test_the_model_around_the_thinker_can_be_given(speaking, with_audio):
    options = {"generation_mode": "text", "thinker_max_new_tokens": 4}
    stock = speaking.generate(**with_audio, **options)
    try:
        assert quickprefill.apply(speaking, keep=1.0, group_frames=4) is speaking
        assert torch.equal(speaking.generate(**with_audio, **options), stock)
        assert quickprefill.report(speaking).groups == 4
    finally:
        quickprefill.remove(speaking)


def test_states_for_speech_are_the_stock_models(model, with_audio, caplog):
    """Those of all tokens, which generate() of the model around asks the thinker for before it speaks."""
    options = {"max_new_tokens": 2, "output_hidden_states": True, "return_dict_in_generate": True}
    stock = model.generate(**with_audio, **options)
    with quickprefill.patched(model, keep=0.5):
        ours = model.generate(**with_audio, **options)
    assert "output_hidden_states=True" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(ours.hidden_states[0], stock.hidden_states[0], strict=True))
