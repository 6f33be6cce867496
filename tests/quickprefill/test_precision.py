"""Other number formats and other names of attention: mixed precision, float64, bf16 and kernels from the hub."""

import contextlib
import logging

import pytest
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import quickprefill
from quickprefill.policies import Cubes, PruneVid
from tests.families import FAMILIES, build_inputs
from tests.quickprefill.calls import assert_same_logits, forward, generate, stored
from tests.quickprefill.reference import sectioned
from tests.quickprefill.wrapping import Prepared
from tests.tiny import Clip, make_inputs, prompt, tiny_model

INPUTS = make_inputs(prompt(5, Clip((7, 4, 8)), 6))
TEXT, VIDEO = 13, 56
POLICIES = {**{name: name for name in quickprefill.POLICIES}, "prunevid": PruneVid(layer=1)}


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


def prefill_logits(output):
    return output.logits[0].float()


# A float32 model under autocast.


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("group_frames", [2, 16])
def test_autocast_rounds_no_more_than_stock_backends_do(attention, group_frames):
    model = tiny_model(attention)
    with autocast():
        stock, other = (prefill_logits(generate(tiny_model(kind), INPUTS)) for kind in ("sdpa", "eager"))
        with quickprefill.patched(model, keep=1.0, group_frames=group_frames):
            ours = prefill_logits(generate(model, INPUTS))
    exact = prefill_logits(generate(model, INPUTS))
    spread = max((kind - exact).abs().max() for kind in (stock, other))
    assert 1e-4 < spread < 0.1
    assert (ours - exact).abs().max() <= 1.5 * spread


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_generates_under_autocast(policy):
    model = tiny_model()
    keep = {} if policy in ("vidcom2", "prunevid") else {"keep": 0.25}
    with autocast(), quickprefill.patched(model, policy=POLICIES[policy], group_frames=4, **keep):
        output = generate(model, INPUTS)
    assert all(torch.isfinite(step).all() for step in output.logits)
    assert max(stored(output.past_key_values)) < TEXT + VIDEO + 3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("first", ["prepare", "apply"])
def test_a_model_prepared_for_mixed_precision_generates(attention, first):
    model, prepared = tiny_model(attention), Prepared()
    exact = prefill_logits(generate(model, INPUTS))
    try:
        if first == "apply":
            quickprefill.apply(model, keep=1.0, group_frames=4)
        prepared.wrap(model)
        if first == "prepare":
            quickprefill.apply(model, keep=1.0, group_frames=4)
        ours = prefill_logits(generate(model, INPUTS))
        assert 1e-4 < (ours - exact).abs().max() < 0.1, "bf16 rounds, and no more than that"
        quickprefill.apply(model, keep=0.25, group_frames=4)
        assert stored(generate(model, INPUTS, max_new_tokens=1).past_key_values) == [TEXT + 14] * 3
    finally:
        prepared.close()


# float64.


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_float64_equals_stock(attention):
    model = tiny_model(attention, dtype=torch.float64)
    stock = generate(model, INPUTS)
    with quickprefill.patched(model, keep=1.0, group_frames=4):
        ours = generate(model, INPUTS)
    assert ours.past_key_values.layers[0].keys.dtype == torch.float64
    assert_same_logits(ours, stock, atol=1e-8)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_generates_in_float64(policy):
    keep = {} if policy in ("vidcom2", "prunevid") else {"keep": 0.25}
    outputs = {}
    for dtype in (torch.float32, torch.float64):
        model = tiny_model(dtype=dtype)
        with quickprefill.patched(model, policy=POLICIES[policy], group_frames=4, **keep):
            outputs[dtype] = generate(model, INPUTS)
    ours, expected = outputs[torch.float64], outputs[torch.float32]
    assert stored(ours.past_key_values) == stored(expected.past_key_values)
    torch.testing.assert_close(ours.logits[0], expected.logits[0], atol=1e-3, rtol=1e-3)


# An attention implementation with the name of a kernel from the hub.

HUB = "kernels-community/flash-attn2"


def hub_attention(module, query, key, value, attention_mask, scaling, is_causal=None, **kwargs):
    """What flash-attn computes: lower-right causal, padding by a 2-D mask, or segments by their boundaries."""
    new, length = query.shape[2], key.shape[2]
    visible = torch.ones(new, length, dtype=torch.bool)
    boundaries, positions = kwargs.get("cu_seq_lens_q"), kwargs.get("position_ids")
    if boundaries is not None:
        assert boundaries.dtype == torch.int32 and boundaries.device == query.device
        segment = torch.bucketize(torch.arange(new), boundaries, right=True)
        visible = segment[:, None] == segment
    elif module.is_causal if is_causal is None else is_causal:
        visible = visible.tril(length - new)
    if attention_mask is not None:
        assert attention_mask.shape == (len(query), length)
        visible = visible & attention_mask[:, None, None].bool()
    elif positions is not None and boundaries is None:
        assert (positions.diff() == 1).all(), "flash attention reads a gap as the start of another sequence"
    share = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(share, dim=1) for part in (key, value))
    scores = (query @ key.transpose(-1, -2) * scaling).masked_fill(~visible, torch.finfo(query.dtype).min)
    return (scores.softmax(-1) @ value).transpose(1, 2), None


