"""Cut a video into cubes of uneven length where it changes most, and spend the same tokens on each.

After Quicksviewer (arXiv 2504.15270), whose learned gate ranks the momentum of frame features; here the momentum itself
is the rank, so that nothing has to be trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch.nn.functional import adaptive_avg_pool2d

from quickprefill.errors import ConfigError
from quickprefill.policies.base import Compressor
from quickprefill.policies.shared.segments import wide
from quickprefill.prompt.spans import Grid
from quickprefill.prompt.tokens import VideoTokens

__all__ = ["Cubes"]


@dataclass(frozen=True)
class Cubes(Compressor):
    """Between the vision tower and the decoder, consecutive slices become a cube, and a cube its mean.

    The momentum of a slice is m_2 = v_2 - v_1, then m_t = alpha (v_t - v_(t-1)) + (1 - alpha) m_(t-1), token by token;
    the first slice opens a cube, and so do those of largest mean norm of it (ties: the earlier). A cube's tokens are
    the means over its slices, at the positions of its first one. How many cubes there are follows from sizes alone,
    where they begin from the content; that is read from the device once a video.

    Where the number of tokens that `keep` asks for is no multiple of a cube's, the last ones missing are left out where
    a cube's first slice differs least from what came before.
    """

    name: ClassVar[str] = "cubes"

    frames_per_cube: float | None = None
    """Mean length of a cube in the frames that the model is given, >= 1; no longer than a slice: nothing changes. The
    paper's is 5 at 1 fps. None: the config's `keep` says how many tokens stay."""
    tokens_per_cube: int | None = None
    """Tokens of a cube, means over the cells of a grid about as wide as it is high (64 in the paper), and at most a
    slice's. None: a slice's, so that nothing is lost in space."""
    gate: Literal["momentum", "fixed"] = "momentum"
    """Where cubes begin; "fixed": at equal distances, which is what the momentum has to beat."""
    alpha: float = 0.8
    """Weight of the newest change in the momentum, 0 < alpha <= 1."""

    def __post_init__(self) -> None:
        frames, tokens = self.frames_per_cube, self.tokens_per_cube
        if frames is not None and (isinstance(frames, bool) or not 1 <= frames < math.inf):
            raise ConfigError(f"frames_per_cube must be None or a number >= 1, got {frames!r}")
        if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1):
            raise ConfigError(f"tokens_per_cube must be None or an integer >= 1, got {tokens!r}")
        if self.gate not in ("momentum", "fixed"):
            raise ConfigError(f"gate must be 'momentum' or 'fixed', got {self.gate!r}")
        if not 0 < self.alpha <= 1:
            raise ConfigError(f"alpha must be in (0, 1], got {self.alpha!r}")

    @property
    def scope(self) -> Literal["video", "group"]:
        """Which slices change most is known once all have been seen."""
        return "video"

    @property
    def exact(self) -> bool:
        """How many cubes there are is not the content's to say."""
        return True

    @property
    def whole_slices(self) -> bool:
        """It compares and averages them."""
        return True

    @property
    def compress_ratio(self) -> float | None:
        """What frames_per_cube makes of slices of two frames and whole cubes; `own_count` says it exactly."""
        return None if self.frames_per_cube is None else min(2 / self.frames_per_cube, 1.0)

    def own_count(self, grid: Grid) -> int | None:
        """The tokens of T x frames / frames_per_cube cubes, rounded half up, at least one and at most T."""
        if self.frames_per_cube is None:
            return None
        cubes = math.floor(grid.slices * grid.slice_frames / self.frames_per_cube + 0.5)
        return min(max(cubes, 1), grid.slices) * self._cube_tokens(grid.slice_tokens)

    def most_tokens(self, grid: Grid, num_kept: int) -> int:
        """`num_kept`, or all that cubes of one slice hold."""
        return min(num_kept, grid.slices * self._cube_tokens(grid.slice_tokens))

    def workspace_bytes(
        self, num_tokens: int, slice_tokens: int, width: int, itemsize: int, num_kept: int | None = None
    ) -> int:
        """How much each token moves, and beside it the slices that this is seen from, a cube that is averaged, or the
        result with its places, twice where tokens of it are left out.
        """
        slices, size, precise = num_tokens // slice_tokens, self._cube_tokens(slice_tokens), max(itemsize, 4)
        kept = min(num_kept or num_tokens, slices * size)
        if num_kept == num_tokens == kept:
            return 0
        cubes, row = -(-kept // size), slice_tokens * width * precise
        embeds, places = cubes * size * width * itemsize, (32 * size + 16) * cubes
        moving = (2 if itemsize >= 4 else 3) * row
        averaged = row + (size * width * precise if size < slice_tokens else 0)
        left_out = kept * (width * itemsize + 32) if cubes * size > kept else 0
        return num_tokens * precise + max(moving, embeds + averaged, embeds + places + left_out)

    def compress(self, tokens: VideoTokens) -> VideoTokens:
        """The cubes' tokens.

        Raises:
            ConfigError: nobody says how many stay; tokens were dropped before, so that slices are no longer whole; or
                tokens_per_cube make no grid inside a slice's.
        """
        grid = tokens.grid
        if tokens.num_tokens != grid.num_tokens:
            raise ConfigError(
                f"Cubes must be the first stage: it averages whole slices, {grid.num_tokens} tokens, but got "
                f"{tokens.num_tokens}"
            )
        wanted = tokens.num_kept if tokens.num_kept is not None else self.own_count(grid)
        if wanted is None:
            raise ConfigError(
                "Cubes was not told how many tokens stay; give frames_per_cube, or set num_kept of the tokens"
            )
        count = self.most_tokens(grid, wanted)
        if count == grid.num_tokens:
            return tokens
        cells = _cells(grid, self._cube_tokens(grid.slice_tokens))
        slices = tokens.features.view(grid.slices, grid.slice_tokens, -1)
        norms = _momentum_norms(slices, self.alpha)
        starts = self._starts(norms, -(-count // math.prod(cells)))
        rows = tokens.embeds.view(grid.slices, grid.height, grid.width, -1)
        embeds = _means(rows, starts, cells)
        first = torch.tensor(starts)[:, None] * grid.slice_tokens
        source = (first + torch.tensor(_centres(grid, cells))).flatten().to(embeds.device)
        if len(source) > count:
            kept = norms.flatten()[source].argsort(descending=True, stable=True)[:count].sort().values
            embeds, source = embeds[kept], source[kept]
        positions = tokens.positions.to(source.device)[:, source]
        return replace(tokens, embeds=embeds, positions=positions, source=source, pools=None)

    def _cube_tokens(self, slice_tokens: int) -> int:
        return min(self.tokens_per_cube or slice_tokens, slice_tokens)

    def _starts(self, norms: torch.Tensor, number: int) -> list[int]:
        """The slices, ascending, that open a cube."""
        if self.gate == "fixed" or number == len(norms):
            return [cube * len(norms) // number for cube in range(number)]
        starts: list[int] = norms.mean(dim=1).argsort(descending=True, stable=True)[:number].sort().values.tolist()
        return starts


def _momentum_norms(slices: torch.Tensor, alpha: float) -> torch.Tensor:
    """How much each token moves, (T, P, C) -> (T, P) float32 or better; in the first slice, infinitely."""
    norms = torch.full(slices.shape[:2], torch.inf, dtype=wide(slices), device=slices.device)
    momentum = None
    for number in range(1, len(slices)):
        if momentum is None:
            momentum = _change(slices, number)
        else:
            momentum.lerp_(_change(slices, number), alpha)
        norms[number] = torch.linalg.vector_norm(momentum, dim=-1)
    return norms


def _change(slices: torch.Tensor, number: int) -> torch.Tensor:
    """Of a slice against the one before, (P, C) float32 or better."""
    return slices[number].to(wide(slices)) - slices[number - 1]


def _means(slices: torch.Tensor, starts: Sequence[int], cells: tuple[int, int]) -> torch.Tensor:
    """Means of each cube over its slices and the cells of each, (T, rows, columns, W) -> (K x a x b, W)."""
    size = math.prod(cells)
    means = slices.new_empty(len(starts) * size, slices.shape[-1])
    for cube, (start, stop) in enumerate(zip(starts, [*starts[1:], len(slices)], strict=True)):
        means[cube * size : (cube + 1) * size] = _mean(slices[start:stop], cells)
    return means


def _mean(cube: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
    """Over slices and the cells of each, (n, rows, columns, W) -> (a x b, W)."""
    mean = cube[0].to(wide(cube), copy=len(cube) > 1)
    for slice_ in cube[1:]:  # one after the other: no copy of the cube in float32
        mean += slice_
    if len(cube) > 1:
        mean /= len(cube)
    if mean.shape[:2] != cells:
        mean = adaptive_avg_pool2d(mean.permute(2, 0, 1), cells).permute(1, 2, 0)
    return mean.flatten(0, 1)


def _cells(grid: Grid, number: int) -> tuple[int, int]:
    """Rows and columns of `number` cells, of about the shape of a slice. Raises ConfigError if there are none."""
    shapes = [(rows, number // rows) for rows in range(1, grid.height + 1) if number % rows == 0]
    shapes = [(rows, columns) for rows, columns in shapes if columns <= grid.width]
    if not shapes:
        raise ConfigError(
            f"tokens_per_cube={number} makes no grid of cells in slices of {grid.height} x {grid.width} tokens; give "
            f"a product of at most {grid.height} rows and at most {grid.width} columns"
        )
    return min(shapes, key=lambda shape: abs(math.log(shape[0] * grid.width / (shape[1] * grid.height))))


def _centres(grid: Grid, cells: tuple[int, int]) -> list[int]:
    """The places in a slice that stand for the cells, ascending."""
    rows, columns = (
        [(2 * cell + 1) * size // (2 * number) for cell in range(number)]
        for number, size in zip(cells, (grid.height, grid.width), strict=True)
    )
    return [row * grid.width + column for row in rows for column in columns]
