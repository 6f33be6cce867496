"""Every family: with keep=1 the stock model's tokens and logits; below, what a dense masked forward computes."""

from __future__ import annotations

import functools

import pytest
import torch

import quickprefill
from quickprefill import QuickPrefillConfig, release
from quickprefill.policies import PruneVid, VidCom2
from tests.families import BUILT, EARLY, ENCODES_FIRST, FAMILIES, build_inputs, grids, places
from tests.masked_reference import layer_masks, masked
from tests.tiny import Clip, prompt

PROMPTS = {
    "one video": [prompt(3, Clip((7, 4, 8)), 4)],
    "video first": [prompt(Clip((5, 4, 6)), 3)],
    "several videos": [prompt(4, Clip((3, 4, 4)), 2, Clip((6, 8, 4)), Clip((1, 4, 4)), 7)],
    "images between": [prompt(2, Clip((1, 4, 6), image=True), 3, Clip((5, 4, 4)), 1, Clip((1, 8, 4), image=True), 4)],
    "padded batch": [
        prompt(5, Clip((7, 4, 6)), 6),
        prompt(2, Clip((5, 8, 4)), 3, Clip((1, 4, 4), image=True), 2, Clip((2, 4, 4)), 4),
        prompt(9),
    ],
}


def prompts_of(family, name):
    """A batch of prompts, without images where the stock model takes none beside a video."""
    if FAMILIES[family].mixes:
        return PROMPTS[name]
    return [[part for part in parts if isinstance(part, int) or not part.image] for parts in PROMPTS[name]]


def test_every_family_is_built_here():
    assert set(BUILT) == set(quickprefill.FAMILIES)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request, family):
    if FAMILIES[family].variant and request.param == "eager":
        pytest.skip("a variant takes the same path here as its family")
    return FAMILIES[family].model(request.param)


def generate(model, inputs, **options):
    torch.manual_seed(0)
    options = {"do_sample": False, "max_new_tokens": 4, **options}
    return model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)


def assert_same(ours, stock):
    assert torch.equal(ours.sequences, stock.sequences)
    for a, b in zip(ours.logits, stock.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def stock(family, model):
    """What the stock model says to the prompts of a name, asked once."""
    return functools.cache(lambda prompts: generate(model, build_inputs(family, *prompts_of(family, prompts))))


@pytest.mark.parametrize("group_frames", [2, pytest.param(6, marks=pytest.mark.spine), None])
@pytest.mark.parametrize("prompts", PROMPTS)
def test_generate_equals_stock(family, model, stock, prompts, group_frames):
    inputs, expected = build_inputs(family, *prompts_of(family, prompts)), stock(prompts)
    with quickprefill.patched(model, keep=1.0, group_frames=group_frames):
        assert_same(generate(model, inputs), expected)
        assert quickprefill.report(model).groups >= len(grids(family, model, inputs)) > 0


@pytest.mark.spine
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}], ids=str)
def test_beams_and_samples_equal_stock(family, model, options):
    if EARLY and family.startswith("qwen3_vl"):
        pytest.skip("generate() of transformers 4 cannot repeat the slices of Qwen3-VL's videos")
    if ENCODES_FIRST and "video" not in model.input_modalities:
        pytest.skip("this release takes the model for one of text, and mixes the videos of a prompt's beams up")
    inputs = build_inputs(family, *PROMPTS["several videos"])
    stock = generate(model, inputs, **options) if FAMILIES[family].beams else generate(model, inputs)
    with quickprefill.patched(model, keep=1.0, group_frames=4):
        ours = generate(model, inputs, **options)
        assert quickprefill.report(model).prompts == (1 if FAMILIES[family].whole_beams else 3)
    if FAMILIES[family].beams:
        assert_same(ours, stock)
    else:  # what the stock model would go on from
        torch.testing.assert_close(ours.logits[0], stock.logits[0].expand(3, -1), atol=1e-4, rtol=1e-4)


