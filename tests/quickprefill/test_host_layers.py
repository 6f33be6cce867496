"""Layers that are not pruned, whatever kind of layer a caller's cache holds for them."""

import pytest
import torch
from transformers import DynamicCache

import quickprefill
from quickprefill import ConfigError
from quickprefill.policies import PruneVid
from tests.families import TEXT, build_inputs, qwen2_vl
from tests.quickprefill.calls import CACHE, assert_same_logits, forward, generate
from tests.tiny import FIRST_WORD, Clip, make_inputs, prompt, tiny_model

INPUTS = make_inputs(prompt(3, Clip((4, 4, 4)), 3))
SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}


@pytest.fixture
def sliding():
    return tiny_model(**SLIDING)


def turns(model, cache):
    """Last logits of a video behind a turn of 10 words, in `cache`."""
    words = torch.full((1, 10), FIRST_WORD)
    positions = torch.arange(10 + INPUTS["input_ids"].shape[1]).expand(3, 1, -1)
    forward(model, {"input_ids": words, "position_ids": positions[..., :10]}, **{CACHE: cache})
    inputs = {name: value for name, value in INPUTS.items() if name != "attention_mask"}
    return forward(model, inputs, position_ids=positions[..., 10:], logits_to_keep=1, **{CACHE: cache}).logits


@pytest.mark.parametrize("keep", [0.25, 1.0])
def test_a_plain_cache_that_text_filled_keeps_what_a_sliding_window_sees(sliding, keep):
    """DynamicCache() has the same kind of layer for all; those of the model's sliding layers were pruned."""
    with quickprefill.patched(sliding, keep=keep, group_frames=4):
        expected = turns(sliding, DynamicCache(config=sliding.config))
        plain = DynamicCache()
        torch.testing.assert_close(turns(sliding, plain), expected, atol=1e-4, rtol=1e-4)
        length = plain.get_seq_length()
        assert [layer.keys.shape[-2] == length for layer in plain.layers] == [keep == 1, True, True]


def test_a_layer_that_a_sliding_model_lacks_is_named(sliding):
    """A patch of the class meets the model with its first call; that was an IndexError."""
    named = r"PruneVid\.layer must be below the model's 3 decoder layers, got 10"
    config = {"policy": PruneVid(layer=10, attention="causal")}
    with quickprefill.patched(type(sliding), **config), pytest.raises(ConfigError, match=named):
        forward(sliding, INPUTS)


@pytest.mark.parametrize("policy", ["key_norm", "query_attention"])
def test_sliding_layers_of_another_family(policy):
    model = qwen2_vl(text={**TEXT, **SLIDING})
    inputs = build_inputs("qwen2_vl", prompt(3, Clip((4, 4, 4)), 3))
    stock = generate(model, inputs)
    for group_frames in (2, None):
        with quickprefill.patched(model, keep=1.0, policy=policy, group_frames=group_frames):
            assert_same_logits(generate(model, inputs), stock)
    with quickprefill.patched(model, keep=0.25, policy=policy):
        assert [layer.keys.shape[-2] for layer in forward(model, inputs)[CACHE].layers] == [8 + 4, 7, 7]
