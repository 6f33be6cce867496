"""Which calls are pruned and which are the stock model's, and that a stock one is exactly stock."""

import pytest
import torch
from torch import nn

import quickprefill
from quickprefill import InputError
from quickprefill.policies import PruneVid
from tests.quickprefill.calls import assert_same_logits, forward, generate, stored
from tests.tiny import PAD, PER_COLUMN, VISION_END, Clip, make_inputs, prompt, tiny_model

INPUTS = make_inputs(prompt(3, Clip((4, 4, 4)), 3))
TEXT, VIDEO = 8, 16
PRUNED, WHOLE = [TEXT + 4] * 3, [TEXT + VIDEO] * 3


@pytest.fixture
def model():
    return tiny_model()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("policy", ["key_norm", "query_attention"])
def test_layers_with_a_sliding_window_stay_the_hosts(model, attention, policy):
    """Layers 1 and 2 see a window of 8 tokens: exact at keep=1, and only layer 0 is pruned below."""
    options = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    sliding = tiny_model(attention, **options)
    stock, expected = forward(sliding, INPUTS).logits, generate(sliding, INPUTS)
    for group_frames in (2, 4, None):
        with quickprefill.patched(keep=1.0, policy=policy, group_frames=group_frames):
            torch.testing.assert_close(forward(sliding, INPUTS).logits, stock, atol=1e-4, rtol=1e-4)
            assert_same_logits(generate(sliding, INPUTS), expected)
    with quickprefill.patched(keep=0.25, policy=policy):
        assert stored(forward(sliding, INPUTS).past_key_values) == [TEXT + 4, 7, 7]
        assert quickprefill.report(sliding).stored_tokens == (4, 0, 0)
        assert stored(forward(model, INPUTS).past_key_values) == PRUNED


# What a config asks for is returned.

ASKED = {"output_hidden_states": "hidden_states", "output_attentions": "attentions"}


@pytest.mark.parametrize("keep", [1.0, 0.25])
@pytest.mark.parametrize("option", ASKED)
def test_what_the_models_config_asks_for_is_returned(option, keep):
    model = tiny_model("eager")
    for config in (model.config, model.config.get_text_config(), model.generation_config):
        setattr(config, option, True)
    stock, expected = getattr(forward(model, INPUTS), ASKED[option]), generate(model, INPUTS)
    assert len(stock) == 3 + (option == "output_hidden_states")
    with quickprefill.patched(model, keep=keep, group_frames=4):
        ours, generated = getattr(forward(model, INPUTS), ASKED[option]), generate(model, INPUTS)
    assert ours is not None
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=1e-4)
    assert_same_logits(generated, expected)
    torch.testing.assert_close(
        getattr(generated, ASKED[option]), getattr(expected, ASKED[option]), atol=1e-4, rtol=1e-4
    )


# Whatever somebody put in the place of a layer's part is used.


def scaled(forward):
    def replacement(*args, **kwargs):
        output = forward(*args, **kwargs)
        return (output[0] * 1.5, *output[1:]) if isinstance(output, tuple) else output * 1.5

    return replacement


def shifted_keys(layer):
    class Shifted(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, hidden):
            return self.inner(hidden) + 1.0

    layer.self_attn.k_proj = Shifted(layer.self_attn.k_proj)
    layer.self_attn.v_proj = Shifted(layer.self_attn.v_proj)


def doubled_input(layer):
    """A replacement that changes what enters a layer, and with it the keys and values that are stored."""
    forward = layer.forward
    layer.forward = lambda hidden_states, *args, **kwargs: forward(hidden_states * 2 + 1, *args, **kwargs)


def other_attention_input(layer):
    """The same for the attention alone."""
    forward = layer.self_attn.forward
    layer.self_attn.forward = lambda hidden_states, **kwargs: forward(hidden_states=hidden_states.abs(), **kwargs)


