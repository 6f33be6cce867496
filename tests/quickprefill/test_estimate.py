"""estimate() says beforehand what report() says afterwards; "auto" takes the largest group that fits."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import quickprefill
from quickprefill import InputError, MemoryBudgetError
from quickprefill.budget import fit
from quickprefill.policies import KeyNorm, VidCom2
from tests.tiny import Clip, make_inputs, prompt, tiny_model

GENERATE = {"max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def inputs():
    return make_inputs(prompt(3, Clip((13, 4, 8)), 5))


@pytest.mark.spine
@pytest.mark.parametrize(
    "options",
    [
        {"keep": 1.0},
        {"keep": 0.25, "group_frames": 4},
        {"keep_tokens": 3, "first_layer": 1},
        {"keep": 0.5, "layer_decay": "linear", "group_frames": 6},
        {"keep": 0.5, "progressive_from": 1},
        {"keep": None, "policy": VidCom2(0.25, exact_total=True)},
        {"keep": 0.25, "policy": (VidCom2(0.5, exact_total=True), KeyNorm())},
    ],
    ids=lambda options: "-".join(options),
)
def test_the_estimate_is_what_happens(model, inputs, options):
    config = quickprefill.QuickPrefillConfig(**{"group_frames": 26, **options})
    guess = quickprefill.estimate(model, inputs, config)
    with quickprefill.patched(model, config):
        assert quickprefill.estimate(model, inputs) == guess
        model.generate(**inputs, **{**GENERATE, "max_new_tokens": 1})
        did = quickprefill.report(model)
    assert (guess.video_tokens, guess.groups, guess.group_frames) == (did.video_tokens, did.groups, did.group_frames)
    assert (guess.cache_bytes, guess.flops) == (did.cache_bytes, did.flops)


@pytest.mark.spine
def test_rows_of_a_batch_are_added_up(model):
    inputs = make_inputs(prompt(3, Clip((4, 4, 4)), Clip((2, 4, 4)), 5), prompt(9, Clip((6, 4, 8)), 2))
    guess = quickprefill.estimate(model, inputs, keep=0.5, group_frames=4)
    assert (guess.video_tokens, guess.groups) == (16 + 8 + 48, 2 + 1 + 3)


def test_text_of_a_row_without_a_video_stays(model):
    """prune_text means the text behind a video; such a row has none."""
    inputs = make_inputs(prompt(3, Clip((4, 4, 4)), 5), prompt(8))
    guess = quickprefill.estimate(model, inputs, keep=0.25, prune_text=True)
    one = quickprefill.estimate(model, make_inputs(prompt(3, Clip((4, 4, 4)), 5)), keep=0.25, prune_text=True)
    text = model.config.get_text_config()
    token_bytes = 2 * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads) * 4
    assert guess.cache_bytes - one.cache_bytes == 8 * token_bytes * text.num_hidden_layers


@pytest.mark.spine
def test_flops_are_counted_as_torch_counts_them():
    from torch.utils.flop_counter import FlopCounterMode

    # Eager, because the counter does not see every fused kernel.
    model = tiny_model("eager", hidden_size=96, num_attention_heads=12, num_hidden_layers=2)
    inputs = make_inputs(prompt(3, Clip((8, 8, 8)), 5))
    guess = quickprefill.estimate(model, inputs, keep=1.0, group_frames=4)
    with quickprefill.patched(model, keep=1.0, group_frames=4), FlopCounterMode(display=False) as counter:
        model.generate(**inputs, max_new_tokens=1)
    assert guess.flops == pytest.approx(counter.get_total_flops(), rel=0.15)


def test_seconds_are_known_after_the_first_prefill(model, inputs):
    with quickprefill.patched(model, keep=0.5):
        assert quickprefill.estimate(model, inputs).seconds is None
        model.generate(**inputs, **GENERATE)
        spent = sum(quickprefill.report(model).seconds.values())
        assert quickprefill.estimate(model, inputs).seconds == pytest.approx(spent)
        longer = make_inputs(prompt(3, Clip((26, 4, 8)), 5))
        assert quickprefill.estimate(model, longer).seconds > 1.9 * spent
        assert "seconds: unknown" not in str(quickprefill.estimate(model, longer))


def test_auto_takes_what_fits(model, inputs, monkeypatch):
    guess = quickprefill.estimate(model, inputs, keep=0.5, group_frames="auto")
    assert (guess.group_frames, guess.groups) == (26, 1)
    two_frames = quickprefill.estimate(model, inputs, keep=0.5, group_frames=2)
    frames = []
    for free in (0.5e6, 0.6e6, 0.8e6, 2e6):
        monkeypatch.setattr(fit, "free_bytes", lambda device, free=free: int(free))
        frames.append(quickprefill.estimate(model, inputs, keep=0.5, group_frames="auto").group_frames)
    assert frames == sorted(frames) and 2 <= frames[0] < frames[-1] == 26
    assert two_frames.activation_bytes < guess.activation_bytes
    with quickprefill.patched(model, keep=1.0, group_frames="auto"):
        patched = model.generate(**inputs, **GENERATE).sequences
        assert quickprefill.report(model).group_frames == 26
    assert torch.equal(patched, model.generate(**inputs, **GENERATE).sequences)


def test_auto_stops_where_more_does_not_help(model, monkeypatch):
    monkeypatch.setitem(fit.ENOUGH_TOKENS, "cpu", 24)
    inputs = make_inputs(prompt(3, Clip((13, 4, 8)), 5))  # 8 tokens in a slice
    assert quickprefill.estimate(model, inputs, group_frames="auto").group_frames == 6


def test_what_cannot_fit_is_refused_before_it_runs(model, inputs, monkeypatch):
    monkeypatch.setattr(fit, "free_bytes", lambda device: 1 << 16)
    with (
        quickprefill.patched(model, group_frames="auto"),
        pytest.raises(MemoryBudgetError, match=r"GiB of cache and .* one temporal slice of 8 tokens .* smaller keep"),
    ):
        model.generate(**inputs, **GENERATE)


def test_free_memory_of_this_machine_is_known():
    assert fit.free_bytes(torch.device("cpu")) > 1 << 20


def test_an_estimate_needs_a_video_that_fits_the_prompt(model, inputs):
    text = {name: value for name, value in inputs.items() if "video" not in name}
    with pytest.raises(InputError, match="hold no video"):
        quickprefill.estimate(model, text)
    with pytest.raises(InputError, match="placeholder tokens"):
        quickprefill.estimate(model, {**inputs, "video_grid_thw": torch.tensor([[3, 4, 8]])})


def test_estimates_are_frozen(model, inputs):
    with pytest.raises(dataclasses.FrozenInstanceError):
        quickprefill.estimate(model, inputs).groups = 3
