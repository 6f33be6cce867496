"""What a policy learns, trained: full width outside, fewer video tokens inside, the same answers as generate()."""

import copy
import functools

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import quickprefill
from quickprefill.errors import InputError
from quickprefill.policies import Cubes
from quickprefill.prompt.spans import Grid
from quickprefill.prompt.tokens import VideoTokens
from quickprefill.weights import weights_of
from tests.families import FAMILIES, build_inputs
from tests.quickprefill.calls import generate
from tests.tiny import PER_COLUMN, Clip, make_inputs, prompt, tiny_model

LEARNED = Cubes(frames_per_cube=4, gate="learned", resampler="attention")
CHECKPOINTING = "gradient_checkpointing_enable"
"""Its name before transformers 5.24."""
OWN = [family for family, built in FAMILIES.items() if not built.variant and not built.sparse]


def stirred(model, seed=3):
    """Move a patched model's weights away from where they start, so that they matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in weights_of(model.model).parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def labelled(inputs, answer=3):
    """Inputs with labels: the last columns of each row that hold no padding."""
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -answer:] = inputs["input_ids"][:, -answer:]
    return {**inputs, "labels": labels}


def to_the_right(inputs):
    """The same batch, padded on the right."""
    moved = dict(inputs)
    starts = (inputs["attention_mask"] == 0).sum(dim=1).tolist()
    for name in PER_COLUMN:
        moved[name] = torch.stack([row.roll(-start) for row, start in zip(inputs[name], starts, strict=True)])
    return moved


@pytest.mark.spine
@pytest.mark.parametrize("family", OWN)
def test_scoring_gives_the_logits_of_generate(family):
    model = FAMILIES[family].model()
    inputs = build_inputs(family, prompt(4, Clip((8, 8, 8)), 6))
    frames = quickprefill.FAMILIES[family].frames_per_slice(model.model)
    policy = Cubes(frames_per_cube=2 * frames, gate="learned", resampler="attention")
    with quickprefill.patched(model, policy=policy):
        stirred(model)
        ours = generate(model, inputs, max_new_tokens=1)
        report = quickprefill.report(model)
        scored = model(**labelled(inputs))
        assert report.entered_tokens == report.video_tokens // 2
    torch.testing.assert_close(scored.logits[:, -1], ours.logits[0], atol=2e-4, rtol=1e-4)
    assert scored.logits.shape[:2] == inputs["input_ids"].shape


@pytest.fixture(scope="module")
def plain():
    return tiny_model()


@pytest.fixture
def model(plain):
    return stirred(quickprefill.apply(copy.deepcopy(plain), policy=LEARNED))


BATCH = [
    prompt(5, Clip((7, 4, 6)), 6),
    prompt(2, Clip((5, 8, 4)), 3, Clip((1, 4, 4), image=True), 2, Clip((2, 4, 4)), 4),
    prompt(9),
    prompt(3, Clip((1, 4, 8), image=True), 5),
]


def test_the_loss_is_that_of_a_short_sequence(model, plain):
    inputs = labelled(make_inputs(prompt(4, Clip((9, 4, 6)), 7)))
    loss = model(**inputs).loss
    core, ids = plain.model, inputs["input_ids"]
    video = (ids[0] == 4).nonzero()[:, 0]
    positions = core.get_rope_index(
        **{name: inputs[name] for name in (*PER_COLUMN, "video_grid_thw", "second_per_grid_ts")}
    )[0]
    features = core.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
    features = torch.cat(tuple(getattr(features, "pooler_output", features)))
    tokens = VideoTokens(
        features, positions[:, 0, video], torch.arange(54), Grid(9, 2, 3, slice_frames=2), num_kept=30,
        weights=weights_of(model.model),
    )  # fmt: skip
    made = LEARNED.compress(tokens)
    embeds = core.get_input_embeddings()(ids)
    embeds[0, video[made.source]] = made.embeds
    columns = torch.cat([(ids[0] != 4).nonzero()[:, 0], video[made.source]]).sort().values
    hidden = core.language_model(inputs_embeds=embeds[:, columns], position_ids=positions[:, :, columns])[0]
    logits = plain.lm_head(hidden)[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, inputs["labels"][0, columns][1:])
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_row_of_a_batch_is_as_alone(model, side):
    inputs = make_inputs(*BATCH)
    batch = to_the_right(inputs) if side == "right" else inputs
    states = model.model(**batch, use_cache=False).last_hidden_state
    taken = {"pixel_values_videos": 0, "pixel_values": 0}
    for row, parts in enumerate(BATCH):
        held = inputs["attention_mask"][row].bool()
        alone = {name: inputs[name][row : row + 1, held] for name in PER_COLUMN}
        clips = [part for part in parts if isinstance(part, Clip)]
        for image, pixels, grid in (
            (False, "pixel_values_videos", "video_grid_thw"),
            (True, "pixel_values", "image_grid_thw"),
        ):
            own = [clip.grid for clip in clips if clip.image == image]
            number = sum(t * h * w for t, h, w in own)
            if own:
                alone |= {pixels: inputs[pixels][taken[pixels] :][:number], grid: torch.tensor(own)}
                taken[pixels] += number
        if "video_grid_thw" in alone:
            alone["second_per_grid_ts"] = torch.ones(len(alone["video_grid_thw"]))
        own = batch["attention_mask"][row].bool()
        expected = model.model(**alone, use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(states[row, own], expected, atol=1e-4, rtol=1e-4)


def test_columns_that_were_dropped_are_zero_but_the_last(model):
    inputs = make_inputs(prompt(3, Clip((8, 4, 4)), 4))
    states = model.model(**inputs, use_cache=False).last_hidden_state[0]
    video = (inputs["input_ids"][0] == 4).nonzero()[:, 0]
    zero = (states[video] == 0).all(dim=1)
    assert zero.sum() == 32 - 16 - 1
    kept = video[~zero]
    assert kept[-1] == video[-1]
    assert torch.equal(states[kept[-1]], states[kept[-2]])


def test_gradients_reach_gate_and_resampler_and_checkpointing_changes_none(model):
    inputs = labelled(make_inputs(*BATCH[:2]))
    model.train().requires_grad_(False)
    weights = weights_of(model.model).requires_grad_(True)

    def gradients():
        torch.manual_seed(5)
        model.zero_grad()
        model(**inputs).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in weights.named_parameters()}

    plain = gradients()
    assert all(bool(gradient.abs().sum() > 0) for gradient in plain.values()), plain.keys()
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
            module._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name])


@pytest.mark.parametrize("tower", [False, True])
def test_checkpointing_as_trainers_enable_it_changes_no_gradient(model, tower):
    inputs = labelled(make_inputs(*BATCH[:2]))
    model.train().requires_grad_(False)
    weights_of(model.model).requires_grad_(True)
    model.model.visual.requires_grad_(tower)

    def gradients():
        torch.manual_seed(5)
        model.zero_grad()
        model(**inputs).loss.backward()
        return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}

    plain = gradients()
    assert any(name.startswith("model.visual.") for name in plain) == tower
    name = "activation_checkpointing_enable" if hasattr(model, "activation_checkpointing_enable") else CHECKPOINTING
    getattr(model, name)({"use_reentrant": False})
    model.enable_input_require_grads()
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name])


def test_every_weight_gets_a_gradient_without_a_video(model):
    inputs = labelled(make_inputs(prompt(9)))
    model.train()(**inputs).loss.backward()
    assert all(float(p.grad.abs().sum()) == 0 for p in weights_of(model.model).parameters())


def test_training_with_noise_goes_on_drawing(model):
    inputs = labelled(make_inputs(prompt(4, Clip((12, 4, 4)), 5)))
    model.train()
    weights_of(model.model).noise = 10.0
    assert len({model(**inputs).loss.item() for _ in range(6)}) > 1


def test_the_tower_trains_too(model):
    model.train()(**labelled(make_inputs(prompt(4, Clip((8, 4, 4)), 5)))).loss.backward()
    assert model.model.visual.patch_embed.proj.weight.grad.abs().sum() > 0


def test_disabled_is_stock(model, plain):
    inputs = labelled(make_inputs(prompt(4, Clip((8, 4, 4)), 5)))
    stock = plain(**inputs).loss
    assert model(**inputs).loss != stock
    with quickprefill.disabled(model):
        assert torch.equal(model(**inputs).loss, stock)
    quickprefill.remove(model)
    assert torch.equal(model(**inputs).loss, stock)


def test_packed_rows_and_odd_masks_are_refused(model):
    inputs = make_inputs(prompt(4, Clip((4, 4, 4)), 5))
    positions = torch.arange(inputs["input_ids"].shape[1]) % 10
    without = {name: value for name, value in inputs.items() if name != "attention_mask"}
    with pytest.raises(InputError, match="packed into one row .* use packing=False"):
        model.model(**without, position_ids=positions[None], use_cache=False)
    with pytest.raises(InputError, match="packed into one row"):
        model.model(**inputs, cu_seq_lens_q=torch.tensor([0, 10]), use_cache=False)
    mask = torch.ones(1, 1, 8, 8)
    with pytest.raises(InputError, match=r"attention_mask must be \(batch, columns\).* got \(1, 1, 8, 8\)"):
        model.model(**{**inputs, "attention_mask": mask}, use_cache=False)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    with pytest.raises(InputError, match="cannot be applied to this call: inputs_embeds came"):
        model.model(**{**inputs, "input_ids": None, "inputs_embeds": embeds}, use_cache=False)


def test_labels_at_placeholders_are_told_of_once(model, caplog):
    inputs = make_inputs(prompt(4, Clip((4, 4, 4)), 5))
    labels = inputs["input_ids"].clone()
    first = model(**inputs, labels=labels).loss
    model(**inputs, labels=labels)
    assert len(caplog.records) == 1
    assert "labels are set at placeholders of a video" in caplog.text
    assert torch.isfinite(first)


def test_what_dropped_tokens_would_have_given_is_refused(model):
    inputs = labelled(make_inputs(prompt(4, Clip((4, 4, 4)), 5)))
    for asked in ("output_hidden_states", "output_attentions", "output_router_logits"):
        with pytest.raises(InputError, match=f"{asked}=True asks for what the pruned tokens would have given"):
            model(**inputs, **{asked: True})


def test_positions_of_a_video_are_no_packing(model, plain):
    inputs = make_inputs(prompt(4, Clip((8, 4, 4)), 5))
    expected = model.model(**inputs, use_cache=False).last_hidden_state
    named = {name: inputs[name] for name in (*PER_COLUMN, "video_grid_thw", "second_per_grid_ts")}
    positions = plain.model.get_rope_index(**named)[0]
    without = {name: value for name, value in inputs.items() if name != "attention_mask"}
    torch.testing.assert_close(model.model(**without, position_ids=positions).last_hidden_state, expected)
    restarts = torch.arange(inputs["input_ids"].shape[1])[None] % 10
    with pytest.raises(InputError, match="packed into one row"):
        model.model(**inputs, position_ids=restarts, use_cache=False)


def test_a_tuple_comes_where_one_is_asked_for(model):
    for parts in (prompt(9), prompt(4, Clip((4, 4, 4)), 5)):
        output = model.model(**make_inputs(parts), use_cache=False, return_dict=False)
        assert isinstance(output, tuple) and output[0].requires_grad


def test_a_rollout_in_train_mode_draws_no_noise_and_a_frozen_gate_neither(model):
    inputs = make_inputs(prompt(4, Clip((12, 4, 4)), 5))
    model.train()
    weights_of(model.model).noise = 10.0
    rollouts = [torch.stack(generate(model, inputs).logits) for _ in range(3)]
    assert all(torch.equal(one, rollouts[0]) for one in rollouts)
    weights_of(model.model).requires_grad_(False)
    losses = {model(**labelled(inputs)).loss.item() for _ in range(3)}
    with torch.no_grad():
        assert losses == {model(**labelled(inputs)).loss.item()}, "as it is scored, so it trains"


@pytest.mark.parametrize("family", [family for family in ("glm4v", "smolvlm", "qwen3_vl") if family in FAMILIES])
def test_labels_at_placeholders_are_found_in_every_family(family, caplog):
    inputs = build_inputs(family, prompt(4, Clip((8, 8, 8)), 6))
    model = quickprefill.apply(FAMILIES[family].model(), policy=LEARNED)
    model(**labelled(inputs))
    assert not caplog.records
    quickprefill.apply(model, policy=LEARNED)
    model(**inputs, labels=inputs["input_ids"])
    assert "labels are set at placeholders of a video" in caplog.text


def test_a_prompt_without_some_tokens_is_refused():
    if "video_llama_3" not in FAMILIES:
        pytest.skip("this transformers has no such model")
    model = quickprefill.apply(FAMILIES["video_llama_3"].model(), policy=LEARNED)
    with pytest.raises(InputError, match="policy cubes compares whole slices"):
        model(**labelled(build_inputs("video_llama_3", prompt(4, Clip((8, 8, 8)), 6))))
