"""LLaVA-OneVision and LLaVA-NeXT-Video: faults that are noticed, input that does not fit."""

from __future__ import annotations

import pytest
import torch

import quickprefill
from quickprefill import InputError
from quickprefill.hosts.frames import FramesHost
from quickprefill.hosts.llava_onevision import LlavaHost, LlavaOnevision
from quickprefill.policies import QueryAttention
from tests.families import FAMILIES, build_inputs
from tests.quickprefill.calls import generate
from tests.tiny import VIDEO, Clip, prompt

LLAVAS = ["llava_next_video", "llava_onevision"]
PROMPT = prompt(3, Clip((5, 0, 0)), 2, Clip((5, 0, 0)), 4)


@pytest.fixture(scope="module", params=LLAVAS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return FAMILIES[family].model()


def last_logits(model, inputs):
    with torch.no_grad():
        return model(**inputs, logits_to_keep=1).logits


def as_qwen3_vl(positions):
    """Every slice at one place, as Qwen3-VL has it; of nine tokens in both families."""

    def position_ids(host, core, call):
        placed = positions(host, core, call)
        video = call["input_ids"][0] == VIDEO
        return torch.where(video, placed - torch.arange(placed.shape[-1]) % 9, placed)

    return position_ids


def without_last(encode):
    """The newline taken for a place of the video: all places one further."""

    def videos(host, core, call):
        made = encode(host, core, call)
        for video in made:
            video._encode = lambda rows, slices, inner=video._encode: inner(rows, slices).roll(1, 0)
        return made

    return videos


FAULTS = {
    "no newline": (LlavaOnevision, "embed", lambda stock: FramesHost.embed),
    "wrong newline": (LlavaOnevision, "embed", lambda stock: lambda *given: stock(*given) * 1.05),
    "positions of slices": (FramesHost, "position_ids", as_qwen3_vl),
    "places shifted": (LlavaHost, "videos", without_last),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(monkeypatch, fault):
    model, inputs = FAMILIES["llava_onevision"].model(), build_inputs("llava_onevision", PROMPT)
    stock = last_logits(model, inputs)
    owner, name, broken = FAULTS[fault]
    with quickprefill.patched(model, keep=1.0, group_frames=4):
        torch.testing.assert_close(last_logits(model, inputs), stock, atol=1e-4, rtol=1e-4)
        monkeypatch.setattr(owner, name, broken(getattr(owner, name)))
        assert (last_logits(model, inputs) - stock).abs().max() > 3e-3


def test_a_newline_asks_nothing(model, family):
    """With only what closes it behind the video there is no question."""
    inputs = build_inputs(family, prompt(3, Clip((5, 0, 0))))
    with quickprefill.patched(model, policy=QueryAttention()), pytest.raises(InputError, match="nothing stands there"):
        generate(model, inputs)


def test_input_that_does_not_fit_is_named(family, model):
    inputs = build_inputs(family, PROMPT)
    pixels = inputs["pixel_values_videos"]
    with quickprefill.patched(model), torch.no_grad():
        with pytest.raises(InputError, match=r"pixel_values_videos must be a tensor \(videos, frames, .* got \(2, 5,"):
            generate(model, {**inputs, "pixel_values_videos": pixels[:, :, 0, 0]})
        with pytest.raises(InputError, match="placeholder tokens, but its 2 video"):
            generate(model, {**inputs, "pixel_values_videos": pixels[:, :4]})
        with pytest.raises(InputError, match=r"1 video\(s\) have no placeholder tokens"):
            generate(model, {**inputs, "pixel_values_videos": torch.cat([pixels, pixels[:1]])})