def test_a_forward_gives_the_logits_that_were_asked_for(family, model):
    inputs = build_inputs(family, *prompts_of(family, "images between"))
    with torch.no_grad():
        for wanted in (0, 3, torch.tensor([-1, 2, 9])):
            stock = model(**inputs, logits_to_keep=wanted).logits
            with quickprefill.patched(model, keep=1.0, group_frames=4):
                torch.testing.assert_close(model(**inputs, logits_to_keep=wanted).logits, stock, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"first_layer": 1},
        pytest.param({"policy": "query_attention"}, marks=pytest.mark.spine),
        {"policy": "uniform", "layer_decay": "linear"},
    ],
    ids=str,
)
@pytest.mark.parametrize("prompts", ["one video", "several videos"])
def test_a_pruned_prefill_is_a_dense_masked_forward(family, model, prompts, options):
    """All logits of the prompt, the text between slices included, then those of three greedy steps."""
    inputs = build_inputs(family, *prompts_of(family, prompts))
    videos, ids = grids(family, model, inputs), inputs["input_ids"][0]
    config = {"policy": "value_norm", "keep": 0.3, "group_frames": 4, "trace": True, **options}
    text = model.config.get_text_config()
    with torch.no_grad(), quickprefill.patched(model, **config):
        ours = model(**inputs).logits
        masks = layer_masks(len(ids), places(family, model, ids, videos), quickprefill.report(model), videos)
        steps = generate(model, inputs)
    with torch.no_grad(), masked(text, masks):
        expected = model(**inputs, use_cache=False).logits
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(steps.logits[0], expected[:, -1], atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        plain = model(**inputs).logits
    assert (plain - expected).abs().max() > 1e-2, "dropping tokens matters"


POLICIES = [
    *(name for name in sorted(quickprefill.POLICIES) if name != "prunevid"),
    PruneVid(layer=1),
    PruneVid(layer=0, select_tokens=False),
    (VidCom2(0.5), "key_norm"),
]


def needs_whole_slices(policy):
    compressor = QuickPrefillConfig(policy=policy).compressor
    return compressor is not None and compressor.whole_slices


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_every_policy_keeps_what_keep_says(family, policy):
    model = FAMILIES[family].model()
    inputs = build_inputs(family, *PROMPTS["several videos"])
    videos = grids(family, model, inputs)
    number = sum(video.num_tokens for video in videos)
    with quickprefill.patched(model, keep=0.25, policy=policy) as patched:
        if FAMILIES[family].sparse and needs_whole_slices(policy):
            for call in (generate, quickprefill.estimate):
                with pytest.raises(quickprefill.InputError, match="compares whole slices"):
                    call(patched, inputs)
            return
        output = generate(model, inputs)
        report = quickprefill.report(model)
    assert all(torch.isfinite(logits).all() for logits in output.logits)
    slices = sum(video.slices for video in videos)
    assert abs(report.stored_tokens[-1] - number / 4) <= slices


def test_progressive_pruning_takes_features_for_later_layers_along(family):
    model = FAMILIES[family].model()
    inputs = build_inputs(family, *PROMPTS["one video"])
    with torch.no_grad():
        for layer in range(3):
            with quickprefill.patched(model, keep=0.5, progressive_from=layer, group_frames=4):
                assert torch.isfinite(last(model, inputs)).all()
            with quickprefill.patched(model, keep=1.0, progressive_from=layer, group_frames=4):
                ours = last(model, inputs)
                with quickprefill.disabled(model):
                    torch.testing.assert_close(ours, last(model, inputs), atol=1e-4, rtol=1e-4)


def last(model, inputs):
    return model(**inputs, logits_to_keep=1).logits[:, -1]  # some hosts make all of them


@pytest.mark.spine
def test_what_takes_the_stock_path_finds_its_features(family, model, caplog):
    """A static cache is not for us; the deferred video, its levels included, computes itself."""
    if family.startswith("qwen3_5") and release.is_older_than("5.14"):
        pytest.skip("this release has no masks for linear attention in a static cache")
    inputs = build_inputs(family, *PROMPTS["one video"])
    stock = generate(model, inputs, cache_implementation="static", disable_compile=True)
    with quickprefill.patched(model, keep=0.5):
        assert_same(generate(model, inputs, cache_implementation="static", disable_compile=True), stock)
    assert "stock model, unpruned" in caplog.text


BESIDE_US = {
    "chunked": {"prefill_chunk_size": 8},
    "hidden states": {"output_hidden_states": True},
    "beams on a static cache": {"num_beams": 2, "cache_implementation": "static", "disable_compile": True},
}
STOCK_CANNOT = (ValueError, IndexError)
CHUNKS_SILENTLY = ("glm4v", "glm4v_moe", "glm46v", "internvl", "smolvlm")
"""Where a chunk does not tell that there is a video: GLM's brings no features at all, the others' show pictures."""


@pytest.mark.parametrize("way", BESIDE_US)
def test_what_is_not_for_us_is_the_stock_models_own(family, model, way, caplog):
    inputs = build_inputs(family, *PROMPTS["one video"])
    try:
        stock = generate(model, inputs, **BESIDE_US[way])
    except STOCK_CANNOT as error:
        pytest.skip(f"the stock model cannot do it: {error}")
    with quickprefill.patched(model, keep=0.5):
        assert_same(generate(model, inputs, **BESIDE_US[way]), stock)
    if way != "chunked" or family not in CHUNKS_SILENTLY:
        assert "stock model, unpruned" in caplog.text
