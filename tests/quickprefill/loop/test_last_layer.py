"""Nobody reads what the last layer makes of a group but its keys and values, so nothing else of it is computed."""

from __future__ import annotations

import pytest
import torch

import quickprefill
from quickprefill.policies import PruneVid
from tests.tiny import PER_COLUMN, Clip, make_inputs, prompt, tiny_model

PROMPT = prompt(3, Clip((5, 4, 4)), 2, Clip((4, 4, 8)), 5)
TAIL = 6
"""The text behind the second video and the token that ends it."""


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def inputs():
    return make_inputs(PROMPT)


def prefill(model, inputs, logits_to_keep=1, **config):
    with torch.no_grad(), quickprefill.patched(model, **{"group_frames": 4, **config}):
        return model(**inputs, use_cache=True, logits_to_keep=logits_to_keep)


@pytest.fixture
def tokens_in_the_mlp(model, monkeypatch):
    """How many tokens went through the last layer's MLP; noted by its class, as what looks into a layer is noticed."""
    mlp = model.model.language_model.layers[-1].mlp
    counts, stock = [], type(mlp).forward

    def forward(self, hidden):
        counts.extend([hidden.shape[1]] * (self is mlp))
        return stock(self, hidden)

    monkeypatch.setattr(type(mlp), "forward", forward)
    return counts


@pytest.mark.parametrize("wanted", [0, 1, TAIL, TAIL + 1, torch.tensor([0]), torch.tensor([-1])], ids=str)
def test_a_group_finishes_only_where_its_logits_are_wanted(model, inputs, tokens_in_the_mlp, wanted):
    prefill(model, inputs, wanted, keep=0.5)
    length = inputs["input_ids"].shape[1]
    groups = {"all": length, "none": TAIL, "last": TAIL + 16, "first": TAIL + 4 + 8}
    expected = {0: "all", 1: "none", TAIL: "none", TAIL + 1: "last"}
    place = expected[wanted] if isinstance(wanted, int) else ("first" if int(wanted) == 0 else "none")
    assert sum(tokens_in_the_mlp) == groups[place]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "config",
    [{"keep": 0.5, "policy": name} for name in sorted(set(quickprefill.POLICIES) - {"cubes", "prunevid", "vidcom2"})]
    + [
        {"keep": 1.0},
        {"policy": "vidcom2"},
        {"policy": PruneVid(layer=1)},
        {"keep": 0.5, "see_past": False},
        {"keep": 0.5, "progressive_from": 0},
    ],
    ids=str,
)
def test_the_cache_is_that_of_a_whole_last_layer(inputs, attention, config):
    model = tiny_model(attention)
    short, whole = (prefill(model, inputs, wanted, **config) for wanted in (1, 0))
    for ours, theirs in zip(short.past_key_values.layers, whole.past_key_values.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
    torch.testing.assert_close(short.logits, whole.logits[:, -1:])


def test_a_hook_sees_the_whole_layer(model, inputs, tokens_in_the_mlp):
    layer = model.model.language_model.layers[-1]
    seen = []
    handle = layer.self_attn.o_proj.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    prefill(model, inputs, keep=0.5)
    assert sum(seen) == sum(tokens_in_the_mlp) == inputs["input_ids"].shape[1]
    handle.remove()
    prefill(model, inputs, keep=0.5)
    assert len(tokens_in_the_mlp) == len(seen) + 1


def test_a_policy_that_looks_at_hidden_states_gets_them(model, inputs, tokens_in_the_mlp):
    prefill(model, inputs, keep=0.5, policy="output_norm")
    assert sum(tokens_in_the_mlp) == inputs["input_ids"].shape[1]


def test_a_prompt_that_ends_with_its_video_still_gets_its_logits(model):
    inputs = make_inputs(prompt(3, Clip((5, 4, 4))))
    for name in PER_COLUMN:
        inputs[name] = inputs[name][:, :-1]
    with torch.no_grad():
        stock = model(**inputs, logits_to_keep=1).logits
    torch.testing.assert_close(prefill(model, inputs, keep=1.0).logits, stock, atol=1e-4, rtol=1e-4)
