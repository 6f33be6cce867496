"""What apply() cannot take is refused before anything changes, in words that name the way out."""

import dataclasses
from pathlib import Path

import pytest
from transformers import pipeline

import quickprefill
from quickprefill import ConfigError, QuickPrefillConfig, UnsupportedModelError
from quickprefill.policies import KeyNorm, PruneVid, VidCom2
from tests.quickprefill.calls import forward, stored
from tests.tiny import Clip, make_inputs, prompt, tiny_model

CHECKPOINT = Path(__file__).parents[2] / "examples" / "tiny-qwen2.5-vl"
INPUTS = make_inputs(prompt(3, Clip((4, 4, 4)), 3))


@pytest.fixture
def model():
    return tiny_model()


@pytest.mark.parametrize("function", [quickprefill.apply, quickprefill.estimate, quickprefill.patched])
def test_a_bare_number_is_told_to_be_keep(model, function):
    with pytest.raises(ConfigError, match=r"keep=0\.5"):
        if function is quickprefill.estimate:
            function(model, INPUTS, 0.5)
        elif function is quickprefill.patched:
            with function(model, 0.5):
                pass
        else:
            function(model, 0.5)
    assert "quickprefill" not in repr(model)


@pytest.mark.parametrize("config", ["vidcom2", {"keep": 0.5}, KeyNorm(), True])
def test_anything_else_for_a_config_is_named(model, config):
    with pytest.raises(ConfigError, match="QuickPrefillConfig|policy="):
        quickprefill.apply(model, config)
    assert "quickprefill" not in repr(model)


def test_a_pipeline_is_looked_through_or_named():
    pipe = pipeline("image-text-to-text", model=str(CHECKPOINT), device="cpu")
    try:
        quickprefill.apply(pipe, keep=0.5)
    except UnsupportedModelError as error:
        assert "pipe.model" in str(error)
    else:
        assert "quickprefill" in repr(pipe.model)


def test_a_name_of_a_checkpoint_is_told_to_be_loaded():
    with pytest.raises(UnsupportedModelError, match="from_pretrained"):
        quickprefill.apply("Qwen/Qwen2.5-VL-7B-Instruct")


def test_a_model_without_its_head_is_told_which_class_has_one(model):
    with pytest.raises(UnsupportedModelError, match="Qwen2_5_VLForConditionalGeneration"):
        quickprefill.apply(model.model)
    with pytest.raises(UnsupportedModelError, match="Qwen2_5_VLForConditionalGeneration"):
        quickprefill.apply(type(model.model))
    assert "quickprefill" not in repr(model)


def test_tensor_parallel_models_are_refused(model):
    """Each rank would keep tokens of its own."""
    model._tp_size = 2
    assert model.tp_size == 2, "as from_pretrained(tp_plan=...) marks it"
    with pytest.raises(UnsupportedModelError, match=r"(?i)tensor.parallel"):
        quickprefill.apply(model)
    assert "quickprefill" not in repr(model)
    model._tp_size = 1
    quickprefill.apply(model)
    assert "quickprefill" in repr(model)


@pytest.mark.parametrize(
    "options",
    [
        {"policy": ("prunevid", "key_norm")},
        {"policy": ("vidcom2", "prunevid")},
        {"policy": ("key_norm", "value_norm")},
        {"policy": "query_attention", "prune_text": True},
        {"policy": KeyNorm(per_head=True), "progressive_from": 0},
        {"policy": PruneVid(merge=False, select_tokens=False)},
        {"first_layer": 2, "progressive_from": 1},
        {"group_frames": 3},
        {"keep": 0},
        {"keep": 1.5},
        {"keep": "0.5"},
        {"keep": True},
        {"keep": float("nan")},
        {"keep_tokens": 0},
        {"layer_decay": 1.0},
        {"first_layer": 3},
        {"policy": PruneVid(layer=3)},
        {"policy": "no_such_policy"},
        {"no_such_field": 1},
    ],
    ids=str,
)
def test_what_does_not_go_together_changes_nothing(model, options):
    quickprefill.apply(model, keep=0.25)
    with pytest.raises(ConfigError):
        quickprefill.apply(model, **options)
    assert "keep=0.25" in repr(model)
    assert stored(forward(model, INPUTS).past_key_values) == [8 + 4] * 3


def test_print_shows_every_field_of_the_config(model):
    values = {
        "keep": 0.25,
        "keep_tokens": 7,
        "group_frames": 32,
        "progress": True,
        "first_layer": 1,
        "layer_decay": 0.5,
        "progressive_from": 2,
        "see_past": False,
        "prune_text": True,
        "trace": True,
    }
    assert {*values, "policy"} == {field.name for field in dataclasses.fields(QuickPrefillConfig)}
    with quickprefill.patched(model, policy="value_norm", **values):
        text = repr(model)
    for name, value in values.items():
        assert f"{name}={value}" in text
    assert "policy=ValueNorm(largest=True" in text


def test_print_shows_a_ratio_that_wins_over_keep(model):
    with quickprefill.patched(model, keep=0.5, policy=VidCom2(0.25)):
        assert "keep=0.5 (the policy's own 0.25 wins), " in repr(model)
        forward(model, INPUTS)
        assert quickprefill.report(model).entered_tokens < 0.4 * quickprefill.report(model).video_tokens
    with quickprefill.patched(model):
        assert "keep=0.5 (default), " in repr(model)
