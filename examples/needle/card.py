"""What stands beside a trained checkpoint: its model card and its curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from examples.needle.families import Family
from examples.needle.tasks import CHOICES, TASKS

__all__ = ["model_card", "plot_curves"]

_CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: video-text-to-text
---

# Tiny {title} for the needle suite

The real architecture (`{head}`, its processor and its chat format) with {parameters:,}
parameters, trained from scratch on rendered clips. It is there to try and to test things with no download: it answers
a few kinds of questions about clips of `examples/needle` with one word, and nothing else.

It is not a small version of the real {title}: no weight comes from there, it knows no language beyond the questions
below, and what it shows about a pruning method holds for this model alone.

* {frames}
* Questions: "What colour was the square?" (or the ring), "Which appeared, the square or the ring?", "Which came first,
  the square or the ring?", "What colour was the lamp at second 7?", "How many crosses appeared?", "What pattern has the
  floor?", "What changed between beginning and end?"
* Trained for {steps:,} steps on videos of 8 to {longest} frames ({minutes:.0f} minutes on a CPU):
  `python -m examples.needle.train --family {family} --output <this folder>`. Curves: `training.png`, figures:
  `training.json`.
{notes}
Accuracy on validation clips (all through H.264, unpruned), from the last line of `training.json`:

| frames | {tasks} |
|---|{rule}
{rows}
| chance | {chance} |
"""


def model_card(family: Family, history: dict[str, Any], parameters: int, longest: int) -> str:
    """The README of a checkpoint, with the last validation figures in it."""
    last = {name: shares for name, shares in history["validation"][-1].items() if name != "step"}
    return _CARD.format(
        title=family.title,
        head=family.head.__name__,
        frames=family.frames,
        family=family.head.config_class.model_type,
        parameters=parameters,
        steps=history["step"],
        longest=longest,
        minutes=history["seconds"] / 60,
        notes="".join(f"* {note}\n" for note in history.get("notes", ())),
        tasks=" | ".join(TASKS),
        rule="---|" * len(TASKS),
        rows="\n".join(
            f"| {frames} | " + " | ".join(f"{shares[task]:.0%}" for task in TASKS) + " |"
            for frames, shares in last.items()
        ),
        chance=" | ".join(f"{1 / len(CHOICES[task]):.0%}" for task in TASKS),
    )


def plot_curves(history: dict[str, Any], path: Path) -> None:
    """Loss and accuracy over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(7, 7), sharex=True)
    steps = [point["step"] for point in history["train"]]
    for name in history["train"][0]["loss"] if steps else ():
        above.plot(steps, [point["loss"][name] for point in history["train"]], label=name)
    above.set_ylabel("training loss")
    above.set_yscale("log")
    if steps:
        above.legend(fontsize="small")
    for task in TASKS:
        (line,) = below.plot(steps, [point.get(task, 0.0) for point in history["train"]], alpha=0.35)
        for frames in history["validation"][-1]:
            if frames != "step":
                marks = [(point["step"], point[frames].get(task, 0.0)) for point in history["validation"]]
                width = 0.8 + 0.7 * (int(frames) > 16)
                below.plot(*zip(*marks, strict=True), color=line.get_color(), linewidth=width)
        line.set_label(task)
    below.set_ylabel("accuracy: training (faint), validation")
    below.set_xlabel("step")
    below.legend(fontsize="small")
    figure.tight_layout()
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, dpi=110, format="png")
    partial.replace(path)
    pyplot.close(figure)
