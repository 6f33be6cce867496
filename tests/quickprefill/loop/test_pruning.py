"""Pruned prefill: what it computes equals a dense reference, what it stores is exact, and nothing sees the future."""

import pytest
import torch

import quickprefill
from quickprefill import QuickPrefillConfig
from quickprefill.cache.layer import PrunedLayer
from quickprefill.policies import KeyNorm, QueryAttention, ValueNorm
from tests.quickprefill.calls import CACHE
from tests.quickprefill.reference import Rules, dense_logits
from tests.tiny import FIRST_WORD, VIDEO, Clip, make_inputs, prompt, tiny_model, token_types

CLIPS = {
    "one video": prompt(5, Clip((7, 4, 6)), 6),
    "two videos": prompt(2, Clip((5, 8, 4)), 3, Clip((4, 4, 4)), 4),
    "single tokens": prompt(1, Clip((5, 2, 2)), 3),
}


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def eager():
    return tiny_model("eager")


def positions_of(model, inputs, extra=0):
    positions, _ = model.model.get_rope_index(**{k: v for k, v in inputs.items() if "pixel" not in k})
    steps = torch.arange(1, extra + 1).expand(3, 1, -1)
    return torch.cat([positions, positions[..., -1:] + steps], dim=-1)


EXPECTED = {}
"""The reference's logits, computed once for both attention backends."""


