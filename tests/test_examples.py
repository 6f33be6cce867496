"""The smaller examples run as they stand."""

import torch

import quickprefill
from tests.test_end_to_end import load
from tests.tiny import Clip, make_inputs, prompt, tiny_model


def test_write_a_policy():
    before = dict(quickprefill.POLICIES)
    try:
        config = load("write_a_policy").main()
        model = tiny_model()
        with torch.no_grad(), quickprefill.patched(model, config):
            cache = model(**make_inputs(prompt(3, Clip((4, 4, 4)), 4)), logits_to_keep=1).past_key_values
        assert cache.layers[0].stored_length == 4 + 4 + 5
        assert quickprefill.QuickPrefillConfig.from_json(config.to_json()) == config
    finally:
        quickprefill.POLICIES.clear()
        quickprefill.POLICIES.update(before)
