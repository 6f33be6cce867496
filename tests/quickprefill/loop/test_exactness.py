"""The spine: with keep=1.0 a patched model gives the stock model's tokens and logits."""

import pytest
import torch

import quickprefill
from tests.quickprefill.calls import CACHE
from tests.tiny import VOCAB, Clip, make_inputs, prompt, tiny_model

PROMPTS = {
    "one slice": [prompt(3, Clip((1, 4, 4)), 4)],
    "odd grid": [prompt(5, Clip((7, 6, 10)), 6)],
    "40 slices": [prompt(2, Clip((40, 4, 4)), 5)],
    "video first": [prompt(Clip((5, 4, 6)), 3)],
    "several videos": [prompt(4, Clip((3, 4, 4)), 2, Clip((6, 8, 4)), Clip((1, 4, 4)), 7)],
    "images and videos": [
        prompt(2, Clip((1, 4, 6), image=True), 3, Clip((5, 4, 4)), 1, Clip((1, 8, 4), image=True), 4)
    ],
    "left padding": [prompt(5, Clip((7, 4, 6)), 6), prompt(2, Clip((3, 8, 4)), 2)],
    "rows of every kind": [
        prompt(5, Clip((7, 4, 6)), 6),
        prompt(2, Clip((5, 8, 4)), 3, Clip((1, 4, 4), image=True), 2, Clip((2, 4, 4)), 4),
        prompt(9),
        prompt(3, Clip((1, 4, 8), image=True), 2),
    ],
    "equal rows": [prompt(3, Clip((4, 4, 4)), 4), prompt(3, Clip((4, 4, 4)), 4)],
}
DECODING = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "returned beams": {"num_beams": 4, "num_return_sequences": 3},
    "samples": {"do_sample": True, "num_return_sequences": 3},
}


def generate(model, inputs, **options):
    torch.manual_seed(0)
    options = {"do_sample": False, "max_new_tokens": 6, **options}
    return model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)


def assert_same_generation(ours, stock, atol=1e-4):
    assert torch.equal(ours.sequences, stock.sequences)
    for step, (a, b) in enumerate(zip(ours.logits, stock.logits, strict=True)):
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-4, msg=lambda text, step=step: f"step {step}: {text}")


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return tiny_model(request.param)


@pytest.mark.parametrize("group_frames", [2, pytest.param(6, marks=pytest.mark.spine), 16, 1000])
@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_generate_equals_stock_for_any_grouping(model, prompts, group_frames):
    inputs = make_inputs(*prompts)
    stock = generate(model, inputs)
    with quickprefill.patched(model, keep=1.0, group_frames=group_frames):
        assert_same_generation(generate(model, inputs), stock)


@pytest.mark.spine
@pytest.mark.parametrize("decoding", DECODING.values(), ids=DECODING)
@pytest.mark.parametrize("prompts", ["several videos", "rows of every kind"])
def test_generate_equals_stock_for_any_decoding(model, prompts, decoding):
    inputs = make_inputs(*PROMPTS[prompts])
    stock = generate(model, inputs, **decoding)
    with quickprefill.patched(model, keep=1.0, group_frames=4):
        assert_same_generation(generate(model, inputs, **decoding), stock)


@pytest.mark.parametrize("heads", [(6, 1), (6, 6)], ids=["multi-query", "no grouping"])
def test_grouped_query_heads(heads):
    model = tiny_model(num_attention_heads=heads[0], num_key_value_heads=heads[1])
    inputs = make_inputs(*PROMPTS["odd grid"])
    stock = generate(model, inputs)
    with quickprefill.patched(model, keep=1.0, group_frames=6):
        assert_same_generation(generate(model, inputs), stock)


def test_fractional_seconds_per_slice_keep_the_hosts_positions(model):
    inputs = make_inputs(*PROMPTS["several videos"], seconds_per_slice=0.37)
    stock = generate(model, inputs)
    with quickprefill.patched(model, keep=1.0, group_frames=4):
        assert_same_generation(generate(model, inputs), stock)


@pytest.mark.spine
@pytest.mark.parametrize("logits_to_keep", [0, 1, 7, torch.tensor([-1, 3, 20])], ids=["all", "1", "7", "indices"])
@pytest.mark.parametrize("prompts", ["images and videos", "left padding"])
def test_forward_gives_the_logits_that_were_asked_for(model, prompts, logits_to_keep):
    inputs = make_inputs(*PROMPTS[prompts])
    with torch.no_grad():
        stock = model(**inputs, logits_to_keep=logits_to_keep)
        with quickprefill.patched(model, keep=1.0, group_frames=4):
            ours = model(**inputs, logits_to_keep=logits_to_keep)
    assert ours.logits.shape == stock.logits.shape
    columns = torch.arange(inputs["input_ids"].shape[1])
    columns = columns[-logits_to_keep:] if isinstance(logits_to_keep, int) else columns[logits_to_keep]
    visible = inputs["attention_mask"][:, columns].bool()  # the host's logits of padding mean nothing
    torch.testing.assert_close(ours.logits[visible], stock.logits[visible], atol=1e-4, rtol=1e-4)
    for ours_layer, stock_layer in zip(ours.past_key_values.layers, stock.past_key_values.layers, strict=True):
        assert ours_layer.get_seq_length() == stock_layer.get_seq_length()