def check_against_the_reference(model, eager, parts, config, rules):
    """All logits of the prefill, then those of three greedy steps."""
    inputs = make_inputs(parts)
    inputs.pop("attention_mask")
    with quickprefill.patched(model, config):
        with torch.no_grad():
            logits = model(**inputs).logits
        ours = model.generate(
            **inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    # The reference takes the end of the prompt for the question, so there it gets the prompt alone.
    steps = 0 if rules.question else 2
    length = inputs["input_ids"].shape[1]
    ids = ours.sequences[:, : length + steps]
    whole = {**inputs, "input_ids": ids, **token_types(ids)}
    positions = positions_of(eager, inputs, extra=steps)
    key = (str(rules), str(parts), tuple(ids[0].tolist()))
    if key not in EXPECTED:
        EXPECTED[key] = dense_logits(eager, whole, positions, rules)
    expected = EXPECTED[key]
    torch.testing.assert_close(logits, expected[:, :length], atol=1e-4, rtol=1e-4, equal_nan=True)
    generated = torch.stack(ours.logits, dim=1)[:, : steps + 1]
    torch.testing.assert_close(generated, expected[:, length - 1 :], atol=1e-4, rtol=1e-4)


@pytest.mark.spine
@pytest.mark.parametrize("score", ["key_norm", "value_norm"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("parts", CLIPS.values(), ids=CLIPS)
def test_scores_prune_like_the_reference(model, eager, parts, keep, score):
    config = QuickPrefillConfig(keep=keep, group_frames=4, policy=score)
    check_against_the_reference(model, eager, parts, config, Rules(2, keep, score))


OPTIONS = {
    "per head": ({"policy": KeyNorm(per_head=True)}, {"per_head": True, "score": "key_norm"}),
    "values per head": ({"policy": ValueNorm(per_head=True)}, {"per_head": True, "score": "value_norm"}),
    "from layer 1": ({"first_layer": 1}, {"first_layer": 1}),
    "linear": ({"layer_decay": "linear"}, {"decay": "linear"}),
    "exponential": ({"layer_decay": 0.5}, {"decay": 0.5}),
    "progressive": ({"progressive_from": 0}, {"progressive_from": 0}),
    "progressive from 1": ({"progressive_from": 1}, {"progressive_from": 1}),
    "progressive linear": (
        {"progressive_from": 1, "layer_decay": "linear", "first_layer": 1},
        {"progressive_from": 1, "decay": "linear", "first_layer": 1},
    ),
    "without the past": ({"see_past": False}, {"see_past": False}),
    "progressive without the past": (
        {"see_past": False, "progressive_from": 1},
        {"see_past": False, "progressive_from": 1},
    ),
    "output norm": ({"policy": "output_norm"}, {"score": "output_norm"}),
    "question": ({"policy": "query_attention"}, {"score": "query_attention"}),
    "question by value norm": (
        {"policy": QueryAttention(by_value_norm=True)},
        {"score": "query_attention_by_value_norm"},
    ),
    "question, progressive": (
        {"policy": "query_attention", "progressive_from": 1},
        {"score": "query_attention", "progressive_from": 1},
    ),
    "question without the past": (
        {"policy": "query_attention", "see_past": False},
        {"score": "query_attention", "see_past": False},
    ),
}


@pytest.mark.parametrize("parts", ["one video", "two videos"])
@pytest.mark.parametrize("option", OPTIONS)
def test_options_prune_like_the_reference(model, eager, parts, option):
    config, rules = OPTIONS[option]
    parts = CLIPS[parts]
    question = parts[-1] + 1 if "query" in rules.get("score", "") else 0  # vision end and the words behind it
    config = QuickPrefillConfig(keep=0.5, group_frames=4, **config)
    check_against_the_reference(model, eager, parts, config, Rules(2, 0.5, **rules, question=question))


def test_rows_of_a_padded_batch_are_pruned_as_if_alone(model):
    prompts = [CLIPS["one video"], CLIPS["two videos"], prompt(9)]
    inputs = make_inputs(*prompts)
    with quickprefill.patched(model, keep=0.5, group_frames=4):
        options = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
        batch = model.generate(**inputs, **options)
        pixels, grids, videos = inputs["pixel_values_videos"], inputs["video_grid_thw"], 0
        for row, parts in enumerate(prompts):
            visible = inputs["attention_mask"][row].bool()
            alone = {"input_ids": inputs["input_ids"][row : row + 1, visible]}
            count = sum(isinstance(part, Clip) for part in parts)
            if count:
                patches = grids.prod(-1).cumsum(0).tolist()
                start = patches[videos - 1] if videos else 0
                alone["pixel_values_videos"] = pixels[start : patches[videos + count - 1]]
                alone["video_grid_thw"] = grids[videos : videos + count]
                alone["second_per_grid_ts"] = inputs["second_per_grid_ts"][videos : videos + count]
                alone |= token_types(alone["input_ids"])
                videos += count
            single = model.generate(**alone, **options)
            for ours, expected in zip(batch.logits, single.logits, strict=True):
                torch.testing.assert_close(ours[row], expected[0], atol=1e-4, rtol=1e-4)


SCORERS = sorted(name for name, policy in quickprefill.POLICIES.items() if "score" in policy().stages)


@pytest.mark.parametrize("policy", SCORERS)
def test_the_cache_holds_head_kept_and_tail_tokens(model, policy):
    inputs = make_inputs(prompt(5, Clip((7, 4, 6)), 6))  # groups of 2, 2, 2 and 1 slices of 6 tokens
    with torch.no_grad(), quickprefill.patched(model, keep=0.5, group_frames=4, policy=policy):
        cache = model(**inputs, logits_to_keep=1).past_key_values
    kept = 6 + 6 + 6 + 3
    assert [layer.keys.shape[-2] for layer in cache.layers] == [6 + kept + 7] * 3
    assert cache.get_seq_length() == inputs["input_ids"].shape[1]
    assert all(isinstance(layer, PrunedLayer) for layer in cache.layers)


def test_keep_tokens_is_a_count_per_group(model):
    inputs = make_inputs(prompt(5, Clip((7, 4, 6)), 6))
    with torch.no_grad(), quickprefill.patched(model, keep_tokens=4, group_frames=4):
        cache = model(**inputs, logits_to_keep=1).past_key_values
    assert cache.layers[0].stored_length == 6 + 4 * 4 + 7


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_a_later_token_never_changes_an_earlier_hidden_state(model, keep):
    """The trap: with a wrong key offset a token sees the future of its own group."""
    inputs = make_inputs(prompt(5, Clip((6, 4, 4)), 6))
    group = 4 * 4 * 2 // 4  # tokens in a group of 4 frames

    def run(**changes):
        with torch.no_grad(), quickprefill.patched(model, keep=keep, group_frames=4):
            return model(**{**inputs, **changes}).logits

    before = run()
    first_video = (inputs["input_ids"][0] == VIDEO).nonzero()[0].item()
    pixels = inputs["pixel_values_videos"].clone()
    last_patches = 4 * 4  # the last slice, second half of the last group
    pixels[-last_patches:] += 1.0
    after = run(pixel_values_videos=pixels)
    unchanged = first_video + 2 * group + group // 2
    assert torch.equal(before[:, :unchanged], after[:, :unchanged])
    assert not torch.allclose(before[:, unchanged:], after[:, unchanged:])

    ids = inputs["input_ids"].clone()
    ids[0, -1] = FIRST_WORD if ids[0, -1] != FIRST_WORD else FIRST_WORD + 1
    after = run(input_ids=ids)
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.allclose(before[:, -1], after[:, -1])


@pytest.mark.parametrize("options", [{}, {"layer_decay": "linear"}], ids=["equal layers", "layers of their own"])
@pytest.mark.parametrize("padded", [False, True], ids=["one prompt", "padded batch"])
def test_later_text_at_once_equals_token_by_token(model, padded, options):
    """Several tokens on a pruned cache are causal among themselves and see the same stored tokens as one at a time."""
    prompts = [CLIPS["one video"], CLIPS["single tokens"]] if padded else [CLIPS["one video"]]
    inputs = make_inputs(*prompts)
    words = torch.randint(FIRST_WORD, 60, (len(prompts), 5), generator=torch.Generator().manual_seed(2))
    length = inputs["input_ids"].shape[1]
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(words)], dim=1)

    def continued(pieces):
        logits, past = [], length
        with torch.no_grad(), quickprefill.patched(model, keep=0.5, group_frames=4, **options):
            cache = model(**inputs, logits_to_keep=1).past_key_values
            for piece in words.split(pieces, dim=1):
                stop = past + piece.shape[1]
                positions = torch.arange(100 + past, 100 + stop).expand(3, len(prompts), -1)
                given = {"attention_mask": mask[:, :stop], "position_ids": positions, CACHE: cache}
                logits.append(model(input_ids=piece, **given).logits)
                past = stop
        assert cache.get_seq_length() == length + 5
        return torch.cat(logits, dim=1)

    torch.testing.assert_close(continued([5]), continued([1] * 5), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(continued([2, 3]), continued([1] * 5), atol=1e-4, rtol=1e-4)


def test_beams_of_a_pruned_prompt_share_one_prefill(model):
    inputs = make_inputs(CLIPS["one video"])
    calls = []
    hook = model.model.visual.register_forward_hook(lambda *args: calls.append(1))
    try:
        with quickprefill.patched(model, keep=0.5, group_frames=4):
            one = model.generate(**inputs, max_new_tokens=4, do_sample=False)
            groups = len(calls)
            beams = model.generate(**inputs, max_new_tokens=4, do_sample=False, num_beams=4, num_return_sequences=4)
    finally:
        hook.remove()
    assert groups == 4
    assert len(calls) == 2 * groups
    assert beams.shape[0] == 4
    assert one.shape[0] == 1


def test_pixels_stay_where_they_are_and_are_taken_group_by_group(model):
    """No forward of the vision tower sees more than one group's patches."""
    inputs = make_inputs(prompt(5, Clip((7, 4, 6)), 6))
    seen = []
    hook = model.model.visual.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[0]))
    try:
        with quickprefill.patched(model, keep=0.5, group_frames=4):
            model.generate(**inputs, max_new_tokens=1)
    finally:
        hook.remove()
    assert seen == [48, 48, 48, 24]
