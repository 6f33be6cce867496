"""compress() and select() inside the loop: VidCom2, PruneVid, and policies composed of stages."""

import math

import pytest
import torch

import quickprefill
from quickprefill import ConfigError, InputError, QuickPrefillConfig
from quickprefill.policies import KeyNorm, PruneVid, QueryAttention, VidCom2
from quickprefill.prompt.spans import Grid
from quickprefill.prompt.tokens import VideoTokens
from tests.quickprefill.loop.test_pruning import positions_of
from tests.quickprefill.reference import Rules, dense_logits
from tests.tiny import VIDEO, Clip, make_inputs, prompt, tiny_model, token_types

PARTS = {
    "one video": prompt(3, Clip((6, 8, 8)), 4),
    "two videos": prompt(2, Clip((4, 8, 4)), 3, Clip((3, 4, 8)), 5),
}


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return tiny_model(request.param)


def compressed(model, inputs, policy, slices_at_once):
    """Column -> embedding, from the policy on whole videos (or groups) of stock features."""
    ids = inputs["input_ids"][0]
    columns = (ids == VIDEO).nonzero()[:, 0]
    positions = positions_of(model, inputs)[:, 0]
    output = model.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
    embeds, start = {}, 0
    for features, (t, h, w) in zip(
        getattr(output, "pooler_output", output), inputs["video_grid_thw"].tolist(), strict=True
    ):
        size = h * w // 4
        step = slices_at_once or t
        for first in range(0, t, step):
            count = min(step, t - first)
            own = columns[start + first * size : start + (first + count) * size]
            part = features[first * size : (first + count) * size]
            tokens = VideoTokens(part, positions[:, own], torch.arange(len(own)), Grid(count, h // 2, w // 2))
            after = policy.compress(tokens)
            embeds.update(zip(own[after.source].tolist(), after.embeds, strict=True))
        start += t * size
    return embeds


COMPRESSORS = {
    "vidcom2": (VidCom2(0.25), None),
    "vidcom2 exact": (VidCom2(0.5, exact_total=True), None),
    "vidcom2 by groups": (VidCom2(0.5, scope="group"), 2),
    "prunevid stage 1": (PruneVid(cluster_ratio=0.5, select_tokens=False, min_cluster_tokens=4), None),
    "prunevid stage 1, all static": (PruneVid(cluster_ratio=0.5, select_tokens=False, tau=-1.0), None),
    "prunevid stage 1 by groups": (PruneVid(cluster_ratio=0.5, select_tokens=False, scope="group", tau=0.1), 2),
}


@pytest.mark.parametrize("keep", [None, 0.25], ids=["alone", "with key_norm"])
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("name", COMPRESSORS)
def test_compressed_video_equals_the_reference(model, name, parts, keep):
    policy, slices_at_once = COMPRESSORS[name]
    inputs = make_inputs(PARTS[parts])
    inputs.pop("attention_mask")
    with torch.no_grad():
        embeds = compressed(model, inputs, policy, slices_at_once)
    expected = dense_logits(
        model,
        inputs,
        positions_of(model, inputs),
        Rules(2, keep or 1.0, "key_norm", compared_in="group" if slices_at_once else "video"),
        embeds,
    )
    stages = policy if keep is None else (policy, KeyNorm())
    with quickprefill.patched(model, QuickPrefillConfig(keep=keep, policy=stages, group_frames=4)):
        with torch.no_grad():
            logits = model(**inputs).logits
        ours = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        report = quickprefill.report(model)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4, equal_nan=True)
    assert torch.isnan(logits).any(), "something was dropped"
    assert report.entered_tokens == len(embeds)
    assert report.video_tokens == (inputs["input_ids"] == VIDEO).sum()
    assert ours.past_key_values.get_seq_length() == inputs["input_ids"].shape[1] + 2


@pytest.mark.parametrize("policy", [VidCom2(1.0), PruneVid(select_tokens=False, cluster_ratio=1.0, tau=1.0)])
def test_a_stage_that_keeps_everything_is_the_identity(model, policy):
    inputs = make_inputs(PARTS["two videos"])
    stock = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    with quickprefill.patched(model, policy=policy, group_frames=4):
        assert torch.equal(model.generate(**inputs, max_new_tokens=5, do_sample=False), stock)


def literal_selection(model, inputs, policy, layer):
    """Stage 2 on a stock, unpruned prompt: probabilities of every head and row, written out with loops."""
    text = model.model.language_model
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True, use_cache=False).hidden_states[layer][0]
    attention, ids = text.layers[layer].self_attn, inputs["input_ids"][0].tolist()
    states = text.layers[layer].input_layernorm(states)
    queries = attention.q_proj(states).view(len(ids), -1, attention.head_dim)
    keys = attention.k_proj(states).view(len(ids), -1, attention.head_dim)
    columns = [column for column, token in enumerate(ids) if token == VIDEO]
    scores = [0.0] * len(columns)
    for row in range(columns[-1] + 1, len(ids)):
        for head in range(queries.shape[1]):
            key = keys[:, head // attention.num_key_value_groups].double()
            products = (key @ queries[row, head].double() / math.sqrt(attention.head_dim)).tolist()
            total = sum(math.exp(product) for product in products)
            for index, column in enumerate(columns):
                scores[index] = max(scores[index], math.exp(products[column]) / total)
    count = max(1, int(len(columns) * policy.keep_ratio))
    chosen = sorted(range(len(columns)), key=lambda index: (-scores[index], index))[:count]
    return [columns[index] for index in sorted(chosen)]


@pytest.mark.parametrize("prune_cache", [True, False])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_prunevid_selects_by_the_position_free_map(model, layer, prune_cache):
    """One group holds the whole video, as in the paper; the stages behind the selection see only what it kept."""
    inputs = make_inputs(prompt(3, Clip((4, 4, 6)), 4))
    inputs.pop("attention_mask")
    policy = PruneVid(merge=False, layer=layer, keep_ratio=0.3, prune_cache=prune_cache)
    with torch.no_grad():
        columns = literal_selection(model, inputs, policy, layer)
        num_video = int((inputs["input_ids"] == VIDEO).sum())
        with quickprefill.patched(model, policy=policy, group_frames=100):
            output = model(**inputs)
            report = quickprefill.report(model)
    dropped = torch.isnan(output.logits[0]).any(-1).nonzero()[:, 0].tolist()
    video = [column for column, token in enumerate(inputs["input_ids"][0].tolist()) if token == VIDEO]
    assert dropped == [column for column in video if column not in columns]
    kept = len(columns)
    assert report.finished_tokens == kept
    expected = [kept if prune_cache or index > layer else num_video for index in range(3)]
    assert list(report.stored_tokens) == expected
    assert [entry.stored_length for entry in output.past_key_values.layers] == [
        stored + inputs["input_ids"].shape[1] - num_video for stored in expected
    ]


@pytest.mark.parametrize(
    "policy",
    [
        PruneVid(layer=1, min_cluster_tokens=4),
        PruneVid(layer=1, attention="causal", budget="global"),
        PruneVid(layer=1, prune_cache=False),
        (VidCom2(0.5), KeyNorm()),
        (PruneVid.merge_only(), QueryAttention()),
    ],
    ids=["prunevid", "causal and global", "without stage 3", "vidcom2 + key_norm", "merge + query_attention"],
)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_every_combination_generates_with_batch_images_and_beams(model, policy, options):
    """Each row of the batch answers as it does alone."""
    prompts = [
        prompt(3, Clip((6, 8, 8)), 4),
        prompt(2, Clip((4, 8, 4)), 3, Clip((1, 4, 4), image=True), 2, Clip((1, 4, 4)), 4),
    ]
    inputs = make_inputs(*prompts)
    with quickprefill.patched(model, keep=None, policy=policy, group_frames=4):
        both = model.generate(**inputs, max_new_tokens=4, do_sample=False, **options)
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False, **options), both)
        patches = 6 * 8 * 8
        visible = inputs["attention_mask"][0].bool()
        first = {
            "input_ids": inputs["input_ids"][:1, visible],
            **token_types(inputs["input_ids"][:1, visible]),
            "pixel_values_videos": inputs["pixel_values_videos"][:patches],
            "video_grid_thw": inputs["video_grid_thw"][:1],
            "second_per_grid_ts": inputs["second_per_grid_ts"][:1],
        }
        alone = model.generate(**first, max_new_tokens=4, do_sample=False, **options)
    assert torch.equal(both[0, -4:], alone[0, -4:])


