"""Where no policy is named, one score for all models; a warning where one that was named cannot tell tokens apart."""

import copy
import logging

import pytest
import torch

import quickprefill
from quickprefill import QuickPrefillConfig
from quickprefill.policies import KeyNorm, KeyNormDistinct, KeyNormRandom, KeyWeightedValueNorm, ValueNorm
from quickprefill.spread import LEAST, Spread
from tests.families import FAMILIES, HYBRID_TEXT, TEXT, build_inputs
from tests.quickprefill.calls import forward, generate
from tests.tiny import Clip, prompt, rope

BY_KEYS = [
    *(KeyNorm(), KeyNorm(largest=True), KeyNorm(per_head=True)),
    *(KeyNormDistinct(), KeyNormRandom(), KeyWeightedValueNorm()),
]


def inputs_of(family):
    return build_inputs(family, prompt(3, Clip((8, 8, 8)), 4))


def even(model):
    """The model with the norm weights that it is born with: every key is then equally long."""
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        if name.endswith(("k_norm.weight", "q_norm.weight")):
            parameter.detach().copy_(parameter.detach().mean().round())
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_is_the_same_for_every_family(family):
    model, inputs = FAMILIES[family].model(), inputs_of(family)
    default = ValueNorm()
    for target in (model, type(model)):
        with quickprefill.patched(target, keep=0.25, trace=True):
            assert f"policy={default!r}" in repr(model)
            forward(model, inputs)
            ours = quickprefill.report(target)
        with quickprefill.patched(target, keep=0.25, trace=True, policy=default):
            forward(model, inputs)
            named = quickprefill.report(target)
        for one, other in zip(ours.kept_places, named.kept_places, strict=True):
            assert torch.equal(one.places, other.places)


def test_every_option_goes_with_every_default():
    """The default is a score, so one config fits all families."""
    config = QuickPrefillConfig(keep=0.5, first_layer=1, layer_decay="linear", progressive_from=1)
    assert QuickPrefillConfig.from_json(config.to_json()) == config and config.policy is None
    for family in FAMILIES:
        model = FAMILIES[family].model()
        with quickprefill.patched(model, config):
            assert torch.isfinite(forward(model, inputs_of(family)).logits[:, -1]).all()
            assert quickprefill.estimate(model, inputs_of(family)).cache_bytes > 0


WIDE = {**TEXT, "head_dim": 128, **rope(24, 20, 20)}
"""Heads as wide as the real ones: rounding to bfloat16 spreads the norms of few numbers more."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", sorted({"qwen3_vl", "qwen3_5"} & set(FAMILIES)))
def test_a_score_that_cannot_tell_tokens_apart_is_named_once(family, dtype, caplog):
    text = {"text": WIDE} if family == "qwen3_vl" else {"text": {**HYBRID_TEXT, "head_dim": 128}}
    model, inputs = even(FAMILIES[family].model(**text)).to(dtype), inputs_of(family)
    for policy in BY_KEYS:
        caplog.clear()
        with quickprefill.patched(model, keep=0.25, policy=policy):
            for _ in range(2):
                generate(model, inputs)
        (said,) = [record.message for record in caplog.records if "apart" in record.message]
        assert policy.name in said and "The decoder norms its keys; use value_norm" in said


@pytest.mark.parametrize("policy", [None, "value_norm", "query_attention", "output_norm", "random", "uniform"])
def test_scores_that_differ_are_not(policy, caplog):
    model = even(FAMILIES["qwen3_vl"].model())
    with quickprefill.patched(model, keep=0.25, policy=policy):
        generate(model, inputs_of("qwen3_vl"))
    assert "apart" not in caplog.text


@pytest.mark.parametrize("policy", BY_KEYS, ids=str)
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_key_norms_without_qk_norm_are_not(family, policy, caplog):
    model = FAMILIES[family].model()
    with quickprefill.patched(model, keep=0.25, policy=policy):
        generate(model, inputs_of(family))
    assert "apart" not in caplog.text


def test_the_spread_is_looked_at_after_the_prefill_and_once(caplog):
    """The next call tells it: a single forward() reads nothing back from the device."""
    model, inputs = even(FAMILIES["qwen3_vl"].model()), inputs_of("qwen3_vl")
    with caplog.at_level(logging.WARNING), quickprefill.patched(model, keep=0.25, policy="key_norm"):
        forward(model, inputs)
        assert "apart" not in caplog.text
        forward(model, {"input_ids": torch.full((1, 3), 9)})
        assert caplog.text.count("apart") == 1


def test_the_spread_of_scores():
    spread = Spread()
    assert not spread.noted
    spread.note(torch.tensor([[-5.0]]))
    assert not spread.noted, "one token has none"
    for scores in ([-5.0, -5.001], [1.0, 3.0], [2.0, 2.0]):
        spread.note(torch.tensor([scores]))
    assert 1e-4 < spread.told() < LEAST, "the layer in the middle"
    assert not copy.deepcopy(spread).noted
