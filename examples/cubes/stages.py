"""The three stages of Quicksviewer (arXiv 2504.15270, table 1) as presets of a stock Trainer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainingArguments

from quickprefill.policies.shared.learned_cubes import CubesWeights

__all__ = ["STAGES", "TRAINS", "Stage", "choose"]

TRAINS = ("adapter", "tower", "all")
"""The adapter alone; the vision tower and its projector too; everything."""
_TOWERS = ("visual", "vision_tower", "vision_model", "multi_modal_projector")


@dataclass(frozen=True)
class Stage:
    """What differs between the stages."""

    trains: str
    learning_rate: float
    frames: int
    """At most, of a video."""
    noise_share: float
    """Share of the steps in which the gate's noise is annealed."""

    def arguments(self) -> dict[str, Any]:
        """Defaults of TrainingArguments: AdamW, cosine, 2 % warm-up, one epoch of batches of one."""
        fields = {field.name for field in dataclasses.fields(TrainingArguments)}
        checkpointing = "activation" if "activation_checkpointing" in fields else "gradient"  # its name up to 5.23
        cuda = torch.cuda.is_available()
        return {
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_ratio" if "warmup_ratio" in fields else "warmup_steps": 0.02,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "num_train_epochs": 1.0,
            "per_device_train_batch_size": 1,
            f"{checkpointing}_checkpointing": True,
            f"{checkpointing}_checkpointing_kwargs": {"use_reentrant": False},
            "bf16": cuda and torch.cuda.is_bf16_supported(),
            "dataloader_num_workers": 4,
            "dataloader_pin_memory": cuda,
            "remove_unused_columns": False,
            "logging_steps": 10,
            "report_to": "none",
        }


STAGES = {
    1: Stage("adapter", learning_rate=1e-4, frames=420, noise_share=0.8),
    2: Stage("tower", learning_rate=2e-5, frames=420, noise_share=0.6),
    3: Stage("all", learning_rate=1e-5, frames=480, noise_share=0.6),
}


def choose(model: Any, trains: str) -> int:
    """Let only that part of a model train, in float32 whatever its type; returns how many parameters that are.

    Raises:
        ValueError: the model has no vision tower by a known name.
    """
    model.requires_grad_(trains == "all")
    parts = [module for module in model.modules() if isinstance(module, CubesWeights)]
    if trains == "tower":
        towers = [module for name, module in model.named_modules() if name.rpartition(".")[2] in _TOWERS]
        if not towers:
            raise ValueError(f"{type(model).__name__} has no vision tower named {', '.join(_TOWERS)}; use --trains all")
        parts += towers
    for part in parts:
        part.requires_grad_(True)
    chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in chosen:
        parameter.data = parameter.data.float()
    return sum(parameter.numel() for parameter in chosen)