REPLACEMENTS = {
    "attention": lambda layer: setattr(layer.self_attn, "forward", scaled(layer.self_attn.forward)),
    "layer": lambda layer: setattr(layer, "forward", scaled(layer.forward)),
    "mlp": lambda layer: setattr(layer.mlp, "forward", scaled(layer.mlp.forward)),
    "layer's input": doubled_input,
    "attention's input": other_attention_input,
    "projections": shifted_keys,
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("replace", REPLACEMENTS.values(), ids=REPLACEMENTS)
@pytest.mark.parametrize("place", [0, -1], ids=["first layer", "last layer"])
def test_replaced_parts_of_a_layer_count(attention, replace, place):
    model = tiny_model(attention)
    replace(model.model.language_model.layers[place])
    stock = generate(model, INPUTS)
    with quickprefill.patched(model, keep=1.0, group_frames=4):
        assert_same_logits(generate(model, INPUTS), stock)


@pytest.mark.parametrize("call", ["forward", "generate"])
def test_right_padding_is_refused(model, call):
    """The host would answer from the padding too, so the error says what to do."""
    inputs = make_inputs(prompt(3, Clip((4, 4, 4)), 9), prompt(3, Clip((4, 4, 4)), 3))
    for name in PER_COLUMN:
        inputs[name][1] = inputs[name][1].roll(-6)
    assert (inputs["input_ids"][1, -6:] == PAD).all()
    run = forward if call == "forward" else generate
    with quickprefill.patched(model, keep=0.5), pytest.raises(InputError, match='padding_side="left"'):
        run(model, inputs)


# Scoring, training and rollouts.


@pytest.mark.parametrize("target", ["model", "class"])
def test_a_bare_forward_of_a_model_in_training_is_stock(model, target):
    """Reference log-probabilities are taken so, without labels and without gradients."""
    model.train()
    stock = forward(model, INPUTS)
    with quickprefill.patched(model if target == "model" else None, keep=0.25):
        ours = forward(model, INPUTS)
        assert torch.equal(ours.logits, stock.logits)
        assert stored(ours.past_key_values) == WHOLE
        assert stored(generate(model, INPUTS, max_new_tokens=1).past_key_values) == PRUNED, "a rollout is pruned"
        assert torch.equal(forward(model, INPUTS).logits, stock.logits), "also behind a rollout"
        model.eval()
        assert stored(forward(model, INPUTS).past_key_values) == PRUNED


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner


@pytest.mark.parametrize("target", ["model", "wrapper", "class"])
def test_disabled_leaves_a_block_to_the_stock_model(model, target):
    stock, expected = forward(model, INPUTS), generate(model, INPUTS)
    quickprefill.apply(None if target == "class" else model, keep=0.25)
    through = Wrapper(model) if target == "wrapper" else model

    def check(pruned):
        ours = forward(model, INPUTS)
        assert stored(ours.past_key_values) == (PRUNED if pruned else WHOLE)
        assert stored(generate(model, INPUTS, max_new_tokens=1).past_key_values) == stored(ours.past_key_values)
        assert pruned or torch.equal(ours.logits, stock.logits)

    try:
        with quickprefill.disabled(through):
            check(pruned=False)
            assert_same_logits(generate(model, INPUTS), expected, atol=0)
            with quickprefill.disabled(through):
                check(pruned=False)
            check(pruned=False)
        check(pruned=True)
        with pytest.raises(KeyError), quickprefill.disabled(through):
            raise KeyError
        check(pruned=True)
    finally:
        quickprefill.remove(None if target == "class" else model)


@pytest.mark.parametrize("policy", ["query_attention", PruneVid(layer=1)], ids=["query_attention", "prunevid"])
def test_the_vision_end_marker_is_no_question(model, policy):
    inputs = make_inputs(prompt(3, Clip((4, 4, 4))))
    assert inputs["input_ids"][0, -1] == VISION_END
    with quickprefill.patched(model, policy=policy), pytest.raises(InputError, match="question"):
        generate(model, inputs, max_new_tokens=1)
    with quickprefill.patched(model, policy=policy):
        generate(model, make_inputs(prompt(3, Clip((4, 4, 4)), 1)), max_new_tokens=1)
