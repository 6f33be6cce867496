"""What a policy learns is a module of the model: it stays, moves, is saved and goes with the patch."""

import copy
import dataclasses
import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

import quickprefill
from quickprefill import CubesCallback, QuickPrefillConfig
from quickprefill.errors import AdapterError, ConfigError
from quickprefill.policies import Cubes, KeyNorm
from quickprefill.weights import weights_of
from tests.quickprefill.calls import generate
from tests.tiny import Clip, make_inputs, prompt, tiny_model

LEARNED = Cubes(frames_per_cube=4, gate="learned", resampler="attention")


@pytest.fixture(scope="module")
def plain():
    return tiny_model()


@pytest.fixture
def model(plain):
    model = quickprefill.apply(copy.deepcopy(plain), policy=LEARNED)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in weights_of(model.model).parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


@pytest.fixture(scope="module")
def inputs():
    return make_inputs(prompt(4, Clip((10, 4, 6)), 6))


def answer(model, inputs):
    return torch.stack(generate(model, inputs).logits)


def test_weights_are_the_models_own(model, plain):
    names = {name for name, _ in model.named_parameters()}
    assert {"model.quickprefill.gate.log_prior", "model.quickprefill.resampler.query"} <= names
    assert "(quickprefill): CubesWeights(" in repr(model)
    assert not weights_of(model.model).training
    assert weights_of(model.train().model).training
    model.to(torch.bfloat16)
    assert weights_of(model.model).gate.look.weight.dtype is torch.bfloat16


