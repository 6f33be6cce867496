"""trace=True: which places of the video's grid stayed behind every stage, and when each stage ran."""

from __future__ import annotations

import sys

import pytest
import torch

import quickprefill
from quickprefill.errors import InputError
from quickprefill.policies import Cubes, KeyNorm, PruneVid, VidCom2
from tests.tiny import Clip, make_inputs, prompt, tiny_model

INPUTS = make_inputs(prompt(3, Clip((6, 4, 4)), 2, Clip((3, 4, 8)), 4))
"""24 tokens in 6 slices of 2 x 2, then 24 in 3 slices of 2 x 4; in groups of two slices: 3 and 2."""


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def traced(model, **config):
    with torch.no_grad(), quickprefill.patched(model, group_frames=4, trace=True, **config):
        cache = model(**INPUTS, logits_to_keep=1).past_key_values
        return quickprefill.report(model), cache


def test_nothing_is_traced_unless_asked_for(model):
    with torch.no_grad(), quickprefill.patched(model):
        model(**INPUTS)
        report = quickprefill.report(model)
    assert report.kept_places == report.timeline == ()


@pytest.mark.spine
def test_every_layer_of_every_group_says_what_stayed(model):
    report, _ = traced(model, keep=0.25, policy="uniform")
    assert [(one.stage, one.group, one.layer) for one in report.kept_places] == [
        ("score", group, layer) for group in range(5) for layer in range(3)
    ]
    first, last = report.kept_places[0], report.kept_places[-1]
    assert (first.video, first.first_slice, first.grid) == (0, 0, (2, 2, 2))
    assert first.places.tolist() == [2, 6]  # the middle of each of two equal stretches of eight
    assert (last.video, last.first_slice, last.grid) == (1, 2, (1, 2, 4))
    assert last.places.tolist() == [2, 6]


def test_all_places_stay_where_nothing_is_dropped(model):
    report, _ = traced(model, keep=0.5, first_layer=1)
    assert [len(one.places) for one in report.kept_places[:3]] == [8, 4, 4]


def test_heads_that_keep_their_own(model):
    report, _ = traced(model, keep=0.5, policy=KeyNorm(per_head=True))
    assert report.kept_places[0].places.shape == (2, 4)


def test_places_behind_a_compressor_are_those_of_the_grid(model):
    report, _ = traced(model, keep=0.25, policy=(VidCom2(0.5, exact_total=True), KeyNorm()))
    compress = [one for one in report.kept_places if one.stage == "compress"]
    assert [(one.video, one.grid, len(one.places)) for one in compress] == [(0, (6, 2, 2), 12), (1, (3, 2, 4), 12)]
    for whole in compress:
        slices = {place // (whole.grid[1] * whole.grid[2]) for place in whole.places.tolist()}
        scored = [one for one in report.kept_places if one.stage == "score" and one.video == whole.video]
        size = whole.grid[1] * whole.grid[2]
        for one in scored:
            here = {one.first_slice * size + place for place in one.places.tolist()}
            assert here <= set(whole.places.tolist())
        assert slices == set(range(whole.grid[0])), "VidCom2 leaves something of each slice"


def test_selection_says_what_each_layer_below_it_keeps_too(model):
    report, cache = traced(model, keep=0.5, policy=PruneVid(layer=1, merge=False))
    selected = [one for one in report.kept_places if one.stage == "select"]
    assert [(one.group, one.layer) for one in selected] == [(group, layer) for group in range(5) for layer in (0, 1)]
    stored = sum(len(one.places) for one in selected if one.layer == 0)
    assert stored == report.stored_tokens[0] == report.stored_tokens[2]
    text = INPUTS["input_ids"].shape[1] - 48
    assert cache.layers[0].keys.shape[2] == stored + text


@pytest.mark.spine
def test_the_timeline_has_every_stage_of_every_group_in_order(model):
    report, _ = traced(model, keep=0.25, policy=(VidCom2(0.5, scope="group"), KeyNorm()))
    for stage, times in {"encode": 1, "compress": 1, "decode": 1, "prune": 3}.items():
        spans = [one for one in report.timeline if one.stage == stage and one.group >= 0]
        assert [one.group for one in spans] == [group for group in range(5) for _ in range(times)]
    assert all(0 <= one.start_seconds <= one.stop_seconds for one in report.timeline)
    decode = [one for one in report.timeline if one.stage == "decode"]
    assert all(before.stop_seconds <= after.start_seconds for before, after in zip(decode, decode[1:], strict=False))
    assert list(report.seconds) == ["encode", "compress", "decode", "prune"]


class Event:
    """What a GPU's clock gives: a point in time that can only be compared."""

    made = 0

    def __init__(self):
        Event.made += 1
        self.number = Event.made

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return 1000.0 * (other.number - self.number)


@pytest.mark.parametrize(
    "config",
    [
        {"keep": 0.5},
        {"keep": 0.5, "policy": "query_attention", "progressive_from": 1},
        {"keep": 0.5, "policy": VidCom2(scope="group")},
        {"keep": 0.5, "policy": PruneVid(layer=1)},
    ],
    ids=str,
)
def test_where_time_is_told_by_events_there_are_two_a_stage_and_group(model, config, monkeypatch):
    monkeypatch.setattr(sys.modules["quickprefill.reporting"], "_clock", lambda device: Event)
    Event.made = 0
    report, _ = traced(model, **config)
    times = {}
    for one in report.timeline:
        times[one.stage, one.group] = times.get((one.stage, one.group), 0) + 1
    assert max(times.values()) == 1
    assert Event.made == 1 + 2 * len(report.timeline)
    assert {group for stage, group in times if stage == "prune"} == set(range(5))
    assert all(value > 0 for value in report.seconds.values())


@pytest.mark.parametrize("group_frames", [4, None])
def test_cubes_have_seconds(model, group_frames):
    with (
        torch.no_grad(),
        quickprefill.patched(model, group_frames=group_frames, trace=True, policy=Cubes(8, gate="fixed")),
    ):
        model.generate(**make_inputs(prompt(4, Clip((10, 4, 4)), 5)), max_new_tokens=1)
        report = quickprefill.report(model)
    assert report.cubes(fps=4.0) == ((0.0, 1.5), (1.5, 3.0), (3.0, 5.0)), "ten slices of half a second"
    for wrong in ({"fps": 0.0}, {"fps": 4.0, "video": 1}, {"fps": 4.0, "prompt": 1}):
        with pytest.raises(InputError, match="patch with trace=True and a compressor"):
            report.cubes(**wrong)


def test_cubes_of_each_prompt_of_a_batch(model):
    batch = make_inputs(prompt(4, Clip((6, 4, 4)), 5), prompt(4, Clip((10, 4, 4)), 5))
    with torch.no_grad(), quickprefill.patched(model, trace=True, policy=Cubes(8, gate="fixed")):
        model.generate(**batch, max_new_tokens=1)
        report = quickprefill.report(model)
    assert [len(report.cubes(2.0, prompt=number)) for number in range(2)] == [2, 3]
