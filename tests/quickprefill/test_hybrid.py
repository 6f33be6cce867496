"""Layers of linear attention keep a state: exact at keep=1, never pruned, and refused where an option needs more."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from transformers import DynamicCache

import quickprefill
from quickprefill import ConfigError, UnsupportedModelError, release
from quickprefill.cache.host_layers import held_tensors
from quickprefill.loop import layers
from quickprefill.policies import KeyNorm, PruneVid, Scorer, VidCom2
from tests.families import HYBRID_TEXT, build_inputs, qwen3_5, skip_without
from tests.live_memory import PeakLiveBytes
from tests.quickprefill.calls import CACHE, assert_same_logits, forward, generate
from tests.tiny import FIRST_WORD, VIDEO, Clip, prompt

skip_without("qwen3_5")
INPUTS = build_inputs("qwen3_5", prompt(3, Clip((6, 4, 4)), 4))
LINEAR, FULL = "linear_attention", "full_attention"


@pytest.fixture(scope="module")
def model():
    return qwen3_5()


def turns(model, cache, **config):
    """All logits of a video behind a turn of 9 words in `cache`, then of 5 words behind it."""
    words = torch.full((1, 9), FIRST_WORD)
    length = 9 + INPUTS["input_ids"].shape[1]
    positions = torch.arange(length + 5).expand(3, 1, -1)
    forward(model, {"input_ids": words, "position_ids": positions[..., :9]}, **{CACHE: cache})
    inputs = {name: value for name, value in INPUTS.items() if name != "attention_mask"}
    with quickprefill.patched(model, **config):
        video = forward(model, inputs, position_ids=positions[..., 9:length], **{CACHE: cache}).logits
        later = {"input_ids": words[:, :5], "position_ids": positions[..., length:]}
        return torch.cat([video, forward(model, later, **{CACHE: cache}).logits], dim=1)


def test_turns_before_and_behind_a_video_are_stock(model):
    with quickprefill.disabled(model):
        expected = turns(model, DynamicCache(config=model.config))
    for policy in ("key_norm", "query_attention"):
        ours = turns(model, DynamicCache(config=model.config), keep=1.0, policy=policy, group_frames=4)
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_a_question_that_rides_along_leaves_no_trace_in_a_state(model, monkeypatch):
    stock = generate(model, INPUTS)
    config = {"keep": 1.0, "policy": "query_attention", "group_frames": 4}
    with quickprefill.patched(model, **config):
        assert_same_logits(generate(model, INPUTS), stock)
        monkeypatch.setattr(layers, "fork", lambda layer: layer)
        assert (generate(model, INPUTS).logits[0] - stock.logits[0]).abs().max() > 1e-2, "the comparison notices it"


@dataclass(frozen=True)
class Failing(Scorer):
    """Fails with the second group."""

    def score(self, kv):
        if kv.group:
            raise FloatingPointError("second group")
        return KeyNorm().score(kv)


def test_a_failed_prefill_leaves_no_trace_in_the_callers_cache(model):
    cache = DynamicCache(config=model.config)
    words = torch.full((1, 9), FIRST_WORD)
    forward(model, {"input_ids": words}, **{CACHE: cache})
    before = [[part.clone() for part in held_tensors(layer)] for layer in cache.layers]
    held = [held_tensors(layer) for layer in cache.layers]
    inputs = {name: value for name, value in INPUTS.items() if name != "attention_mask"}
    positions = torch.arange(9, 9 + INPUTS["input_ids"].shape[1]).expand(3, 1, -1)
    config = {"policy": Failing(), "group_frames": 2}
    with quickprefill.patched(model, **config), pytest.raises(FloatingPointError):
        forward(model, inputs, position_ids=positions, **{CACHE: cache})
    for layer, parts, copies in zip(cache.layers, held, before, strict=True):
        assert all(a is b for a, b in zip(held_tensors(layer), parts, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(parts, copies, strict=True))
    assert cache.get_seq_length() == 9


@pytest.mark.parametrize("types", [[FULL, LINEAR, LINEAR], [LINEAR, FULL, LINEAR], [LINEAR, LINEAR, FULL]], ids=str)
def test_layers_with_a_state_may_stand_anywhere(types):
    text = {**HYBRID_TEXT, "num_hidden_layers": len(types), "layer_types": types}
    hybrid = qwen3_5(text=text)
    stock = generate(hybrid, INPUTS)
    with quickprefill.patched(hybrid, keep=1.0, group_frames=4, policy="query_attention"):
        assert_same_logits(generate(hybrid, INPUTS), stock)
        assert generate(hybrid, INPUTS)[CACHE].get_seq_length() == stock[CACHE].get_seq_length()


@pytest.mark.parametrize(
    "options", [{}, {"progressive_from": 1}, {"policy": VidCom2(0.25)}, {"policy": PruneVid(layer=1)}], ids=str
)
def test_only_layers_of_full_attention_are_pruned(model, options):
    number = int((INPUTS["input_ids"] == VIDEO).sum())
    with quickprefill.patched(model, **{"keep": 0.25, "group_frames": 4, **options}):
        output = generate(model, INPUTS)
        report = quickprefill.report(model)
    text = output.sequences.shape[1] - 1 - number
    kept = report.stored_tokens
    assert kept[0] == kept[2] == 0 and kept[1] + text == output[CACHE].layers[1].keys.shape[-2] < number / 2 + text
    states = sum(part.nbytes for layer in output[CACHE].layers[::2] for part in held_tensors(layer))
    assert 0 < states < report.cache_bytes


def test_what_has_no_meaning_for_a_state_is_refused(model):
    refused = [
        ({"see_past": False}, "see_past=False has no meaning for layers of linear attention"),
        ({"policy": PruneVid(layer=2)}, r"PruneVid\.layer=2 is a layer of linear attention.*are \[1, 3\]"),
    ]
    for config, words in refused:
        with pytest.raises(ConfigError, match=words):
            quickprefill.apply(model, **config)
        with quickprefill.patched(type(model), **config), pytest.raises(ConfigError, match=words):
            generate(model, INPUTS)
    quickprefill.remove(quickprefill.apply(model, policy=PruneVid(layer=2, select_tokens=False)))


def test_a_release_that_would_be_silently_wrong_is_refused(model, monkeypatch, caplog):
    """Up to 5.6 several tokens behind a state began with an empty one."""
    monkeypatch.setattr(release, "INSTALLED", "5.6.2")
    for target in (model, type(model)):
        with pytest.raises(UnsupportedModelError, match=r"needs transformers 5\.7 to .*, not 5\.6\.2: .*empty"):
            quickprefill.apply(target)
    with quickprefill.patched():
        assert "_quickprefill" not in vars(type(model))
    assert "leaves Qwen3_5ForConditionalGeneration as it is" in caplog.text


@pytest.mark.parametrize("policy", ["key_norm", "query_attention", VidCom2(0.25, exact_total=True)], ids=str)
def test_the_estimate_knows_what_a_state_takes(policy):
    """In a model whose linear layers are the fullest moment: bytes that are alive in it, and the cache that is left."""
    wide = {"linear_key_head_dim": 32, "linear_value_head_dim": 24}
    hybrid = qwen3_5(text={**HYBRID_TEXT, **wide})
    inputs = build_inputs("qwen3_5", prompt(5, Clip((12, 16, 16)), 12), prompt(2, Clip((4, 16, 16)), 12))
    config = {"keep": 0.5, "group_frames": 6, "policy": policy}
    guess = quickprefill.estimate(hybrid, inputs, **config)
    with quickprefill.patched(hybrid, **config), PeakLiveBytes() as peak:
        generate(hybrid, inputs, max_new_tokens=1)
        report = quickprefill.report(hybrid)
    # up to 5.17 the convolution holds a little more
    assert 0.8 < sum(guess.peak_bytes.values()) / peak.bytes < 1.15
    assert guess.flops == report.flops
    alone = build_inputs("qwen3_5", prompt(5, Clip((12, 16, 16)), 12))
    with quickprefill.patched(hybrid, **config):
        generate(hybrid, alone, max_new_tokens=1)
        assert quickprefill.report(hybrid).cache_bytes == quickprefill.estimate(hybrid, alone).cache_bytes
