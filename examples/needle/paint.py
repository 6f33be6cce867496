"""From a scene to pixels: a backdrop that drifts, the props, the lamp, the floor, and symbols over it all."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from examples.needle.scene import Scene, Symbol
from examples.needle.vocabulary import COLOURS, PROPS

__all__ = ["FRAME_SIZE", "lamp_box", "paint", "symbol_box"]

FRAME_SIZE = 56
"""Height and width of a painted frame in pixels."""

_TILE = 2 * FRAME_SIZE
_NUM_TILES = 64
_SYMBOL = 13  # pixels across
_INK = (15, 15, 15)
_TONES = ((45, 45, 55), (205, 200, 190))
_AREAS = {  # rows, columns
    "door": (slice(15, 42), slice(50, 56)),
    "flag": (slice(2, 12), slice(36, 54)),
    "wall": (slice(15, 42), slice(0, 6)),
}
_FLOOR = (slice(46, 56), slice(4, 52))
_LAMP_CENTRE, _LAMP_RADIUS = (6, 7), 5


def paint(scene: Scene, seconds: Sequence[float]) -> np.ndarray:
    """The scene at the given times, (T, FRAME_SIZE, FRAME_SIZE, 3) uint8."""
    rng = np.random.default_rng((*scene.seed, 2))
    frames = _backdrop(rng, np.asarray(seconds, np.float64), scene.difficulty.spacing)
    frames[:, _FLOOR[0], _FLOOR[1]] = _floor(scene.pattern)
    times = np.asarray(seconds)
    for name, tone in zip(PROPS, scene.props, strict=True):
        rows, columns = _AREAS[name]
        frames[:, rows, columns] = _TONES[tone]
        if scene.changed == name:
            frames[times >= scene.change_second, rows, columns] = _TONES[1 - tone]
    _draw_lamp(frames, times, scene)
    for symbol in scene.symbols:
        _draw_symbol(frames, times, symbol)
    return frames


def symbol_box(symbol: Symbol) -> tuple[int, int, int, int]:
    """Pixels that a symbol covers: first and last + 1 row, first and last + 1 column."""
    row, column = divmod(symbol.slot, 3)
    top, left = 13 + 16 * row + symbol.jitter[0], 7 + 14 * column + symbol.jitter[1]
    return top, top + _SYMBOL, left, left + _SYMBOL


def lamp_box() -> tuple[int, int, int, int]:
    """Pixels that the lamp covers, likewise."""
    (row, column), radius = _LAMP_CENTRE, _LAMP_RADIUS
    return row - radius, row + radius + 1, column - radius, column + radius + 1


@functools.cache
def _tile(number: int) -> np.ndarray:
    """A smooth pattern that repeats seamlessly, (_TILE, _TILE), about -1 to 1."""
    rng = np.random.default_rng((9, number))
    y, x = np.mgrid[0:_TILE, 0:_TILE] * (2 * np.pi / _TILE)
    waves = [np.sin(rng.integers(-6, 7) * x + rng.integers(-6, 7) * y + rng.uniform(0, 2 * np.pi)) for _ in range(5)]
    return (sum(waves) / 2.5).astype(np.float32)


def _backdrop(rng: np.random.Generator, seconds: np.ndarray, spacing: float) -> np.ndarray:
    """A tile in a dull colour that moves by some pixels a frame."""
    base = rng.uniform(90, 150, 3).astype(np.float32) * 0.4 + rng.uniform(90, 150) * 0.6
    gain = rng.uniform(15, 35)
    picture = (base + gain * _tile(int(rng.integers(_NUM_TILES)))[..., None]).clip(0, 255).astype(np.uint8)
    picture = np.tile(picture, (2, 2, 1))
    velocity = rng.uniform(-3, 3, 2) / spacing
    origin = rng.uniform(0, _TILE, 2)
    offsets = (origin + np.outer(seconds, velocity)).astype(np.int64) % _TILE
    return np.stack([picture[y : y + FRAME_SIZE, x : x + FRAME_SIZE] for y, x in offsets.tolist()])


@functools.cache
def _floor(pattern: str) -> np.ndarray:
    rows, columns = (part.stop - part.start for part in _FLOOR)
    y, x = np.mgrid[0:rows, 0:columns]
    light = {
        "stripes": x % 8 < 4,
        "checks": (x // 5 + y // 5) % 2 == 0,
        "dots": (x % 8 - 3.5) ** 2 + (y % 10 - 4.5) ** 2 < 8,
        "plain": np.zeros((rows, columns), bool),
    }[pattern]
    return np.where(light[..., None], np.uint8(220), np.uint8(70))


def _draw_lamp(frames: np.ndarray, times: np.ndarray, scene: Scene) -> None:
    size = _LAMP_CENTRE[0] + _LAMP_CENTRE[1] + 1
    y, x = np.mgrid[0:size, 0:size]
    distance = np.hypot(y - _LAMP_CENTRE[0], x - _LAMP_CENTRE[1])
    region = frames[:, :size, :size]
    region[:, distance <= _LAMP_RADIUS + 1.5] = _INK
    numbers = np.searchsorted([start for start, _ in scene.lamp], times, side="right") - 1
    colours = np.array([COLOURS[colour] for _, colour in scene.lamp], np.uint8)[numbers]
    region[:, distance <= _LAMP_RADIUS] = colours[:, None]


@functools.cache
def _masks(shape: str) -> tuple[np.ndarray, np.ndarray]:
    """(outline, filling) of a symbol, (_SYMBOL, _SYMBOL) booleans."""
    half = _SYMBOL // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    inside = {
        "square": lambda r: np.maximum(abs(x), abs(y)) <= r,
        "ring": lambda r: np.hypot(x, y) <= r + 0.3,
        "cross": lambda r: (np.minimum(abs(x), abs(y)) <= r - 4) & (np.maximum(abs(x), abs(y)) <= r),
        "triangle": lambda r: (abs(x) * 2 <= y + r) & (y <= r),
    }[shape]
    outline, filling = inside(half), inside(half - 1)
    if shape == "ring":
        filling &= np.hypot(x, y) > 2.5
    return outline, filling


def _draw_symbol(frames: np.ndarray, times: np.ndarray, symbol: Symbol) -> None:
    seen = (times >= symbol.start) & (times < symbol.stop)
    if not seen.any():
        return
    top, bottom, left, right = symbol_box(symbol)
    outline, filling = _masks(symbol.shape)
    region = frames[:, top:bottom, left:right]
    picture = np.where(filling[..., None], np.array(COLOURS[symbol.colour], np.uint8), np.array(_INK, np.uint8))
    region[seen] = np.where(outline[..., None], picture, region[seen])
