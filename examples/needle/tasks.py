"""What is asked about a scene: seven tasks, each with a one-token answer.

needle   the colour of the one symbol that appears
shape    which of the two symbols appeared; or, where both do, the colour of the one named
time     the lamp's colour at a second
order    which of two symbols came first
count    how many crosses appeared
state    the pattern of the floor, seen all along
change   what differs between beginning and end
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from examples.needle.scene import Scene
from examples.needle.vocabulary import COLOURS, COUNTS, MAX_SECOND, PATTERNS, PROPS, SHAPES

__all__ = ["CHOICES", "TASKS", "Question", "ask"]

CHOICES = {
    "needle": tuple(COLOURS),
    "shape": (*COLOURS, *SHAPES),
    "time": tuple(COLOURS),
    "order": SHAPES,
    "count": COUNTS,
    "state": PATTERNS,
    "change": (*PROPS, "nothing"),
}
"""Task -> its possible answers."""
TASKS = tuple(CHOICES)


@dataclass(frozen=True)
class Question:
    """A question and its right answer."""

    task: str
    text: str
    answer: str


def ask(scene: Scene, *, times: int = 2) -> list[Question]:
    """Every question that the scene can answer: time for `times` seconds, shape for each symbol, the others once."""
    shown = [shape for shape in SHAPES if scene.appearances(shape)]
    task = "needle" if len(shown) == 1 else "shape"
    questions = [Question(task, f"What colour was the {shape}?", scene.appearances(shape)[0].colour) for shape in shown]
    if len(shown) == 1:
        text = f"Which appeared, the {SHAPES[0]} or the {SHAPES[1]}?"
        questions.append(Question("shape", text, shown[0]))
    elif shown:
        text = f"Which came first, the {SHAPES[0]} or the {SHAPES[1]}?"
        questions.append(Question("order", text, scene.first))
    crosses = len(scene.appearances("cross"))
    if crosses:
        questions.append(Question("count", "How many crosses appeared?", str(crosses)))
    questions += [
        Question("state", "What pattern has the floor?", scene.pattern),
        Question("change", "What changed between beginning and end?", scene.changed),
    ]
    seconds = _clear_seconds(scene)
    chosen = np.random.default_rng((*scene.seed, 1)).permutation(seconds)[:times].tolist()
    questions += [
        Question("time", f"What colour was the lamp at second {second}?", scene.lamp_colour(second))
        for second in chosen
    ]
    return questions


def _clear_seconds(scene: Scene) -> list[int]:
    """Whole seconds that lie a frame or more away from any change of the lamp, so that the answer is beyond doubt."""
    difficulty = scene.difficulty
    starts = [start for start, _ in scene.lamp]
    stops = [*starts[1:], difficulty.seconds]
    seconds: list[int] = []
    for start, stop in zip(starts, stops, strict=True):
        low = start + difficulty.spacing if start else 0.0
        seconds += range(int(np.ceil(low)), int(np.floor(min(stop - difficulty.spacing, MAX_SECOND))) + 1)
    return seconds
