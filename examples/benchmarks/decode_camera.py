"""A camera for the videos that decode.py measures on: scenes with cuts, pans, moving discs and film grain."""

from __future__ import annotations

import numpy as np

FPS = 30


class Camera:
    """Pans over a new random landscape every one to nine seconds, with moving discs and film grain."""

    def __init__(self, height: int, width: int) -> None:
        self._random = np.random.default_rng(7)
        self._height, self._width = height, width
        self._grain = self._random.normal(0, 3, (8, height, width, 1)).astype(np.int16)
        self._cut(0)

    def _cut(self, number: int) -> None:
        random, height, width = self._random, self._height, self._width
        self._begin, self._end = number, number + int(random.integers(FPS, 9 * FPS))
        scene = np.zeros((height * 2, width * 2, 3), np.float32)
        for octave in (8, 16, 48, 160):
            coarse = random.normal(0, 300 / octave**0.5, (octave * 9 // 16 + 1, octave + 1, 3)).astype(np.float32)
            scene += _enlarged(coarse, height * 2, width * 2)
        self._scene = (scene + 128).clip(0, 255).astype(np.int16)
        self._pan = random.uniform(-3, 3, 2)
        self._discs = random.uniform(0, 1, (4, 8))

    def shoot(self, number: int) -> np.ndarray:
        """Frame `number`, (H, W, 3) uint8."""
        if number >= self._end:
            self._cut(number)
        age = number - self._begin
        top = int(self._height / 2 + self._pan[0] * age) % self._height
        left = int(self._width / 2 + self._pan[1] * age) % self._width
        picture = self._scene[top : top + self._height, left : left + self._width].copy()
        for x, y, dx, dy, radius, *colour in self._discs:
            self._disc(picture, x + (dx - 0.5) * age / 60, y + (dy - 0.5) * age / 60, radius, colour)
        return (picture + self._grain[number % 8]).clip(0, 255).astype(np.uint8)

    def _disc(self, picture: np.ndarray, x: float, y: float, size: float, colour: list[float]) -> None:
        radius = int((0.03 + size * 0.1) * self._height)
        row, column = int(y % 1 * self._height), int(x % 1 * self._width)
        part = picture[max(row - radius, 0) : row + radius, max(column - radius, 0) : column + radius]
        inside = np.add.outer(
            (np.arange(part.shape[0]) - part.shape[0] / 2) ** 2, (np.arange(part.shape[1]) - part.shape[1] / 2) ** 2
        )
        part[inside < radius * radius] = (np.array(colour) * 255).astype(np.int16)


def _enlarged(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear enlargement."""
    rows = np.linspace(0, picture.shape[0] - 1.001, height)
    columns = np.linspace(0, picture.shape[1] - 1.001, width)
    r, c = rows.astype(int), columns.astype(int)
    fr, fc = (rows - r)[:, None, None].astype(np.float32), (columns - c)[None, :, None].astype(np.float32)
    above = picture[r][:, c] * (1 - fc) + picture[r][:, c + 1] * fc
    below = picture[r + 1][:, c] * (1 - fc) + picture[r + 1][:, c + 1] * fc
    return above * (1 - fr) + below * fr
