"""The Qwen family: faults that the comparison with the stock model must notice."""

from __future__ import annotations

import pytest
import torch

import quickprefill
from quickprefill.hosts.qwen import QwenHost
from quickprefill.hosts.qwen3_vl import Qwen3_VL
from quickprefill.hosts.transformers import TransformersHost
from tests.families import FAMILIES, build_inputs, skip_without
from tests.quickprefill.calls import forward
from tests.tiny import Clip, prompt

skip_without("qwen3_vl", "qwen2_5_vl")


def without_levels(layer):
    """A decoder layer behind which the tower's features for later layers are dropped, not added."""

    def dropped(host, core, index, hidden, rotary, cache):
        width = core.config.get_text_config().hidden_size
        hidden = torch.cat([hidden[..., :width], torch.zeros_like(hidden[..., width:])], dim=-1)
        return layer(host, core, index, hidden, rotary, cache)

    return dropped


def positions_of_text(host, core, call):
    """One position a column, as in LLaVA."""
    return TransformersHost.position_ids(host, core, call).expand(3, -1, -1)


FAULTS = {
    "no deepstack": ("qwen3_vl", Qwen3_VL, "layer", without_levels(Qwen3_VL.layer)),
    "positions of text": ("qwen2_5_vl", QwenHost, "position_ids", positions_of_text),
    "positions of text behind times": ("qwen3_vl", QwenHost, "position_ids", positions_of_text),
}


@pytest.mark.parametrize("fault", [None, *FAULTS])
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_a_fault_is_noticed(family, fault, monkeypatch):
    if fault is not None:
        served, host, method, wrong = FAULTS[fault]
        if served != family:
            pytest.skip("a fault of the other family")
        monkeypatch.setattr(host, method, wrong)
    model, inputs = FAMILIES[family].model(), build_inputs(family, prompt(3, Clip((6, 8, 8)), 4))
    stock = forward(model, inputs).logits[:, -1]
    with quickprefill.patched(model, keep=1.0, group_frames=4):
        apart = (forward(model, inputs).logits[:, -1] - stock).abs().max()
    assert apart < 1e-4 if fault is None else apart > 1e-2