def test_layers_of_different_lengths_decode_in_a_padded_batch(model):
    """Each layer has its own mask; a second turn on the cache works too."""
    inputs = make_inputs(prompt(3, Clip((6, 4, 4)), 4), prompt(1, Clip((3, 4, 4)), 2))
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    with quickprefill.patched(model, keep=0.5, layer_decay="linear", first_layer=1, group_frames=4):
        both = model.generate(**inputs, **options)
        assert len({layer.stored_length for layer in both.past_key_values.layers}) == 3
        for row, patches in enumerate([slice(0, 96), slice(96, 144)]):
            visible = inputs["attention_mask"][row].bool()
            alone = model.generate(
                input_ids=inputs["input_ids"][row : row + 1, visible],
                **token_types(inputs["input_ids"][row : row + 1, visible]),
                pixel_values_videos=inputs["pixel_values_videos"][patches],
                video_grid_thw=inputs["video_grid_thw"][row : row + 1],
                second_per_grid_ts=inputs["second_per_grid_ts"][row : row + 1],
                **options,
            )
            for ours, expected in zip(both.logits, alone.logits, strict=True):
                torch.testing.assert_close(ours[row], expected[0], atol=1e-4, rtol=1e-4)


def test_prune_text(model):
    inputs = make_inputs(prompt(3, Clip((4, 4, 4)), 9))
    with torch.no_grad(), quickprefill.patched(model, keep=0.5, prune_text=True, group_frames=4):
        cache = model(**inputs, logits_to_keep=1).past_key_values
    assert [layer.stored_length for layer in cache.layers] == [4 + 8 + 5] * 3


