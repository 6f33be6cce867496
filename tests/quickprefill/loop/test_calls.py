"""Calls that are not ours to change: inert without a word, or left to the stock path with one warning."""

import logging

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

import quickprefill
from quickprefill import InputError
from quickprefill.cache.layer import PrunedLayer
from tests.quickprefill.calls import CACHE
from tests.tiny import IMAGE, VIDEO, Clip, make_inputs, prompt, tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def inputs():
    return make_inputs(prompt(5, Clip((5, 4, 4)), 4))


def generate(model, inputs, **options):
    options = {"do_sample": False, "max_new_tokens": 4, "return_dict_in_generate": True, **options}
    return model.generate(**inputs, **options)


def stock_and_patched(model, run, caplog):
    stock = run()
    with quickprefill.patched(model, keep=0.5), caplog.at_level(logging.WARNING, logger="quickprefill"):
        caplog.clear()
        ours = run()
        warnings = [record.getMessage() for record in caplog.records]
        run()
        assert [record.getMessage() for record in caplog.records] == warnings, "a reason is given once"
    return stock, ours, warnings


def test_training_forward_is_inert(model, inputs, caplog):
    def run():
        output = model(**inputs, labels=inputs["input_ids"])
        return output.loss, torch.autograd.grad(output.loss, model.lm_head.weight)[0]

    stock, ours, warnings = stock_and_patched(model, run, caplog)
    assert torch.equal(stock[0], ours[0])
    assert torch.equal(stock[1], ours[1])
    assert warnings == []


@pytest.mark.parametrize("grad", [True, False])
def test_labels_or_grad_are_inert(model, inputs, caplog, grad):
    def run():
        with torch.set_grad_enabled(grad):
            return model(**inputs, labels=None if grad else inputs["input_ids"])

    stock, ours, warnings = stock_and_patched(model, run, caplog)
    assert torch.equal(stock.logits, ours.logits)
    assert type(ours.past_key_values.layers[0]) is DynamicLayer
    assert warnings == []


def test_gradient_checkpointing_in_training_mode_is_inert(caplog):
    """Such a model drops the cache that it is given, as in the rollouts of reinforcement learning."""
    model, inputs = tiny_model(), make_inputs(prompt(5, Clip((5, 4, 4)), 4))
    for layer in model.model.language_model.layers:  # what the host's own switch sets, under its many names
        layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, lambda run, *args: run(*args)
    model.train()
    with torch.no_grad():
        stock, ours, warnings = stock_and_patched(model, lambda: model(**inputs), caplog)
    assert torch.equal(stock.logits, ours.logits)
    assert warnings == []


def test_no_cache_is_inert(model, inputs, caplog):
    stock, ours, warnings = stock_and_patched(model, lambda: generate(model, inputs, use_cache=False), caplog)
    assert torch.equal(stock.sequences, ours.sequences)
    assert ours.past_key_values is None
    assert warnings == []


@pytest.mark.parametrize("parts", [prompt(6), prompt(2, Clip((1, 4, 4), image=True), 3)], ids=["text", "image"])
def test_prompts_without_video_are_inert(model, parts, caplog):
    run = lambda: generate(model, make_inputs(parts))  # noqa: E731
    stock, ours, warnings = stock_and_patched(model, run, caplog)
    assert torch.equal(stock.sequences, ours.sequences)
    assert type(ours.past_key_values.layers[0]) is DynamicLayer
    assert warnings == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cache_implementation": "static"}, "static cache|StaticCache"),
        ({"cache_implementation": "offloaded"}, "offloaded"),
        ({"output_hidden_states": True}, "output_hidden_states=True"),
    ],
    ids=["static", "offloaded", "hidden states"],
)
def test_what_cannot_be_pruned_takes_the_stock_path_with_one_warning(model, inputs, caplog, options, words):
    if options.get("cache_implementation") == "offloaded" and not torch.cuda.is_available():
        # Without a GPU the host cannot run an offloaded cache either; building one shows that it is recognised.
        from quickprefill.loop.reasons import cache_reason

        cache = DynamicCache()
        cache.offloading = True
        assert "offloaded" in cache_reason(cache, None)
        return
    stock, ours, warnings = stock_and_patched(model, lambda: generate(model, inputs, **options), caplog)
    assert torch.equal(stock.sequences, ours.sequences)
    assert len(warnings) == 1
    assert "stock model, unpruned" in warnings[0]
    assert any(word in warnings[0] for word in words.split("|"))


def test_attentions_come_from_the_stock_path(inputs, caplog):
    model = tiny_model("eager")
    run = lambda: generate(model, inputs, output_attentions=True)  # noqa: E731
    stock, ours, warnings = stock_and_patched(model, run, caplog)
    assert torch.equal(stock.attentions[0][0], ours.attentions[0][0])
    assert "output_attentions=True" in warnings[0]