def test_remove_leaves_no_trace(model, plain, inputs):
    quickprefill.remove(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert "quickprefill" not in repr(model)
    assert torch.equal(answer(model, inputs), answer(plain, inputs))


def test_a_second_apply_keeps_what_fits(model):
    weights = weights_of(model.model)
    quickprefill.apply(model, policy=Cubes(frames_per_cube=8, gate="learned", resampler="attention"))
    assert weights_of(model.model) is weights
    quickprefill.apply(model, policy=Cubes(frames_per_cube=8, gate="learned"))
    assert weights_of(model.model) is not weights
    assert weights_of(model.model).resampler is None
    quickprefill.apply(model, policy=Cubes(frames_per_cube=8))
    assert weights_of(model.model) is None


@pytest.mark.parametrize("inside", [LEARNED, "value_norm", Cubes(frames_per_cube=8, gate="learned")])
def test_patched_puts_the_same_module_back(model, inputs, inside):
    weights, before = weights_of(model.model), answer(model, inputs)
    with quickprefill.patched(model, policy=inside):
        assert (weights_of(model.model) is weights) == (inside is LEARNED)
    assert weights_of(model.model) is weights
    assert torch.equal(answer(model, inputs), before)


def test_weights_follow_the_model_through_a_block_without_them(model):
    model.train()
    with quickprefill.patched(model, policy="value_norm"):
        model.eval().to(torch.bfloat16)
    assert not weights_of(model.model).training
    assert {part.dtype for part in weights_of(model.model).parameters()} == {torch.bfloat16}


def test_a_wrapped_module_comes_back_as_it_was(model):
    weights = weights_of(model.model)
    weights.gate.look = torch.nn.Sequential(weights.gate.look)  # as LoRA wraps linear layers
    with quickprefill.patched(model, policy="value_norm"):
        pass
    assert weights_of(model.model) is weights


def test_weights_that_lie_elsewhere_are_fetched(model, inputs):
    """accelerate's hooks bring a module's own weights, so each must be used in a call of its module."""
    from accelerate import cpu_offload

    expected = answer(model, inputs)
    cpu_offload(weights_of(model.model), execution_device="cpu")
    assert torch.equal(answer(model, inputs), expected)


def test_patched_alone_leaves_nothing(plain):
    with quickprefill.patched(plain, policy=LEARNED):
        assert weights_of(plain.model) is not None
    assert weights_of(plain.model) is None


def test_a_copy_has_its_own(model, inputs):
    twin = copy.deepcopy(model)
    before = answer(model, inputs)
    assert torch.equal(answer(twin, inputs), before)
    with torch.no_grad():
        weights_of(twin.model).resampler.out.weight.add_(1.0)
    assert not torch.equal(answer(twin, inputs), before)
    assert torch.equal(answer(model, inputs), before)


@pytest.mark.parametrize("target", [None, "class"])
def test_a_class_has_no_place_for_weights(plain, target):
    with pytest.raises(ConfigError, match="need a model to live in; call apply\\(model, ...\\) with a model"):
        quickprefill.apply(type(plain) if target else None, policy=LEARNED)
    assert not hasattr(type(plain), "_quickprefill")


def test_any_group_size_gives_the_same_cubes(model, inputs):
    answers = []
    for group_frames in (2, 6, None):
        quickprefill.apply(model, policy=LEARNED, group_frames=group_frames)
        answers.append(answer(model, inputs))
    torch.testing.assert_close(answers[0], answers[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(answers[0], answers[2], atol=1e-4, rtol=1e-4)


def test_a_score_may_prune_behind_cubes(model, inputs):
    quickprefill.apply(model, policy=(LEARNED, KeyNorm()), keep=0.25)
    generate(model, inputs)
    report = quickprefill.report(model)
    assert (report.video_tokens, report.entered_tokens, set(report.stored_tokens)) == (60, 30, {15})


def test_adapter_round_trip(model, plain, inputs, tmp_path):
    expected = answer(model, inputs)
    folder = quickprefill.save_adapter(model, tmp_path / "cubes")
    assert sorted(path.name for path in folder.iterdir()) == ["quickprefill.json", "quickprefill.safetensors"]
    described = json.loads((folder / "quickprefill.json").read_text())
    assert (described["format"], described["model_type"], described["hidden_size"]) == (1, "qwen2_5_vl", 48)
    fresh = quickprefill.load_adapter(copy.deepcopy(plain), folder)
    assert torch.equal(answer(fresh, inputs), expected)
    wider = dataclasses.replace(LEARNED, frames_per_cube=8)
    wider = quickprefill.load_adapter(copy.deepcopy(plain), folder, QuickPrefillConfig(policy=wider))
    generate(wider, inputs)
    assert quickprefill.report(wider).entered_tokens == 3 * 6, "2.5 cubes"


def test_adapters_that_do_not_fit_change_nothing(model, plain, tmp_path):
    folder = quickprefill.save_adapter(model, tmp_path / "cubes")
    target = copy.deepcopy(plain)
    other = tiny_model(hidden_size=96)
    with pytest.raises(AdapterError, match="a qwen2_5_vl of width 48 .* but this model is a qwen2_5_vl of width 96"):
        quickprefill.load_adapter(other, folder)
    tensors = load_file(folder / "quickprefill.safetensors")
    tensors["gate.look.weight"] = torch.zeros(7, 48)
    save_file(tensors, folder / "quickprefill.safetensors")
    with pytest.raises(AdapterError, match=r"gate.look.weight: \(7, 48\) in the folder, \(48, 48\) in this model"):
        quickprefill.load_adapter(target, folder)
    (folder / "quickprefill.safetensors").write_bytes(b"broken")
    with pytest.raises(AdapterError, match="quickprefill.safetensors cannot be read"):
        quickprefill.load_adapter(target, folder)
    (folder / "quickprefill.json").write_text("{")
    with pytest.raises(AdapterError, match="is not the description of an adapter"):
        quickprefill.load_adapter(target, folder)
    (folder / "quickprefill.json").write_text('{"format": 9, "model_type": "", "hidden_size": 1, "config": {}}')
    with pytest.raises(AdapterError, match="not of format 1: 9"):
        quickprefill.load_adapter(target, folder)
    with pytest.raises(AdapterError, match="holds no weights of a policy"):
        quickprefill.load_adapter(target, tmp_path)
    for wrong in (target, quickprefill.apply(target, policy="value_norm")):
        with pytest.raises(AdapterError, match="there is nothing to save"):
            quickprefill.save_adapter(wrong, tmp_path)
    assert "quickprefill.gate" not in " ".join(target.state_dict())


class Rows(torch.utils.data.Dataset):
    """Prompts with a video, each with labels at its end."""

    def __init__(self, number):
        self.rows = [make_inputs(prompt(4, Clip((8, 4, 4)), 5), seed=seed) for seed in range(number)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = dict(self.rows[index])
        labels = torch.full_like(row["input_ids"], -100)
        labels[:, -3:] = row["input_ids"][:, -3:]
        return {**row, "labels": labels}


def train(model, folder, steps=4, **options):
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=1, max_steps=steps, save_steps=2, learning_rate=1e-2,
        report_to=[], use_cpu=True, logging_steps=1, remove_unused_columns=False, disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, train_dataset=Rows(4), data_collator=lambda rows: rows[0], callbacks=[CubesCallback()]
    )
    trainer.train()
    return trainer


def test_a_stock_trainer_trains_and_a_checkpoint_loads(model, plain, inputs, tmp_path):
    model.requires_grad_(False)
    weights = weights_of(model.model).requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = train(model, tmp_path)
    after = model.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {f"model.quickprefill.{name}" for name, _ in weights.named_parameters()}
    assert weights.noise == 0.01
    assert trainer.state.log_history[-1]["step"] == 4
    loaded = quickprefill.load_adapter(copy.deepcopy(plain), tmp_path / "checkpoint-4")
    assert torch.equal(answer(loaded, inputs), answer(model.eval(), inputs))
    (tmp_path / "checkpoint-4" / "quickprefill.json").unlink()
    with pytest.raises(AdapterError, match="says with which policy its weights go"):
        quickprefill.load_adapter(copy.deepcopy(plain), tmp_path / "checkpoint-4")
    patched = quickprefill.apply(copy.deepcopy(plain), policy=LEARNED)
    assert torch.equal(
        answer(quickprefill.load_adapter(patched, tmp_path / "checkpoint-4"), inputs), answer(model, inputs)
    )


def test_the_noise_is_annealed():
    callback = CubesCallback()
    assert callback.noise(0, 100) == 1.0
    assert callback.noise(30, 100) == pytest.approx(0.505)
    assert callback.noise(60, 100) == callback.noise(99, 100) == pytest.approx(0.01)
    for wrong in ({"first": 0.1, "last": 0.2}, {"share": 0}, {"share": 1.5}):
        with pytest.raises(ConfigError, match="noise must fall"):
            CubesCallback(**wrong)


@pytest.mark.parametrize("patch", [False, True])
def test_training_nothing_is_told_of(plain, tmp_path, caplog, patch):
    target = copy.deepcopy(plain)
    if patch:
        quickprefill.apply(target, policy=LEARNED)
        weights_of(target.model).requires_grad_(False)
    with caplog.at_level(logging.WARNING, logger="quickprefill"):
        train(target, tmp_path, steps=1)
    assert ("none of what the policy could learn trains" if patch else "no policy that learns") in caplog.text


class AsPeftWraps(torch.nn.Module):
    """What PEFT's modules_to_save puts in the place of a module: the original, and a copy for each of its adapters."""

    def __init__(self, original):
        super().__init__()
        self.original_module = original
        self.modules_to_save = torch.nn.ModuleDict({name: copy.deepcopy(original) for name in ("default", "other")})
        self.active_adapters = ["default"]

    def forward(self, *args):
        return self.modules_to_save[self.active_adapters[0]](*args)


def test_an_adapter_is_what_peft_trains(model, plain, inputs, tmp_path):
    wrapped = AsPeftWraps(weights_of(model.model))
    model.model.add_module("quickprefill", wrapped)
    with torch.no_grad():
        for parameter in wrapped.modules_to_save["default"].parameters():
            parameter.add_(0.1)
    expected = answer(model, inputs)
    folder = quickprefill.save_adapter(model, tmp_path)
    assert torch.equal(answer(quickprefill.load_adapter(copy.deepcopy(plain), folder), inputs), expected)
    quickprefill.load_adapter(model, folder)
    assert weights_of(model.model) is wrapped


@pytest.fixture
def alone():
    """A process group of one."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_weights_that_fsdp_has_spread_are_saved_whole(model, plain, inputs, tmp_path, alone):
    expected = answer(model, inputs)
    torch.distributed.fsdp.fully_shard(weights_of(model.model), mesh=alone)
    folder = quickprefill.save_adapter(model, tmp_path)
    assert torch.equal(answer(quickprefill.load_adapter(copy.deepcopy(plain), folder), inputs), expected)