@pytest.fixture
def hub_kernel():
    AttentionInterface.register(HUB, hub_attention)
    AttentionMaskInterface.register(HUB, ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"])
    yield
    for interface in (AttentionInterface, AttentionMaskInterface):
        del interface._global_mapping[HUB]


@pytest.mark.parametrize("where", ["decoder", "decoder and tower"])
@pytest.mark.parametrize("rows", ["one row", "padded batch"])
def test_a_kernel_from_the_hub_is_flash_attention(hub_kernel, caplog, where, rows):
    inputs = INPUTS if rows == "one row" else make_inputs(prompt(5, Clip((7, 4, 8)), 6), prompt(2, Clip((3, 4, 8)), 4))
    model, reference = tiny_model(), tiny_model()
    model.config.get_text_config()._attn_implementation = HUB
    if where != "decoder":
        model.config.vision_config._attn_implementation = HUB
    stock = generate(model, inputs)
    with caplog.at_level(logging.WARNING, logger="quickprefill"):
        with quickprefill.patched(model, keep=1.0, group_frames=4):
            assert_same_logits(generate(model, inputs), stock)
        with quickprefill.patched(model, keep=0.25, group_frames=4):
            pruned = generate(model, inputs)
    assert caplog.records == []
    assert stored(pruned.past_key_values) == [TEXT + 14 + 3] * 3
    with quickprefill.patched(reference, keep=0.25, group_frames=4):
        assert_same_logits(pruned, generate(reference, inputs))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_flash_attention_trains_what_a_policy_learns_as_sdpa_does(hub_kernel, family):
    """A prompt whose columns were dropped has gaps in its positions; it is one sequence all the same."""
    model, inputs = FAMILIES[family].model(), build_inputs(family, prompt(4, Clip((8, 8, 8)), 6))
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -3:] = inputs["input_ids"][:, -3:]
    quickprefill.apply(model, policy=Cubes(frames_per_cube=4, gate="learned"))
    loss = model(**inputs, labels=labels).loss
    model.config.get_text_config()._attn_implementation = HUB
    torch.testing.assert_close(model(**inputs, labels=labels).loss, loss)


# bf16: what one attention call rounds is the measure.


@contextlib.contextmanager
def recorded(attention):
    """What goes through an attention: queries, keys and values after their projections, rotary parts, the output."""
    seen = {"q_proj": [], "k_proj": [], "v_proj": [], "rotary": [], "output": []}
    hooks = [
        getattr(attention, name).register_forward_hook(
            lambda module, args, output, name=name: seen[name].append(output)
        )
        for name in ("q_proj", "k_proj", "v_proj")
    ]
    hooks += [
        attention.o_proj.register_forward_pre_hook(lambda module, args: seen["output"].append(args[0])),
        attention.register_forward_pre_hook(
            lambda module, args, kwargs: seen["rotary"].append(kwargs["position_embeddings"]), with_kwargs=True
        ),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def exact_attention(attention, seen):
    """The attention of one whole prompt in float64, from what was projected."""
    query, key, value = (
        seen[name][0].view(1, -1, heads, attention.head_dim).transpose(1, 2)
        for name, heads in (("q_proj", 6), ("k_proj", 2), ("v_proj", 2))
    )
    query, key = apply_rotary_pos_emb(query, key, *(sectioned(part, attention.config) for part in seen["rotary"][0]))
    query, key, value = query.double(), key.double().repeat_interleave(3, 1), value.double().repeat_interleave(3, 1)
    scores = query @ key.transpose(-1, -2) * attention.scaling
    scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def relative_error(ours, exact):
    return float((ours.double() - exact).norm() / exact.norm())


def test_bfloat16_groups_round_little_more_than_one_call():
    ours, stock = [], []
    for seed in range(6):
        model = tiny_model(dtype=torch.bfloat16, seed=seed, num_hidden_layers=2)
        attention = model.model.language_model.layers[0].self_attn
        inputs = make_inputs(prompt(20, Clip((24, 8, 8)), 20), seed=seed)
        with recorded(attention) as seen:
            forward(model, inputs)
        exact = exact_attention(attention, seen)
        stock.append(relative_error(seen["output"][0], exact))
        with quickprefill.patched(model, keep=1.0, group_frames=2), recorded(attention) as seen:
            forward(model, inputs)
        ours.append(relative_error(torch.cat(seen["output"], dim=1), exact))
    assert 0 < sum(ours) <= 1.15 * sum(stock)