def test_forward_as_a_tuple(model):
    inputs = make_inputs(*PROMPTS["odd grid"])
    with torch.no_grad(), quickprefill.patched(model, keep=1.0):
        logits, cache = model(**inputs, return_dict=False)[:2]
        assert torch.equal(logits, model(**inputs).logits)
        assert cache.get_seq_length() == inputs["input_ids"].shape[1]


def two_turns(model, **repeated):
    """A second question on the first turn's cache, given the whole conversation's ids, as chat programs do."""
    first = make_inputs(prompt(5, Clip((5, 4, 6)), 6))
    cache = generate(model, first, max_new_tokens=1).past_key_values
    ids = torch.cat([first["input_ids"], torch.full((1, 4), 9)], dim=1)
    given = {name: first[name] for name in repeated}
    return generate(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), **given}, **{CACHE: cache})


@pytest.mark.spine
def test_second_turn_on_the_returned_cache(model):
    stock = two_turns(model)
    with quickprefill.patched(model, keep=1.0, group_frames=4):
        assert_same_generation(two_turns(model), stock)


@pytest.mark.spine
def test_a_later_turn_may_repeat_a_video_that_is_cached(model):
    stock = two_turns(model)
    with quickprefill.patched(model, keep=1.0, group_frames=4):
        ours = two_turns(model, pixel_values_videos=True, video_grid_thw=True, second_per_grid_ts=True)
        assert_same_generation(ours, stock)


@pytest.mark.spine
def test_a_later_turn_with_a_video_of_its_own(model):
    """The host cannot do this turn by turn with its own positions, so both sides get the same ones."""
    first, second = make_inputs(prompt(5, Clip((5, 4, 6)), 6)), make_inputs(prompt(3, Clip((4, 4, 4)), 2), seed=5)
    length = first["input_ids"].shape[1] + second["input_ids"].shape[1]
    positions = torch.arange(length).expand(3, 1, -1)

    def turns():
        with torch.no_grad():
            cut = first["input_ids"].shape[1]
            cache = model(**first, position_ids=positions[..., :cut]).past_key_values
            return model(**second, position_ids=positions[..., cut:], **{CACHE: cache})

    second.pop("attention_mask")
    stock = turns()
    with quickprefill.patched(model, keep=1.0, group_frames=4):
        ours = turns()
    torch.testing.assert_close(ours.logits, stock.logits, atol=1e-4, rtol=1e-4)
    assert ours.past_key_values.get_seq_length() == length


@pytest.mark.spine
def test_prompt_lookup_decoding_crops_rejected_candidates(model):
    inputs = make_inputs(prompt(12, Clip((5, 4, 6)), 12))
    options = {"max_new_tokens": 12, "eos_token_id": VOCAB + 1}  # up to 5.5 the host looks for an end in any case
    stock = generate(model, inputs, **options)
    with quickprefill.patched(model, keep=1.0, group_frames=4):
        ours = generate(model, inputs, **options, prompt_lookup_num_tokens=3)
    assert torch.equal(ours.sequences, stock.sequences)


@pytest.mark.spine
@pytest.mark.parametrize("keep", [1.0, 0.5])
@pytest.mark.parametrize("both", [False, True], ids=["stock draft", "patched draft"])
def test_a_draft_model_changes_no_token(model, keep, both):
    """Assisted decoding: the draft proposes tokens, the model checks several at once and crops what it rejects."""
    draft, config = tiny_model(num_hidden_layers=1), {"keep": keep, "group_frames": 4}
    inputs = make_inputs(prompt(12, Clip((5, 4, 6)), 12))
    expected = model.generate(**inputs, do_sample=False, max_new_tokens=12)
    with quickprefill.patched(model, **config):
        if keep < 1:
            expected = model.generate(**inputs, do_sample=False, max_new_tokens=12)
        if both:
            quickprefill.apply(draft, **config)
        ours = model.generate(**inputs, do_sample=False, max_new_tokens=12, assistant_model=draft)
    assert torch.equal(ours, expected)


def test_bfloat16_stays_within_the_spread_of_two_stock_backends():
    inputs = make_inputs(*PROMPTS["rows of every kind"])
    with torch.no_grad():
        sdpa = tiny_model("sdpa", dtype=torch.bfloat16)
        stock = sdpa(**inputs, logits_to_keep=1).logits
        spread = (tiny_model("eager", dtype=torch.bfloat16)(**inputs, logits_to_keep=1).logits - stock).abs()
        with quickprefill.patched(sdpa, keep=1.0, group_frames=4):
            ours = sdpa(**inputs, logits_to_keep=1).logits
    assert spread.max() > 0
    assert (ours - stock).abs().mean() <= spread.mean()


def test_inference_mode_then_a_plain_second_turn(model):
    inputs = make_inputs(prompt(5, Clip((5, 4, 6)), 6))
    with quickprefill.patched(model, keep=0.5, group_frames=4):
        with torch.inference_mode():
            cache = generate(model, inputs, max_new_tokens=1).past_key_values
        turn_2 = torch.cat([inputs["input_ids"], torch.full((1, 4), 9)], dim=1)
        more = {"input_ids": turn_2, "attention_mask": torch.ones_like(turn_2)}
        assert generate(model, more, **{CACHE: cache}).sequences.shape == (1, turn_2.shape[1] + 6)
