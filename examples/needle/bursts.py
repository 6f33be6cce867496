"""Videos of uneven density: all that happens in a scene, within a few short stretches of a longer clip."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from examples.needle.scene import Difficulty, Scene, SceneError, sample_scene

__all__ = ["sample_bursts"]


def sample_bursts(split: str, index: int, difficulty: Difficulty, bursts: Sequence[int]) -> Scene:
    """A scene whose events lie in stretches of so many frames each, at random places; only the backdrop always moves.

    It is the scene of sum(bursts) frames with stillness let in between. A symbol that is seen across two stretches
    stays in sight between them.

    Raises:
        SceneError: the stretches do not fit the clip, or are too short for a scene.
    """
    busy = sum(bursts)
    if not bursts or min(bursts) < 1 or busy > difficulty.frames:
        raise SceneError(f"bursts must be frames that add up to at most {difficulty.frames}, got {list(bursts)}")
    scene = sample_scene(split, index, dataclasses.replace(difficulty, frames=busy))
    rng = np.random.default_rng((*scene.seed, 2))
    still = np.sort(rng.integers(0, difficulty.frames - busy + 1, len(bursts)))
    """Frames of stillness before each stretch, all earlier ones included."""
    ends = np.cumsum(bursts)[:-1] - 0.5
    spacing = difficulty.spacing

    def begin(second: float) -> float:
        return float(second + spacing * still[np.searchsorted(ends, second / spacing, side="right")])

    def end(second: float) -> float:
        return float(second + spacing * still[np.searchsorted(ends, second / spacing, side="left")])

    symbols = (
        dataclasses.replace(symbol, start=begin(symbol.start), stop=end(symbol.stop)) for symbol in scene.symbols
    )
    return dataclasses.replace(
        scene,
        difficulty=difficulty,
        symbols=tuple(symbols),
        lamp=tuple((begin(start) if start else 0.0, colour) for start, colour in scene.lamp),
        change_second=begin(scene.change_second),
    )
