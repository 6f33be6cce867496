"""Policies from outside the package: one method on the base of its stage, and nothing else."""

from dataclasses import dataclass

import pytest
import torch

import quickprefill
from quickprefill import ConfigError, policies
from quickprefill.policies import KeyNorm, Policy, VidCom2
from tests.quickprefill.calls import forward, generate
from tests.tiny import VIDEO, Clip, make_inputs, prompt, tiny_model

INPUTS = make_inputs(prompt(3, Clip((6, 4, 8)), 2, Clip((4, 4, 8)), 5))
"""Two videos of 48 and 32 tokens, 8 in a slice."""
KEPT = 20
"""A quarter of them."""


def corner_first():
    """Within each slice the earlier places win."""

    class CornerFirst(policies.Scorer):
        def score(self, kv):
            slice_tokens = kv.grid.height * kv.grid.width
            assert kv.values.shape == kv.keys.shape and kv.keys.shape[2] == len(kv.places)
            return -(kv.places % slice_tokens).float().expand(kv.keys.shape[0], -1)

    return CornerFirst()


def every_nth(ratio=None):
    """Evenly spaced tokens enter the decoder."""

    class EveryNth(policies.Compressor):
        compress_ratio = ratio

        def compress(self, tokens):
            number = tokens.embeds.shape[0]
            return tokens.take(torch.arange(tokens.num_kept) * number // tokens.num_kept)

    return EveryNth()


def most_seen():
    """What the question attends to goes on behind a layer."""

    @dataclass(frozen=True)
    class MostSeen(policies.Selector):
        power: float = 1.0

        def select(self, seen):
            received = seen.attention.pow(self.power).sum(dim=(0, 1))
            return received.topk(seen.num_kept).indices.sort().values

    return MostSeen(power=2.0)


OWN = {"scorer": corner_first, "compressor": every_nth, "selector": most_seen}


def video_keys(output, layer=0):
    """A cache's keys in front of the text behind the last video, as rows."""
    keys = output.past_key_values.layers[layer].keys[0]
    return keys.transpose(0, 1).flatten(1)[: -(5 + 1)]


@pytest.fixture
def model():
    return tiny_model()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("stage", OWN)
def test_a_policy_of_ones_own_keeps_what_keep_says(stage, attention):
    model = tiny_model(attention)
    with quickprefill.patched(model, keep=0.25, policy=OWN[stage](), group_frames=4):
        generate(model, INPUTS)
        report = quickprefill.report(model)
        assert type(OWN[stage]()).__name__ in repr(model)
    assert report.video_tokens == 80
    assert report.stored_tokens[-1] == KEPT
    assert report.entered_tokens == (KEPT if stage == "compressor" else 80)


@pytest.mark.parametrize("stage", OWN)
def test_a_policy_of_ones_own_that_keeps_everything_is_stock(model, stage):
    expected = model.generate(**INPUTS, max_new_tokens=4, do_sample=False)
    with quickprefill.patched(model, keep=1.0, policy=OWN[stage](), group_frames=4):
        assert torch.equal(model.generate(**INPUTS, max_new_tokens=4, do_sample=False), expected)


def test_a_scorer_knows_the_places_of_its_tokens(model):
    """Of each slice's 8 tokens the first two stay."""
    with quickprefill.patched(model, keep=1.0):
        whole = video_keys(forward(model, INPUTS))
    with quickprefill.patched(model, keep=0.25, policy=corner_first(), group_frames=4):
        kept = video_keys(forward(model, INPUTS))
    video = (INPUTS["input_ids"][0] == VIDEO).nonzero()[:, 0]
    chosen = set(video.view(-1, 8)[:, :2].flatten().tolist())
    text = set(range(len(whole))) - set(video.tolist())
    torch.testing.assert_close(kept, whole[sorted(chosen | text)], atol=1e-5, rtol=1e-5)


def test_a_scorer_knows_the_places_of_what_a_compressor_left(model):
    seen = []

    class Watch(policies.Scorer):
        def score(self, kv):
            seen.append((kv.grid, kv.places.tolist(), kv.num_kept))
            return -kv.places.float().expand(kv.keys.shape[0], -1)

    both = (VidCom2(retention_ratio=0.5), Watch())
    with quickprefill.patched(model, keep=0.25, policy=both, group_frames=12):
        forward(model, INPUTS)
        assert quickprefill.report(model).stored_tokens == (KEPT,) * 3
    for grid, places, num_kept in seen:
        assert places == sorted(set(places)) and places[-1] < grid.slices * grid.height * grid.width
        assert num_kept < len(places) < grid.slices * grid.height * grid.width
        assert {place // 8 for place in places} == set(range(grid.slices)), "VidCom2 keeps some of every slice"


def test_own_stages_compose_with_the_packages(model):
    with quickprefill.patched(model, keep=0.25, policy=(every_nth(ratio=0.5), KeyNorm()), group_frames=4):
        generate(model, INPUTS)
        assert quickprefill.report(model).stored_tokens == (KEPT,) * 3


def test_a_scorers_answer_must_fit(model):
    class OneScore(policies.Scorer):
        def score(self, kv):
            return kv.keys.new_zeros(1, 1)

    with (
        quickprefill.patched(model, keep=0.25, policy=OneScore()),
        pytest.raises(ConfigError, match=r"OneScore\.score"),
    ):
        forward(model, INPUTS)


class BareScore(Policy):
    def score(self, kv):
        return -kv.keys.float().norm(dim=-1).sum(dim=1)


class BareCompress(Policy):
    def compress(self, tokens):
        return tokens.take(torch.arange(0, tokens.embeds.shape[0], 4))


class BareSelect(Policy):
    def select(self, attention, pools=None):
        return attention.sum(dim=(0, 1)).topk(4).indices.sort().values


@pytest.mark.parametrize(
    ("policy", "base"),
    [(BareScore, "Scorer"), (BareCompress, "Compressor"), (BareSelect, "Selector")],
    ids=["score", "compress", "select"],
)
def test_a_stage_without_its_base_is_refused_by_apply(model, policy, base):
    with pytest.raises(ConfigError, match=base):
        quickprefill.apply(model, policy=policy())
    assert "quickprefill" not in repr(model)
