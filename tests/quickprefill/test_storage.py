"""Memory: a cache reserves little more than it stores, and is never copied while decoding."""

import pytest
import torch
from transformers import DynamicCache

import quickprefill
from quickprefill.policies import KeyNorm, PruneVid, VidCom2
from tests.quickprefill.calls import CACHE, forward, generate
from tests.tiny import Clip, make_inputs, prompt, tiny_model

LAYERS, SLICES, NEW = 8, 200, 8
KEEP = {"keep": 0.25}
CONFIGS = {
    **{name: {"policy": name, **KEEP} for name in quickprefill.POLICIES if name not in ("prunevid", "vidcom2")},
    "keep=1": {"keep": 1.0},
    "keep_tokens": {"keep_tokens": 2},
    "first_layer": {**KEEP, "first_layer": 1},
    "linear": {"keep": 0.5, "layer_decay": "linear"},
    "factor": {"keep": 0.5, "layer_decay": 0.5},
    "progressive": {**KEEP, "progressive_from": 0},
    "progressive from 3": {**KEEP, "progressive_from": 3},
    "without the past": {**KEEP, "see_past": False},
    "prune_text": {**KEEP, "prune_text": True},
    "per head": {**KEEP, "policy": KeyNorm(per_head=True)},
    "vidcom2": {"policy": VidCom2(0.25)},
    "vidcom2 by groups": {"policy": VidCom2(0.25, scope="group")},
    "vidcom2 + key_norm": {**KEEP, "policy": (VidCom2(0.5), KeyNorm())},
    "prunevid": {"policy": PruneVid(layer=1)},
    "prunevid by groups": {"policy": PruneVid(layer=1, scope="group")},
    "prunevid, prune_cache=False": {"policy": PruneVid(layer=1, prune_cache=False)},
    "prunevid merge only": {"policy": PruneVid.merge_only()},
}


def still(inputs):
    """The same prompt with every slice of the video like the first."""
    pixels = inputs["pixel_values_videos"].view(-1, 16, inputs["pixel_values_videos"].shape[-1])
    return {**inputs, "pixel_values_videos": pixels[:1].expand_as(pixels).flatten(0, 1)}


def reserved_bytes(layer):
    return layer.keys.untyped_storage().nbytes() + layer.values.untyped_storage().nbytes()


def stored_bytes(layer):
    return layer.keys.nbytes + layer.values.nbytes


def token_bytes(layer):
    return stored_bytes(layer) // layer.keys.shape[-2]


def check_reserved(cache, room):
    """All layers together reserve a quarter more than they store, and room for `room` tokens."""
    limit = sum(1.25 * stored_bytes(layer) + room * token_bytes(layer) for layer in cache.layers)
    assert sum(map(reserved_bytes, cache.layers)) <= limit


@pytest.fixture(scope="module")
def model():
    return tiny_model(num_hidden_layers=LAYERS)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_cache_reserves_what_it_stores(model, config):
    inputs = still(make_inputs(prompt(10, Clip((SLICES, 4, 4)), 10)))
    with quickprefill.patched(model, group_frames=8, **config):
        check_reserved(generate(model, inputs, max_new_tokens=NEW).past_key_values, NEW)


@pytest.mark.parametrize("name", ["key_norm", "factor", "first_layer", "prunevid", "vidcom2"])
def test_a_batch_reserves_what_it_stores(model, name):
    inputs = still(make_inputs(prompt(10, Clip((SLICES, 4, 4)), 10), prompt(10, Clip((SLICES - 20, 4, 4)), 5)))
    with quickprefill.patched(model, group_frames=8, **CONFIGS[name]):
        check_reserved(generate(model, inputs, max_new_tokens=NEW).past_key_values, NEW)


@pytest.mark.parametrize("name", ["key_norm", "factor", "first_layer", "prunevid", "vidcom2"])
def test_a_later_turns_video_reserves_what_it_stores(model, name):
    first, second = (still(make_inputs(prompt(10, Clip((SLICES + more, 4, 4)), 10))) for more in (0, 100))
    cut = first["input_ids"].shape[1]
    positions = torch.arange(cut + second["input_ids"].shape[1]).expand(3, 1, -1)
    second.pop("attention_mask")
    with quickprefill.patched(model, group_frames=8, **CONFIGS[name]):
        cache = forward(model, first, position_ids=positions[..., :cut], logits_to_keep=1).past_key_values
        forward(model, second, position_ids=positions[..., cut:], logits_to_keep=1, **{CACHE: cache})
    assert cache.get_seq_length() == positions.shape[-1]
    check_reserved(cache, room=256)


@pytest.mark.parametrize("name", ["key_norm", "factor", "keep=1", "prunevid"])
def test_decoding_never_copies_what_is_stored(name):
    model, cache, seen = tiny_model(), DynamicCache(), []

    def watch(ids, scores):
        seen.append(tuple(part.data_ptr() for layer in cache.layers for part in (layer.keys, layer.values)))
        return scores

    inputs = make_inputs(prompt(3, Clip((8, 4, 4)), 5))
    with quickprefill.patched(model, **CONFIGS[name]):
        generate(model, inputs, max_new_tokens=300, **{CACHE: cache}, logits_processor=[watch])
    assert len(seen) == 300
    assert len(set(seen)) == 1


@pytest.mark.parametrize("policy", ["query_attention", PruneVid(layer=1)], ids=["query_attention", "prunevid"])
def test_a_long_question_reserves_nothing_for_its_copies(model, policy):
    inputs = still(make_inputs(prompt(10, Clip((40, 4, 4)), 400)))
    keep = KEEP if policy == "query_attention" else {}
    with quickprefill.patched(model, group_frames=8, policy=policy, **keep):
        cache = generate(model, inputs, max_new_tokens=NEW).past_key_values
    for layer in cache.layers:
        assert reserved_bytes(layer) <= 1.25 * stored_bytes(layer) + NEW * token_bytes(layer)
