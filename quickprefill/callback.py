"""CubesCallback: what a stock Trainer should do while a gate learns where cubes begin."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from quickprefill.adapters import DESCRIPTION, describe
from quickprefill.errors import ConfigError
from quickprefill.policies.shared.learned_cubes import CubesWeights

__all__ = ["CubesCallback"]

logger = logging.getLogger("quickprefill")


class CubesCallback(TrainerCallback):
    """Anneals the noise in a learned gate's logits, and puts quickprefill.json beside each checkpoint.

    The noise falls along a cosine from `first` to `last` in the first `share` of all steps, and stays there
    (Quicksviewer, arXiv 2504.15270, section 3; its stage 1 takes 0.8). It follows the number of the step, so that a
    resumed run goes on where it stopped.
    """

    def __init__(self, first: float = 1.0, last: float = 0.01, share: float = 0.6) -> None:
        if not 0 <= last <= first < math.inf or not 0 < share <= 1:
            raise ConfigError(
                f"noise must fall, 0 <= last <= first, in a share of the steps, 0 < share <= 1; got first={first!r}, "
                f"last={last!r}, share={share!r}"
            )
        self.first, self.last, self.share = first, last, share

    def noise(self, step: int, steps: int) -> float:
        """The weight of the noise at step `step` of `steps`."""
        passed = min(step / max(self.share * steps, 1), 1.0)
        return self.last + (self.first - self.last) * (1 + math.cos(math.pi * passed)) / 2

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Warn if nothing that the policy could learn is there, or trains."""
        weights = _weights(given["model"])
        if not weights:
            logger.warning(
                "quickprefill: the model has no policy that learns; call quickprefill.apply(model, "
                'policy=Cubes(gate="learned")) before the trainer is built'
            )
        elif not any(parameter.requires_grad for part in weights for parameter in part.parameters()):
            logger.warning(
                "quickprefill: none of what the policy could learn trains; with PEFT use "
                'modules_to_save=["quickprefill"], else set requires_grad of its parameters'
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Set the noise."""
        for weights in _weights(given["model"]):
            weights.noise = self.noise(state.global_step, state.max_steps)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Say in the checkpoint how its model was patched."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir() and _weights(given["model"]):
            (folder / DESCRIPTION).write_text(json.dumps(describe(given["model"]), indent=2) + "\n")


def _weights(model: Any) -> list[CubesWeights]:
    return [module for module in model.modules() if isinstance(module, CubesWeights)]
