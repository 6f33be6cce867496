"""What the runs of train_clients.py share: the model, the data, and what is compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer

import quickprefill
from examples.cubes.data import Lines
from examples.cubes.prompts import Collator
from examples.cubes.stages import choose
from quickprefill.policies import Cubes
from quickprefill.weights import own_weights

TINY = "examples/tiny-qwen2.5-vl"
LIMITS = {"nframes": 16, "min_pixels": 3136, "max_pixels": 3136}
STEPS = 6
POLICY = Cubes(frames_per_cube=8, gate="learned", resampler="attention")
OPTIONS: dict[str, Any] = {
    **{"max_steps": STEPS, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "learning_rate": 1e-2},
    **{"remove_unused_columns": False, "logging_steps": 1, "report_to": [], "use_cpu": True, "seed": 0},
    **{"disable_tqdm": True, "bf16": False},
}


def build() -> tuple[Any, Any]:
    """The patched model, of which the adapter alone trains, and the collator."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(TINY, dtype=torch.float32)
    quickprefill.apply(model, policy=POLICY)
    choose(model, "adapter")
    return model, Collator(AutoProcessor.from_pretrained(TINY))


def rows(folder: Path) -> Lines:
    """Questions about clips, and two without one."""
    return Lines(str(folder / "questions.jsonl"), None, LIMITS)


def weights(model: Any) -> dict[str, torch.Tensor]:
    """A copy of what the policy has learned."""
    core = next(module for module in model.modules() if "quickprefill" in module._modules)
    found = own_weights(core)
    assert found is not None
    return {name: tensor.detach().clone() for name, tensor in found.state_dict().items()}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> str:
    """How many of the tensors have changed."""
    return f"{sum(not torch.equal(before[name], after[name]) for name in before)} of {len(before)}"


def losses(trainer: Trainer) -> list[float]:
    """Of each step."""
    return [round(float(step["loss"]), 4) for step in trainer.state.log_history if "loss" in step]
