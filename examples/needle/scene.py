"""What happens in a clip: drawn from a seed, described in seconds, free of pixels."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from examples.needle.vocabulary import COLOURS, COUNTS, PATTERNS, PROPS, SHAPES

__all__ = ["SPLITS", "Difficulty", "Scene", "SceneError", "Symbol", "sample_scene"]

SPLITS = {"train": 0, "validation": 1, "test": 2}
"""The split is part of the seed, so that no two splits share a scene."""
_SLOTS = 6
_GAP_FRAMES = 3
_COLOUR_NAMES = tuple(COLOURS)


class SceneError(ValueError):
    """A difficulty or a split that no scene can be drawn for."""


@dataclass(frozen=True)
class Difficulty:
    """How hard the questions are. Times are in frames as the model gets them, one each `spacing` seconds.

    >>> Difficulty(frames=128, needle_frames=(2, 2)).seconds
    64.0
    """

    frames: int = 16
    """Length of the video for the model; even, 8 or more."""
    spacing: float = 0.5
    """Seconds between two of them."""
    needle_frames: tuple[int, int] = (2, 4)
    """Least and most frames that a symbol is seen."""
    distractors: int = 1
    """Triangles that come and go, and are never asked for."""
    needle_position: float | None = None
    """Where in the video the symbols asked for lie, 0 (start) to 1 (end); None is anywhere."""

    lone: bool = False
    """Only one of the two symbols appears, and the question is which."""

    def __post_init__(self) -> None:
        least, most = self.needle_frames
        if self.frames < 8 or self.frames % 2:
            raise SceneError(f"frames must be even and at least 8, got {self.frames}")
        if not self.spacing > 0:
            raise SceneError(f"spacing must be a number of seconds above 0, got {self.spacing}")
        if not 2 <= least <= most:
            raise SceneError(f"needle_frames must be (least, most) with 2 <= least <= most, got {self.needle_frames}")
        if least > self.frames // 2:
            raise SceneError(f"a needle of {least} frames is too long for {self.frames}; use at most half of them")
        if not 0 <= self.distractors <= _SLOTS - 3:
            raise SceneError(f"distractors must be 0 to {_SLOTS - 3}, got {self.distractors}")
        if self.needle_position is not None and not 0 <= self.needle_position <= 1:
            raise SceneError(f"needle_position must be None or from 0 to 1, got {self.needle_position}")

    @property
    def seconds(self) -> float:
        """Length of the clip."""
        return self.frames * self.spacing


@dataclass(frozen=True)
class Symbol:
    """A mark that is seen from `start` to `stop`, in seconds, in one of six places."""

    shape: str
    colour: str
    start: float
    stop: float
    slot: int
    jitter: tuple[int, int]


@dataclass(frozen=True)
class Scene:
    """Everything that a clip shows and a question can ask for."""

    seed: tuple[int, ...]
    difficulty: Difficulty
    symbols: tuple[Symbol, ...]
    lamp: tuple[tuple[float, str], ...]
    """(from second, colour), the first one from 0."""
    pattern: str
    props: tuple[int, ...]
    """Tone, 0 or 1, of each of PROPS in the beginning."""
    changed: str
    """One of PROPS, or "nothing"."""
    change_second: float

    def appearances(self, shape: str) -> list[Symbol]:
        """The symbols of one shape."""
        return [symbol for symbol in self.symbols if symbol.shape == shape]

    def lamp_colour(self, second: float) -> str:
        """What the lamp shows at that time."""
        return [colour for start, colour in self.lamp if start <= second][-1]

    def cut(self, frames: int) -> Scene:
        """The scene as seen up to that frame, for questions about a video that ends there."""
        difficulty = dataclasses.replace(self.difficulty, frames=frames)
        end = difficulty.seconds - difficulty.spacing / 2
        return dataclasses.replace(
            self,
            difficulty=difficulty,
            symbols=tuple(symbol for symbol in self.symbols if symbol.start < end),
            lamp=tuple((start, colour) for start, colour in self.lamp if start < end),
            changed=self.changed if self.change_second < end else "nothing",
        )

    def is_clear_at(self, frames: int) -> bool:
        """Whether everything that began before that frame has been seen for two frames by then, or is not asked for."""
        begun = [symbol.start for symbol in self.symbols if symbol.shape in (*SHAPES, "cross")]
        spacing = self.difficulty.spacing
        return not any(frames - 2 < start / spacing + 0.5 < frames for start in (*begun, self.change_second))

    @property
    def first(self) -> str:
        """Which of SHAPES comes first."""
        return min(SHAPES, key=lambda shape: self.appearances(shape)[0].start)


def sample_scene(split: str, index: int, difficulty: Difficulty) -> Scene:
    """Scene number `index` of a split. Raises SceneError for an unknown split or a negative index."""
    if split not in SPLITS or index < 0:
        raise SceneError(f"split must be one of {sorted(SPLITS)} and index >= 0, got {split!r} and {index}")
    seed = (SPLITS[split], index)
    rng = np.random.default_rng(seed)
    frames, spacing = difficulty.frames, difficulty.spacing
    slots = rng.permutation(_SLOTS).tolist()
    symbols = []
    for shape, (start, length) in zip(SHAPES, _two_intervals(rng, difficulty), strict=True):
        symbols.append(_symbol(rng, shape, _pick(rng, _COLOUR_NAMES), start, length, slots.pop(), spacing))
    slot = slots.pop()
    for start, length in _cross_intervals(rng, difficulty):
        symbols.append(_symbol(rng, "cross", "white", start, length, slot, spacing))
    for _ in range(difficulty.distractors):
        length = _needle_length(rng, difficulty)
        start = int(rng.integers(0, frames - length + 1))
        symbols.append(_symbol(rng, "triangle", _pick(rng, _COLOUR_NAMES), start, length, slots.pop(), spacing))
    scene = Scene(
        seed=seed,
        difficulty=difficulty,
        symbols=tuple(symbols),
        lamp=_sample_lamp(rng, difficulty),
        pattern=_pick(rng, PATTERNS),
        props=tuple(rng.integers(0, 2, len(PROPS)).tolist()),
        changed=_pick(rng, (*PROPS, "nothing")),
        change_second=(int(rng.integers(frames // 4, frames * 3 // 4)) - 0.5) * spacing,
    )
    if difficulty.lone:
        absent = _pick(rng, SHAPES)
        scene = dataclasses.replace(scene, symbols=tuple(s for s in scene.symbols if s.shape != absent))
    return scene


def _pick(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]


def _needle_length(rng: np.random.Generator, difficulty: Difficulty) -> int:
    least, most = difficulty.needle_frames
    return int(rng.integers(least, min(most, max(difficulty.frames - 2, least)) + 1))


def _symbol(
    rng: np.random.Generator, shape: str, colour: str, start: int, length: int, slot: int, spacing: float
) -> Symbol:
    # Half a frame early, so that a reader whose sampling is off by less than that still sees `length` frames.
    begin = (start - 0.5) * spacing
    jitter = (int(rng.integers(-1, 2)), int(rng.integers(-1, 2)))
    return Symbol(shape, colour, begin, begin + length * spacing, slot, jitter)


def _two_intervals(rng: np.random.Generator, difficulty: Difficulty) -> list[tuple[int, int]]:
    """(first frame, length) of the two symbols asked for, whose beginnings are two frames apart or more."""
    while True:
        intervals = []
        for _ in SHAPES:
            length = _needle_length(rng, difficulty)
            last = difficulty.frames - length
            if difficulty.needle_position is None:
                start = int(rng.integers(0, last + 1))
            else:
                start = round(difficulty.needle_position * last) + int(rng.integers(-4, 5))
                start = min(max(start, 0), last)
            intervals.append((start, length))
        if abs(intervals[0][0] - intervals[1][0]) >= 2:
            return intervals


def _cross_intervals(rng: np.random.Generator, difficulty: Difficulty) -> list[tuple[int, int]]:
    """Disjoint intervals, as many as COUNTS allows and the clip has room for."""
    length = _needle_length(rng, difficulty)
    step = length + _GAP_FRAMES
    room = (difficulty.frames + _GAP_FRAMES) // step
    count = int(rng.integers(1, min(len(COUNTS), room) + 1))
    slack = difficulty.frames + _GAP_FRAMES - count * step
    shifts = np.sort(rng.integers(0, slack + 1, count)).tolist()
    return [(number * step + shift, length) for number, shift in enumerate(shifts)]


def _sample_lamp(rng: np.random.Generator, difficulty: Difficulty) -> tuple[tuple[float, str], ...]:
    """Two to four stretches of at least four frames, each of another colour than the one before."""
    count = int(rng.integers(2, min(4, difficulty.frames // 4) + 1))
    slack = difficulty.frames - 4 * count
    shifts = np.sort(rng.integers(0, slack + 1, count - 1)).tolist()
    starts = [0.0, *((4 * (number + 1) + shift - 0.5) * difficulty.spacing for number, shift in enumerate(shifts))]
    colours = [_pick(rng, _COLOUR_NAMES)]
    while len(colours) < count:
        colour = _pick(rng, _COLOUR_NAMES)
        if colour != colours[-1]:
            colours.append(colour)
    return tuple(zip(starts, colours, strict=True))
