"""`keep` is one dial: the share of the video tokens that stays, whatever the policy and however it is given."""

import dataclasses

import pytest
import torch

import quickprefill
from quickprefill import QuickPrefillConfig
from quickprefill.policies import KeyNorm, PruneVid, VidCom2
from tests.quickprefill.calls import forward, generate, stored
from tests.tiny import VIDEO, Clip, make_inputs, prompt, tiny_model

GRIDS = {"8 in a slice": Clip((6, 4, 8)), "16 in a slice": Clip((6, 8, 8))}
EXACT = sorted(set(quickprefill.POLICIES) - {"prunevid"})


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def video_stored(model, clip, *config, **options):
    """Video tokens in each layer's cache behind a generate(), and in the vision tower's output."""
    inputs = make_inputs(prompt(3, clip, 5))
    with quickprefill.patched(model, *config, group_frames=4, **options):
        output = generate(model, inputs, max_new_tokens=1)
        report = quickprefill.report(model)
    assert report.video_tokens == clip.num_tokens
    assert stored(output.past_key_values) == [4 + 6 + count for count in report.stored_tokens]
    return report.stored_tokens


@pytest.mark.parametrize("keep", [0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("clip", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("policy", EXACT)
def test_keep_is_what_stays_under_every_policy(model, policy, clip, keep):
    assert video_stored(model, clip, keep=keep, policy=policy) == (keep * clip.num_tokens,) * 3


@pytest.mark.parametrize("keep", [0.25, 0.5])
@pytest.mark.parametrize("clip", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("layer", [0, 1])
def test_keep_is_about_what_prunevid_leaves_behind_its_layer(model, clip, keep, layer):
    behind = video_stored(model, clip, keep=keep, policy=PruneVid(layer=layer))[layer + 1 :]
    assert all(abs(count - keep * clip.num_tokens) <= clip.grid[0] for count in behind)


@pytest.mark.parametrize("policy", EXACT)
def test_a_config_takes_any_policy_as_an_override(model, policy):
    clip = GRIDS["8 in a slice"]
    assert 0 < video_stored(model, clip, QuickPrefillConfig(), policy=policy)[-1] < clip.num_tokens
    expected = (clip.num_tokens / 4,) * 3
    assert video_stored(model, clip, QuickPrefillConfig(keep=0.25), policy=policy) == expected
    assert video_stored(model, clip, QuickPrefillConfig(policy=policy), keep=0.25) == expected
    assert video_stored(model, clip, dataclasses.replace(QuickPrefillConfig(keep=0.25), policy=policy)) == expected


def test_keep_is_not_filled_in():
    config = QuickPrefillConfig()
    assert config.keep is None
    assert config.to_dict()["keep"] is None
    assert QuickPrefillConfig.from_json(config.to_json()) == config
    assert dataclasses.replace(config, policy="vidcom2").keep is None


SCORES = sorted(set(quickprefill.POLICIES) - {"cubes", "prunevid", "vidcom2", "query_attention"})


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("policy", SCORES)
def test_every_score_prunes_the_text_too(policy, attention):
    model = tiny_model(attention)
    inputs = make_inputs(prompt(3, Clip((4, 4, 4)), 9))
    with quickprefill.patched(model, keep=0.5, prune_text=True, policy=policy, group_frames=4):
        output = generate(model, inputs, max_new_tokens=3)
    assert stored(output.past_key_values) == [4 + 8 + 5 + 2] * 3
    assert all(torch.isfinite(step).all() for step in output.logits)


# A slice that a compressor found worth more keeps more in the caches as well.

SLICES, SLICE_TOKENS, ODD = 8, 16, 5


def one_odd_slice():
    """A still video but for one slice."""
    inputs = make_inputs(prompt(3, Clip((SLICES, 8, 8)), 5))
    pixels = inputs["pixel_values_videos"].view(SLICES, 64, -1)
    still = pixels[:1] + 0.01 * pixels
    still[ODD] = pixels[ODD]
    return {**inputs, "pixel_values_videos": still.flatten(0, 1)}


def tokens_of_each_slice(model, inputs, whole, **config):
    """How many tokens of each slice stand in the first layer's cache; its keys are those of an unpruned prefill."""
    with quickprefill.patched(model, group_frames=2, **config):
        keys = forward(model, inputs, logits_to_keep=1).past_key_values.layers[0].keys[0].flatten(2)
    keys = keys.transpose(0, 1).flatten(1)
    distance, column = (keys[:, None] - whole).abs().amax(-1).min(dim=1)
    assert distance.max() < 1e-4 and len(set(column.tolist())) == len(column)
    video = (inputs["input_ids"][0] == VIDEO).nonzero()[:, 0]
    inside = column[(column >= video[0]) & (column <= video[-1])] - video[0]
    return torch.bincount(inside // SLICE_TOKENS, minlength=SLICES).tolist()


def test_an_unusual_slice_keeps_its_larger_share(model):
    inputs = one_odd_slice()
    with quickprefill.patched(model, keep=1.0):
        whole = forward(model, inputs, logits_to_keep=1).past_key_values.layers[0].keys[0].transpose(0, 1).flatten(1)
    entered = tokens_of_each_slice(model, inputs, whole, policy=VidCom2(retention_ratio=0.5))
    others = [count for number, count in enumerate(entered) if number != ODD]
    assert entered[ODD] >= 1.8 * max(others), "VidCom2 gives the odd slice about twice as many"
    kept = tokens_of_each_slice(model, inputs, whole, keep=0.25, policy=(VidCom2(retention_ratio=0.5), KeyNorm()))
    assert abs(sum(kept) - SLICES * SLICE_TOKENS / 4) <= SLICES / 2
    for number in set(range(SLICES)) - {ODD}:
        assert 1.5 <= kept[ODD] / kept[number] <= 2.7
