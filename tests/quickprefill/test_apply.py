"""apply(), remove(), patched(): visible, reversible, and nothing else touched."""

import copy
import dataclasses
import inspect
import logging

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2_5_VLForConditionalGeneration

import quickprefill
from quickprefill import QuickPrefillConfig, UnsupportedModelError
from quickprefill.cache.layer import PrunedLayer
from tests.tiny import Clip, make_inputs, prompt, tiny_model

HOST = Qwen2_5_VLForConditionalGeneration


def snapshot(model):
    """Everything in the namespace of every submodule and of every class of the host, by identity."""
    spaces = {name: dict(vars(module)) for name, module in model.named_modules()}
    spaces.update({str(kind): dict(vars(kind)) for kind in type(model).__mro__})
    return spaces


def assert_unchanged(before, after):
    assert before.keys() == after.keys()
    for space, names in before.items():
        assert names.keys() == after[space].keys(), space
        for name, value in names.items():
            assert after[space][name] is value, (space, name)


def prunes(model):
    inputs = make_inputs(prompt(3, Clip((4, 4, 4)), 3))
    with torch.no_grad():
        cache = model(**inputs, logits_to_keep=1).past_key_values
    return isinstance(cache.layers[0], PrunedLayer)


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def class_patch():
    yield
    quickprefill.remove()
    assert "_quickprefill" not in vars(HOST)


@pytest.mark.spine
def test_remove_leaves_no_trace(model):
    before = snapshot(model)
    assert quickprefill.apply(model, keep=0.5) is model
    assert prunes(model)
    assert quickprefill.remove(model) is model
    model.model.rope_deltas = before["model"]["rope_deltas"]  # the host's own note of its last prompt
    assert_unchanged(before, snapshot(model))
    assert not prunes(model)


def test_remove_without_apply_does_nothing(model):
    before = snapshot(model)
    quickprefill.remove(model)
    quickprefill.remove()
    assert_unchanged(before, snapshot(model))


def test_other_instances_are_not_touched(model):
    other = tiny_model()
    before = snapshot(other)
    quickprefill.apply(model)
    assert_unchanged(before, snapshot(other))
    assert not prunes(other)


def test_a_second_apply_replaces_the_first(model):
    before = snapshot(model)
    quickprefill.apply(model, keep=0.25)
    quickprefill.apply(model, keep=0.75, policy="uniform")
    assert "keep=0.75" in repr(model)
    assert "keep=0.25" not in repr(model)
    quickprefill.remove(model)
    assert_unchanged(before, snapshot(model))


@pytest.mark.spine
def test_print_shows_the_patch(model):
    assert "quickprefill" not in repr(model)
    quickprefill.apply(model, keep=0.25, group_frames=32, policy="value_norm")
    line = next(line for line in repr(model).splitlines() if "quickprefill" in line)
    for part in ("keep=0.25", "keep_tokens=None", "group_frames=32", "ValueNorm(largest=True"):
        assert part in line
    quickprefill.remove(model)
    assert "quickprefill" not in repr(model)


def test_one_info_line(model, caplog):
    with caplog.at_level(logging.INFO, logger="quickprefill"):
        quickprefill.apply(model, keep=0.25)
    assert len(caplog.records) == 1
    assert "Qwen2_5_VLForConditionalGeneration" in caplog.text
    assert "keep=0.25" in caplog.text


@pytest.mark.spine
def test_patched_restores_what_was_there(model):
    before = snapshot(model)
    with quickprefill.patched(model, QuickPrefillConfig(keep=0.25)) as same:
        assert same is model
        assert "keep=0.25" in repr(model)
        with quickprefill.patched(model, keep=0.75):
            assert "keep=0.75" in repr(model)
        assert "keep=0.25" in repr(model)
    assert_unchanged(before, snapshot(model))


def test_patched_restores_after_an_error(model):
    before = snapshot(model)
    with pytest.raises(KeyError), quickprefill.patched(model):
        raise KeyError
    assert_unchanged(before, snapshot(model))


def test_overrides_change_fields_of_the_config(model):
    quickprefill.apply(model, QuickPrefillConfig(keep=0.25, group_frames=8), group_frames=32)
    assert "keep=0.25" in repr(model)
    assert "group_frames=32" in repr(model)


@pytest.mark.spine
@pytest.mark.parametrize("target", [None, HOST], ids=["None", "class"])
def test_class_patch_reaches_models_built_earlier_and_later(model, class_patch, target):
    before = snapshot(model)
    assert quickprefill.apply(target, keep=0.5) is target
    assert prunes(model)
    assert prunes(tiny_model())
    assert "keep=0.5" in repr(model)
    quickprefill.remove(target)
    assert not prunes(model)
    model.model.rope_deltas = before["model"]["rope_deltas"]
    assert_unchanged(before, snapshot(model))


def test_an_instance_patch_wins_over_the_class_patch(model, class_patch):
    inputs = make_inputs(prompt(3, Clip((4, 4, 4)), 3))
    stored = {}
    quickprefill.apply(keep=0.5)
    for name, keep in (("class", None), ("instance", 0.25)):
        if keep:
            quickprefill.apply(model, keep=keep)
        with torch.no_grad():
            stored[name] = model(**inputs, logits_to_keep=1).past_key_values.layers[0].stored_length
    assert stored == {"class": 3 + 1 + 8 + 1 + 3, "instance": 3 + 1 + 4 + 1 + 3}
    assert model(**inputs, labels=inputs["input_ids"]).loss.requires_grad  # left to the stock forward by both
    quickprefill.remove(model)
    assert prunes(model)


