"""A video as slices that are cut into cubes: how much each slice moves, and what a cube holds on average."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch.nn.functional import adaptive_avg_pool2d

from quickprefill.errors import ConfigError
from quickprefill.policies.shared.segments import wide
from quickprefill.prompt.spans import Grid

__all__ = ["cell_centres", "cell_shape", "cube_means", "momenta", "pooled"]


def momenta(slices: torch.Tensor, alpha: float) -> Iterator[torch.Tensor]:
    """The momentum of slices 1 .. T-1, each (P, C) float32 or better: m_1 = v_1 - v_0, then a mean that moves on.

    Each is overwritten by the next.

    Args:
        slices: (T, P, C).
        alpha: weight of the newest change.
    """
    momentum = None
    for number in range(1, len(slices)):
        # No name holds a change: it is gone before the next is computed.
        momentum = _change(slices, number) if momentum is None else momentum.lerp_(_change(slices, number), alpha)
        yield momentum


def _change(slices: torch.Tensor, number: int) -> torch.Tensor:
    """Of a slice against the one before, (P, C) float32 or better."""
    return slices[number].to(wide(slices)) - slices[number - 1]


def cube_means(slices: torch.Tensor, starts: Sequence[int], cells: tuple[int, int]) -> torch.Tensor:
    """Means of each cube over its slices and the cells of each, (T, rows, columns, W) -> (K x a x b, W)."""
    cubes = zip(starts, [*starts[1:], len(slices)], strict=True)
    if slices.requires_grad:
        return torch.cat([_mean(slices[start:stop], cells) for start, stop in cubes]).to(slices.dtype)
    size = math.prod(cells)
    means = slices.new_empty(len(starts) * size, slices.shape[-1])
    for cube, (start, stop) in enumerate(cubes):
        means[cube * size : (cube + 1) * size] = _mean(slices[start:stop], cells)
    return means


def _mean(cube: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
    """Over slices and the cells of each, (n, rows, columns, W) -> (a x b, W)."""
    mean = cube[0].to(wide(cube), copy=len(cube) > 1)
    for slice_ in cube[1:]:  # one after the other: no copy of the cube in float32
        mean += slice_
    if len(cube) > 1:
        mean /= len(cube)
    return pooled(mean[None], cells)[0]


def pooled(slices: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
    """Means over cells, (n, rows, columns, W) -> (n, a x b, W)."""
    if slices.shape[1:3] != cells:
        slices = adaptive_avg_pool2d(slices.permute(0, 3, 1, 2), cells).permute(0, 2, 3, 1)
    return slices.flatten(1, 2)


def cell_shape(grid: Grid, number: int) -> tuple[int, int]:
    """Rows and columns of `number` cells, of about the shape of a slice. Raises ConfigError if there are none."""
    shapes = [(rows, number // rows) for rows in range(1, grid.height + 1) if number % rows == 0]
    shapes = [(rows, columns) for rows, columns in shapes if columns <= grid.width]
    if not shapes:
        raise ConfigError(
            f"tokens_per_cube={number} makes no grid of cells in slices of {grid.height} x {grid.width} tokens; give "
            f"a product of at most {grid.height} rows and at most {grid.width} columns"
        )
    return min(shapes, key=lambda shape: abs(math.log(shape[0] * grid.width / (shape[1] * grid.height))))


def cell_centres(grid: Grid, cells: tuple[int, int]) -> list[int]:
    """The places in a slice that stand for the cells, ascending."""
    rows, columns = (
        [(2 * cell + 1) * size // (2 * number) for cell in range(number)]
        for number, size in zip(cells, (grid.height, grid.width), strict=True)
    )
    return [row * grid.width + column for row in rows for column in columns]