def test_report(model):
    inputs = make_inputs(prompt(3, Clip((6, 4, 4)), 4))
    with quickprefill.patched(model, keep=0.25, group_frames=4):
        with pytest.raises(InputError, match="no prefill yet"):
            quickprefill.report(model)
        output = model.generate(**inputs, max_new_tokens=1, num_beams=2, return_dict_in_generate=True)
        report = quickprefill.report(model)
    assert (report.prompts, report.groups, report.video_tokens) == (1, 3, 24)
    assert report.entered_tokens == report.finished_tokens == 24
    assert report.stored_tokens == (6, 6, 6)
    assert report.kept == (0.25, 0.25, 0.25)
    assert set(report.seconds) == {"encode", "decode", "prune"}
    assert "24 video tokens in 3 groups" in str(report)
    assert report.cache_bytes == sum(layer.stored_bytes for layer in output.past_key_values.layers)
    with pytest.raises(InputError, match="not patched"):
        quickprefill.report(model)


def test_a_question_is_needed_where_a_policy_asks(model):
    inputs = make_inputs(prompt(3, Clip((4, 4, 4)), 0))
    ids = inputs["input_ids"][:, :-1]  # without the vision-end token, the prompt ends with its video
    inputs = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids), **token_types(ids)}
    for policy in ("query_attention", PruneVid(layer=1)):
        with (
            quickprefill.patched(model, policy=policy),
            pytest.raises(InputError, match="put the question behind the video"),
        ):
            model.generate(**inputs, max_new_tokens=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policy": ()}, "at least one of"),
        (
            {"policy": ("key_norm", "value_norm")},
            r"only one policy of a tuple may score, got \['key_norm', 'value_norm'\]",
        ),
        ({"policy": ("vidcom2", PruneVid.merge_only())}, "only one policy of a tuple may compress"),
        ({"policy": (PruneVid(), "key_norm")}, r"PruneVid\(select_tokens=False\)"),
        ({"policy": PruneVid(merge=False, select_tokens=False)}, "defines none of"),
        ({"policy": ("vidcom2", "key_norm"), "keep": 0.5}, r"ratio of its own, as with VidCom2\(retention_ratio"),
        ({"policy": "vidcom2", "first_layer": 1}, "needs a policy that scores"),
        ({"policy": "prunevid", "layer_decay": 0.5}, "needs a policy that scores"),
        ({"policy": "vidcom2", "progressive_from": 1}, "needs a policy that scores"),
        ({"first_layer": -1}, "first_layer must be an integer >= 0"),
        ({"progressive_from": 1, "first_layer": 2}, r"progressive_from must be >= first_layer \(2\)"),
        ({"progressive_from": 1, "policy": KeyNorm(per_head=True)}, "per_head=True"),
        ({"layer_decay": "cosine"}, 'layer_decay must be None, "linear" or a factor'),
        ({"layer_decay": 1.0}, "0 < f < 1"),
        ({"prune_text": True, "policy": "query_attention"}, "cannot score the question by itself"),
    ],
)
def test_what_does_not_go_together_is_refused_when_built(options, words):
    with pytest.raises(ConfigError, match=words):
        QuickPrefillConfig(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"first_layer": 3}, "first_layer must be below the model's 3 decoder layers, got 3"),
        ({"progressive_from": 7}, "progressive_from must be below the model's 3"),
        ({"policy": "prunevid"}, r"PruneVid\.layer must be below the model's 3 decoder layers, got 10"),
    ],
)
def test_layers_outside_the_model_are_refused_when_applied(model, options, words):
    with pytest.raises(ConfigError, match=words):
        quickprefill.apply(model, **options)
    assert "quickprefill" not in repr(model)