def test_a_wrapper_around_the_model_is_looked_through(model):
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

    wrapper = Wrapper(model)
    assert quickprefill.apply(wrapper, keep=0.5) is wrapper
    assert prunes(model)
    quickprefill.remove(wrapper)
    assert not prunes(model)


def test_a_deep_copy_is_patched_on_its_own(model):
    quickprefill.apply(model, keep=0.5)
    clone = copy.deepcopy(model)
    assert clone.forward.__self__ is clone
    quickprefill.remove(model)
    assert prunes(clone)
    assert not prunes(model)
    quickprefill.remove(clone)
    assert not prunes(clone)


def test_a_deep_copy_keeps_the_report(model):
    quickprefill.apply(model, keep=0.5)
    assert prunes(model)
    clone = copy.deepcopy(model)
    ours, copied = quickprefill.report(model), quickprefill.report(clone)
    assert dataclasses.replace(copied, seconds={}) == dataclasses.replace(ours, seconds={})
    assert copied.seconds == pytest.approx(ours.seconds)
    assert prunes(clone)


def test_signatures_stay_readable(model):
    """generate() and pipelines decide by the signature what they may pass."""
    before = {name: inspect.signature(getattr(model, name)) for name in ("forward", "extra_repr")}
    quickprefill.apply(model)
    assert {name: inspect.signature(getattr(model, name)) for name in before} == before


@pytest.mark.spine
def test_accelerate_hooks_before_and_after(model):
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    class Count(ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            Count.calls += 1
            return args, kwargs

    inputs = make_inputs(prompt(3, Clip((4, 4, 4)), 3))
    expected = model.generate(**inputs, max_new_tokens=3)

    hook_first = copy.deepcopy(model)
    add_hook_to_module(hook_first, Count())
    before = snapshot(hook_first)
    quickprefill.apply(hook_first, keep=1.0)
    assert torch.equal(hook_first.generate(**inputs, max_new_tokens=3), expected)
    quickprefill.remove(hook_first)
    hook_first.model.rope_deltas = before["model"]["rope_deltas"]
    assert_unchanged(before, snapshot(hook_first))

    hook_last = copy.deepcopy(model)
    quickprefill.apply(hook_last, keep=1.0)
    add_hook_to_module(hook_last, Count())
    Count.calls = 0
    assert torch.equal(hook_last.generate(**inputs, max_new_tokens=3), expected)
    assert Count.calls == 3
    remove_hook_from_module(hook_last)


@pytest.mark.spine
@pytest.mark.filterwarnings("ignore:You are calling .generate")  # the host's, up to 5.17, for weights on "meta"
@pytest.mark.parametrize("config", [{"keep": 1.0}, {"group_frames": "auto"}, {"policy": "query_attention"}], ids=str)
def test_weights_that_accelerate_brings_for_each_call(model, config):
    from accelerate import cpu_offload

    inputs = make_inputs(prompt(3, Clip((4, 4, 4)), 3))
    config = {"group_frames": 2, **config}
    with quickprefill.patched(model, **config):
        expected = model.generate(**inputs, max_new_tokens=3)
    offloaded = cpu_offload(copy.deepcopy(model), execution_device="cpu")
    assert all(parameter.is_meta for parameter in offloaded.parameters())
    with quickprefill.patched(offloaded, **config):
        assert torch.equal(offloaded.generate(**inputs, max_new_tokens=3), expected)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: nn.Linear(2, 2), r"cannot patch Linear \(model_type None\)"),
        (
            lambda: LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
                )
            ),
            "'llama'",
        ),
        (lambda: nn.Linear, "cannot patch Linear"),
        (lambda: "Qwen/Qwen2.5-VL-7B-Instruct", "cannot patch the name"),
    ],
)
def test_unknown_models_name_the_supported_ones(build, words):
    with pytest.raises(UnsupportedModelError, match=words):
        quickprefill.apply(build())
    with pytest.raises(UnsupportedModelError, match=r"Qwen2_5_VLForConditionalGeneration.*qwen2_5_vl"):
        quickprefill.apply(build())


@pytest.mark.spine
def test_layers_of_an_unknown_kind_are_refused(model, monkeypatch):
    from transformers import cache_utils

    class Strange(cache_utils.DynamicLayer):
        pass

    if not hasattr(cache_utils, "DYNAMIC_LAYER_TYPE_MAPPING"):
        pytest.skip("this release has no table in which somebody could put layers of another kind")
    monkeypatch.setitem(cache_utils.DYNAMIC_LAYER_TYPE_MAPPING, "full_attention", Strange)
    before = snapshot(model)
    with pytest.raises(UnsupportedModelError, match=r"cache has Strange; layers that a prefill can pass are Dynamic"):
        quickprefill.apply(model)
    assert_unchanged(before, snapshot(model))


@pytest.mark.spine
def test_an_absent_seam_is_named_before_anything_changes(model, monkeypatch):
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

    monkeypatch.delattr(modeling_qwen2_5_vl.Qwen2_5_VLModel, "get_video_features")
    before = snapshot(model)
    with pytest.raises(UnsupportedModelError, match=r"lacks Qwen2_5_VLModel\.get_video_features"):
        quickprefill.apply(model)
    assert_unchanged(before, snapshot(model))
