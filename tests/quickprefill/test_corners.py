"""Calls at the edges of what a prefill by groups can take: right, refused, or the stock model's."""

from __future__ import annotations

import gc
import threading
import weakref
from dataclasses import dataclass

import pytest
import torch
from transformers import DynamicCache

import quickprefill
from quickprefill import ConfigError
from quickprefill.policies import Compressor, PruneVid, Selector
from tests.quickprefill.calls import CACHE, forward, generate, stored
from tests.tiny import FIRST_WORD, Clip, make_inputs, prompt, tiny_model

INPUTS = make_inputs(prompt(3, Clip((4, 4, 4)), 3))
SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def sliding():
    return tiny_model(**SLIDING)


def assert_stock(model, inputs, caplog, **config):
    """The call gives what the stock model gives, step by step, with a warning that says why."""
    expected = generate(model, inputs)
    with quickprefill.patched(model, **config):
        ours = generate(model, inputs)
    for a, b in zip(ours.logits, expected.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert "stock model, unpruned" in caplog.text


def test_sliding_layers_without_the_past_are_stock(sliding, caplog):
    assert_stock(sliding, INPUTS, caplog, keep=0.5, see_past=False)


def test_a_selector_that_reads_a_sliding_layer_is_stock(sliding, caplog):
    assert_stock(sliding, INPUTS, caplog, policy=PruneVid(layer=1, attention="causal"))


@pytest.mark.parametrize("cache", [lambda: {}, lambda: {CACHE: DynamicCache()}], ids=["none", "empty"])
def test_a_batch_of_prompts_before_sliding_layers_is_stock(sliding, cache, caplog):
    inputs = make_inputs(prompt(3, Clip((4, 4, 4)), 3), prompt(5, Clip((2, 4, 4)), 2))
    expected = generate(sliding, inputs)
    with quickprefill.patched(sliding, keep=1.0):
        ours = generate(sliding, inputs, **cache())
    assert torch.equal(ours.sequences, expected.sequences)
    assert "sliding window" in caplog.text


def test_padding_of_a_later_turn_is_hidden_from_sliding_layers(sliding):
    def turns():
        with torch.no_grad():
            both = {name: torch.cat([value, value]) for name, value in INPUTS.items()}
            cache = sliding(**both, use_cache=True).past_key_values
            ids = torch.full((2, 5), 9)
            mask = torch.ones(2, both["input_ids"].shape[1] + 5, dtype=torch.long)
            mask[0, -5:-2] = 0
            positions = torch.arange(mask.shape[1] - 5, mask.shape[1]).expand(3, 2, -1)
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
            return sliding(**inputs, **{CACHE: cache}).logits[:, -1]

    expected = turns()
    with quickprefill.patched(sliding, keep=1.0, group_frames=4):
        torch.testing.assert_close(turns(), expected, atol=1e-4, rtol=1e-4)


def test_embeddings_beside_ids_are_stock(model, caplog):
    embeds = torch.randn(*INPUTS["input_ids"].shape, 48)
    expected = forward(model, INPUTS, inputs_embeds=embeds).logits
    with quickprefill.patched(model, keep=0.5):
        assert torch.equal(forward(model, INPUTS, inputs_embeds=embeds).logits, expected)
    assert "inputs_embeds" in caplog.text


def test_a_video_behind_a_padded_turn_is_stock(model, caplog):
    words = torch.cat([torch.zeros(1, 4, dtype=torch.long), torch.full((1, 6), FIRST_WORD)], dim=1)
    mask = torch.cat([torch.zeros(1, 4), torch.ones(1, 6)], dim=1).long()
    positions = torch.arange(10 + INPUTS["input_ids"].shape[1]).expand(3, 1, -1)

    def turns():
        with torch.no_grad():
            cache = model(input_ids=words, attention_mask=mask, position_ids=positions[..., :10]).past_key_values
            whole = torch.cat([mask, INPUTS["attention_mask"]], dim=1)
            inputs = {**INPUTS, "attention_mask": whole, "position_ids": positions[..., 10:]}
            return model(**inputs, **{CACHE: cache}).logits

    expected = turns()
    with quickprefill.patched(model, keep=1.0):
        torch.testing.assert_close(turns(), expected, atol=1e-4, rtol=1e-4)
    assert "padding" in caplog.text


def test_text_without_a_video_is_never_pruned(model):
    """Not even with prune_text, and not in a batch."""
    inputs = make_inputs(prompt(3, Clip((4, 4, 4)), 9), prompt(20))
    with quickprefill.patched(model, keep=0.25, prune_text=True):
        batch = generate(model, inputs)
        alone = generate(model, {name: inputs[name][1:, -20:] for name in ("input_ids", "attention_mask")})
    torch.testing.assert_close(batch.logits[0][1], alone.logits[0][0], atol=1e-4, rtol=1e-4)


def test_threads_that_share_a_model_do_not_mix_their_hidden_states(model):
    expected = {}
    inputs = [make_inputs(prompt(3, Clip((6, 4, 4)), 3), seed=seed) for seed in range(2)]
    with quickprefill.patched(model, keep=0.5, policy="output_norm", group_frames=2):
        for number, one in enumerate(inputs):
            expected[number] = forward(model, one, logits_to_keep=1).logits
        wrong = []

        def work(number):
            for _ in range(15):
                try:
                    ours = forward(model, inputs[number], logits_to_keep=1).logits
                    wrong.extend([] if torch.allclose(ours, expected[number], atol=1e-5) else [number])
                except Exception as error:
                    wrong.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert wrong == []


def test_rows_of_a_padded_batch_can_be_taken_before_a_video(model):
    inputs = make_inputs(prompt(3, Clip((4, 4, 4)), 3), prompt(1, Clip((2, 4, 4)), 2))
    later = make_inputs(prompt(2, Clip((3, 4, 4)), 3), seed=4)
    later.pop("attention_mask")
    with torch.no_grad(), quickprefill.patched(model, keep=0.5):
        cache = model(**inputs).past_key_values
        cache.batch_select_indices(torch.tensor([1]))
        length = cache.get_seq_length() + later["input_ids"].shape[1]
        positions = torch.arange(length - later["input_ids"].shape[1], length).expand(3, 1, -1)
        assert torch.isfinite(model(**later, position_ids=positions, **{CACHE: cache}).logits).all()
        assert cache.get_seq_length() == length


def test_a_selector_may_need_no_question(model):
    @dataclass(frozen=True)
    class First(Selector):
        uses_question = False

        def select(self, seen):
            return torch.arange(seen.num_kept)

    with quickprefill.patched(model, keep=0.25, policy=First()):
        assert stored(forward(model, INPUTS).past_key_values)[-1] == 8 + 4


@pytest.mark.parametrize(
    "given", [[0], torch.ones(16, dtype=torch.bool), torch.empty(0).long(), torch.arange(17)], ids=str
)
def test_what_a_selector_returns_is_checked(model, given):
    @dataclass(frozen=True)
    class Odd(Selector):
        def select(self, seen):
            return given

    with quickprefill.patched(model, policy=Odd()), pytest.raises(ConfigError, match=r"Odd\.select\(\) must"):
        forward(model, INPUTS)


def test_what_a_compressor_returns_is_checked(model):
    @dataclass(frozen=True)
    class Narrow(Compressor):
        def compress(self, tokens):
            return tokens.embeds[:4]

    with quickprefill.patched(model, policy=Narrow()), pytest.raises(ConfigError, match=r"must return VideoTokens"):
        forward(model, INPUTS)


def test_in_training_a_forward_on_a_generated_cache_is_stock(model):
    model.train()
    with quickprefill.patched(model, keep=0.25):
        cache = generate(model, INPUTS).past_key_values
        before = stored(cache)[0]
        later = {name: value for name, value in INPUTS.items() if name != "attention_mask"}
        positions = torch.arange(50, 50 + later["input_ids"].shape[1]).expand(3, 1, -1)
        forward(model, later, **{CACHE: cache}, position_ids=positions)
    assert stored(cache)[0] == before + later["input_ids"].shape[1]


def test_gradients_behind_a_pruned_prefill(model):
    def loss():
        model.zero_grad()
        with torch.no_grad():
            cache = model(**INPUTS, use_cache=True).past_key_values
        model(input_ids=torch.full((1, 3), 9), **{CACHE: cache}, labels=torch.full((1, 3), 9)).loss.backward()
        return model.lm_head.weight.grad.clone(), model.model.language_model.layers[0].self_attn.q_proj.weight.grad

    expected = [part.clone() for part in loss()]
    with quickprefill.patched(model, keep=1.0, group_frames=4):
        for ours, stock in zip(loss(), expected, strict=True):
            torch.testing.assert_close(ours, stock, atol=1e-5, rtol=1e-4)


def test_an_attention_class_of_ones_own(model):
    eager = tiny_model("eager")
    expected = forward(eager, INPUTS).logits

    class Own(type(eager.model.language_model.layers[0].self_attn)):
        pass

    for layer in eager.model.language_model.layers:
        layer.self_attn.__class__ = Own
    with quickprefill.patched(eager, keep=1.0, group_frames=4):
        torch.testing.assert_close(forward(eager, INPUTS).logits, expected, atol=1e-4, rtol=1e-4)


def test_a_patched_model_is_freed_at_once():
    model = quickprefill.apply(tiny_model(), keep=0.5)
    forward(model, INPUTS)
    gone = weakref.ref(model)
    gc.collect()
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()