def test_a_quantized_cache_is_recognised():
    from transformers.cache_utils import Cache

    from quickprefill.loop.reasons import cache_reason

    class QuantizedCache(Cache):
        pass

    reason = cache_reason(QuantizedCache(layers=[]), None)
    assert reason == "the cache is a QuantizedCache; only a DynamicCache can be pruned"


def test_features_computed_beforehand_take_the_stock_path(model, inputs, caplog):
    import inspect

    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        pytest.skip("this transformers version has no mm_encoder_outputs")
    with torch.no_grad():
        features = model.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
    rest = {name: value for name, value in inputs.items() if name != "pixel_values_videos"}

    def run():
        return generate(model, {**rest, "mm_encoder_outputs": {"video": features}})

    stock, ours, warnings = stock_and_patched(model, run, caplog)
    assert torch.equal(stock.sequences, ours.sequences)
    assert "computed beforehand" in warnings[0]


def test_prefill_chunk_size_takes_the_stock_path(model, inputs, caplog):
    import transformers

    if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23):
        pytest.skip("the host chunks video prompts since 5.23")
    run = lambda: generate(model, inputs, prefill_chunk_size=7)  # noqa: E731
    stock, ours, warnings = stock_and_patched(model, run, caplog)
    assert torch.equal(stock.sequences, ours.sequences)
    assert "prefill_chunk_size" in warnings[0]


def test_a_callers_own_cache_is_the_one_that_is_filled(model, inputs):
    cache = DynamicCache()
    with quickprefill.patched(model, keep=0.5):
        generate(model, inputs, **{CACHE: cache})
    assert all(isinstance(layer, PrunedLayer) for layer in cache.layers)
    assert cache.get_seq_length() == inputs["input_ids"].shape[1] + 3


def test_a_failed_prefill_leaves_the_callers_cache_alone(model, inputs, monkeypatch):
    with quickprefill.patched(model, keep=0.5, group_frames=4):
        cache = generate(model, inputs, max_new_tokens=1).past_key_values
        stored, keys = cache.layers[0].stored_length, cache.layers[0].keys.clone()
        calls = []

        def fail_late(module, args):
            calls.append(1)
            if len(calls) == 3:
                raise RuntimeError("out of memory")

        hook = model.model.visual.register_forward_pre_hook(fail_late)
        try:
            with pytest.raises(RuntimeError, match="out of memory"), torch.no_grad():
                model(**inputs, **{CACHE: cache}, position_ids=torch.zeros(3, *inputs["input_ids"].shape).long())
        finally:
            hook.remove()
    assert cache.layers[0].stored_length == stored
    assert torch.equal(cache.layers[0].keys, keys)


def broken(inputs, **changes):
    return {**{name: value.clone() for name, value in inputs.items()}, **changes}


@pytest.mark.parametrize("call", ["forward", "generate"])
def test_placeholders_that_do_not_match_the_grid(model, inputs, call):
    run = model if call == "forward" else lambda **kwargs: model.generate(**kwargs, max_new_tokens=1)
    ids = inputs["input_ids"].clone()
    positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
    ids[0, (ids[0] == VIDEO).nonzero()[0]] = 9
    with torch.no_grad(), quickprefill.patched(model):
        with pytest.raises(InputError, match="holds 19 video placeholder tokens.*need 20"):
            run(**broken(inputs, input_ids=ids), position_ids=positions)
        with pytest.raises(InputError, match=r"has 79 rows of patches.*needs 80"):
            run(**broken(inputs, pixel_values_videos=inputs["pixel_values_videos"][1:]), position_ids=positions)
        no_placeholder = torch.full_like(ids, 9)
        with pytest.raises(InputError, match=r"1 video\(s\) have no placeholder tokens"):
            run(**broken(inputs, input_ids=no_placeholder), position_ids=positions)


def test_image_placeholders_that_do_not_match(model):
    inputs = make_inputs(prompt(2, Clip((1, 4, 4), image=True), 2, Clip((2, 4, 4)), 2))
    ids = inputs["input_ids"].clone()
    ids[0, (ids[0] == IMAGE).nonzero()[0]] = 9
    positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
    with torch.no_grad(), quickprefill.patched(model), pytest.raises(InputError, match="image"):
        model(**broken(inputs, input_ids=ids), position_ids=positions)
    ids = inputs["input_ids"].clone()
    ids[0, 0] = IMAGE
    with torch.no_grad(), quickprefill.patched(model), pytest.raises(InputError, match="image"):
        model(**broken(inputs, input_ids=ids), position_ids=positions)


def test_progress_bar_counts_frames(model, inputs, capsys):
    with quickprefill.patched(model, keep=0.5, group_frames=4, progress=True):
        generate(model, inputs)
    assert "10/10" in capsys.readouterr().err
