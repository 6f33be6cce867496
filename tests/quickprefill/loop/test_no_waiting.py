"""The group loop never waits for its device: on the meta device there is nothing that could be read back."""

import contextlib

import pytest
import torch

import quickprefill
from quickprefill.policies import KeyNorm, VidCom2
from tests.families import FAMILIES, build_inputs
from tests.tiny import Clip, make_inputs, prompt, tiny_model

pytestmark = pytest.mark.spine

# What these leave, or how much of it, is only known once it has been read.
WAITING = {"cubes", "prunevid", "vidcom2"}


PROMPT = prompt(3, Clip((3, 4, 4)), 4, Clip((4, 4, 4)), 5)


@pytest.fixture(autouse=True)
def autocast_knows_meta(monkeypatch):
    """Early hosts ask for it, or turn it off around their rotary embedding; torch has none for this device."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


def prefill(attention, family=None, **config):
    """One prefill of several groups whose weights, pixels, hidden states and cache lie on the meta device."""
    model = (FAMILIES[family].model if family else tiny_model)(attention).to("meta")
    inputs = build_inputs(family, PROMPT) if family else make_inputs(PROMPT)
    with torch.no_grad(), quickprefill.patched(model, group_frames=4, **config):
        output = model(**inputs, use_cache=True, logits_to_keep=1)
        assert quickprefill.report(model).groups > 1
    return output


def test_reading_from_the_meta_device_fails():
    tensor = torch.ones(3, device="meta")
    for read in (torch.Tensor.tolist, torch.Tensor.cpu, torch.nonzero, lambda t: t[0].item(), lambda t: bool(t.any())):
        with pytest.raises((NotImplementedError, RuntimeError)):
            read(tensor)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_group_waits(attention):
    output = prefill(attention, keep=0.5)
    assert output.logits.is_meta
    assert output.past_key_values.layers[0].keys.is_meta


# Experts have no grouped products in float32 on the meta device; some heads ask for the logits of all columns; the
# get_image_features() of SmolVLM looks for empty pictures.
@pytest.mark.parametrize(
    "family", [name for name, built in FAMILIES.items() if built.chooses and "_moe" not in name and name != "smolvlm"]
)
def test_no_family_waits(family):
    assert prefill("sdpa", family, keep=0.5).logits.is_meta


@pytest.mark.parametrize("policy", sorted(set(quickprefill.POLICIES) - WAITING - {"key_norm"}))
def test_no_policy_waits(policy):
    assert prefill("sdpa", keep=0.5, policy=policy).logits.is_meta


@pytest.mark.parametrize(
    "config",
    [
        {"keep": 1.0},
        {"keep": 0.5, "progressive_from": 1},
        {"keep": 0.5, "see_past": False},
        {"keep": 0.5, "prune_text": True},
        {"keep": 0.5, "policy": KeyNorm(per_head=True)},
        {"policy": VidCom2(0.5, exact_total=True, scope="group")},
    ],
    ids=str,
)
def test_no_option_waits(config):
    assert prefill("sdpa", **config).logits.is_meta
