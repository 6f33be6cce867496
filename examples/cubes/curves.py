"""What a run logged: JSON at every checkpoint and, where matplotlib is installed, a picture in the end."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from quickprefill.policies.shared.learned_cubes import CubesWeights

__all__ = ["Curves"]


class Curves(TrainerCallback):  # type: ignore[misc]
    """curves.json and curves.png in the output folder: loss, rate, gradient norm, and the gate's noise."""

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Add the noise to what was logged."""
        noise = [module.noise for module in given["model"].modules() if isinstance(module, CubesWeights)]
        if noise and "loss" in state.log_history[-1]:
            state.log_history[-1]["noise"] = noise[0]

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Write the figures."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "curves.json").write_text(json.dumps(state.log_history, indent=1) + "\n")

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Write them once more, and draw them."""
        self.on_save(args, state, control)
        if state.is_world_process_zero and importlib.util.find_spec("matplotlib") is not None:
            draw(state.log_history, Path(args.output_dir) / "curves.png")


def draw(history: list[dict[str, Any]], path: Path) -> None:
    """A picture of each figure over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [
        name
        for name in ("loss", "eval_loss", "grad_norm", "learning_rate", "noise")
        if any(name in one for one in history)
    ]
    figure, axes = pyplot.subplots(
        max(len(names), 1), 1, figsize=(7, 2 * max(len(names), 1)), sharex=True, squeeze=False
    )
    for axis, name in zip(axes[:, 0], names, strict=False):
        points = [(one["step"], one[name]) for one in history if name in one]
        axis.plot(*zip(*points, strict=True), marker=".")
        axis.set_ylabel(name.replace("_", " "))
    axes[-1, 0].set_xlabel("step")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
