"""Cut a video into cubes of uneven length where it changes most, and spend the same tokens on each.

After Quicksviewer (arXiv 2504.15270), whose learned gate ranks the momentum of frame features. Here the momentum itself
is the rank, so that nothing has to be trained; what can be learned starts from there.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from quickprefill.errors import ConfigError
from quickprefill.policies.base import Compressor
from quickprefill.policies.shared.cube_gate import Chosen, gate_bytes, highest, straight_through
from quickprefill.policies.shared.cube_resampler import resampler_bytes
from quickprefill.policies.shared.cutting import cell_centres, cell_shape, cube_means, momenta, pooled
from quickprefill.policies.shared.learned_cubes import CubesWeights
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
    gate: Literal["momentum", "fixed", "learned"] = "momentum"
    """Where cubes begin; "fixed": at equal distances, which is what the momentum has to beat; "learned": where weights
    say, which start at the momentum's choice (experimental: examples/guides/quality.md has what training gains)."""
    resampler: Literal["mean", "attention"] = "mean"
    """What a cube's tokens are; "attention": weights add to each mean what they find in the cube, at first nothing."""
    alpha: float = 0.8
    """Weight of the newest change in the momentum, 0 < alpha <= 1."""
    temperature: float = 0.5
    """Of the probability through which a learned gate gets its gradient, > 0."""
    logit_penalty: float = 0.001
    """Weight in the loss of the mean norm of a learned gate's logits, >= 0."""

    def __post_init__(self) -> None:
        frames, tokens = self.frames_per_cube, self.tokens_per_cube
        if frames is not None and not _is_number(frames, 1, sys.float_info.max):
            raise ConfigError(f"frames_per_cube must be None or a number >= 1, got {frames!r}")
        if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1):
            raise ConfigError(f"tokens_per_cube must be None or an integer >= 1, got {tokens!r}")
        for field, allowed in (("gate", ("momentum", "fixed", "learned")), ("resampler", ("mean", "attention"))):
            if getattr(self, field) not in allowed:
                raise ConfigError(f"{field} must be one of {', '.join(allowed)}, got {getattr(self, field)!r}")
        if not (_is_number(self.alpha, 0, 1) and self.alpha):
            raise ConfigError(f"alpha must be in (0, 1], got {self.alpha!r}")
        positive = _is_number(self.temperature, 0, sys.float_info.max) and self.temperature
        if not positive or not _is_number(self.logit_penalty, 0, sys.float_info.max):
            raise ConfigError(
                f"temperature must be > 0 and logit_penalty >= 0, got {self.temperature!r} and {self.logit_penalty!r}"
            )

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
        needed = num_tokens * precise + max(moving, embeds + averaged, embeds + places + left_out)
        if self.gate == "learned":
            needed += gate_bytes(slices, slice_tokens, width)
        if self.resampler == "attention":
            needed += resampler_bytes(slices, cubes, size, slice_tokens, width, itemsize)
        return needed

    def compress(self, tokens: VideoTokens) -> VideoTokens:
        """The cubes' tokens.

        Raises:
            ConfigError: nobody says how many stay; tokens were dropped before, so that slices are no longer whole; or
                tokens_per_cube make no grid inside a slice's.
        """
        grid = tokens.grid
        if tokens.num_tokens != grid.num_made:
            raise ConfigError(
                f"Cubes must be the first stage: it averages whole slices, {grid.num_made} tokens, but got "
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
        if not self.learns:
            return self._compressed(None, tokens, count)
        if tokens.weights is None:
            raise ConfigError(f"{self!r} has weights, which quickprefill.apply(model) makes; got tokens without them")
        compressed: VideoTokens = tokens.weights(self._compressed, tokens, count)
        return compressed

    def _compressed(self, weights: CubesWeights | None, tokens: VideoTokens, count: int) -> VideoTokens:
        grid, width = tokens.grid, tokens.features.shape[1]
        cells = cell_shape(grid, self._cube_tokens(grid.slice_tokens))
        size = math.prod(cells)
        number = -(-count // size)
        with torch.autocast(tokens.embeds.device.type, enabled=False):
            norms, chosen = self._look(weights, tokens, number, left_out=number * size > count)
        rows = tokens.embeds.view(grid.slices, grid.height, grid.width, -1)
        centres, starts = cell_centres(grid, cells), chosen.starts
        cubes = cube_means(rows, starts, cells).view(number, size, -1)
        if weights is not None and weights.resampler is not None:
            features, own = rows[..., :width], cubes[..., :width]
            own = own + weights.resampler(features, own, starts, _times(tokens), centres).to(own)
            cubes = own if tokens.width is None else torch.cat([own, cubes[..., width:]], dim=-1)
        thumbnail = None
        if chosen.straight is not None:
            straight = chosen.straight.to(cubes)
            cubes = cubes * (1 + straight[starts])[:, None, None]
            opens = torch.zeros_like(straight).index_fill(0, torch.tensor(starts, device=straight.device), 1)
            thumbnail = torch.einsum("t,tpw->pw", opens + straight, pooled(rows, cells)) / number
        embeds = cubes.flatten(0, 1)
        first = torch.tensor(starts)[:, None] * grid.slice_tokens
        source = (first + torch.tensor(centres)).flatten().to(embeds.device)
        if len(source) > count:
            kept = norms.flatten()[source].argsort(descending=True, stable=True)[:count].sort().values
            embeds, source = embeds[kept], source[kept]
        positions = tokens.positions.to(source.device)[:, source]
        return replace(tokens, embeds=embeds, positions=positions, source=source, pools=None, thumbnail=thumbnail)

    @property
    def learns(self) -> bool:
        """Whether it has weights."""
        return self.gate == "learned" or self.resampler == "attention"

    def new_weights(self, width: int) -> CubesWeights | None:
        """Untrained: they do what the rule without weights does."""
        return CubesWeights(width, self.gate == "learned", self.resampler == "attention") if self.learns else None

    def _cube_tokens(self, slice_tokens: int) -> int:
        return min(self.tokens_per_cube or slice_tokens, slice_tokens)

    def _look(
        self, weights: CubesWeights | None, tokens: VideoTokens, number: int, left_out: bool
    ) -> tuple[torch.Tensor, Chosen]:
        """How much each token moves, (T, P), infinitely in the first slice; and where cubes begin.

        What the gate says trains the gate, not the tower: features come without their gradient.
        """
        grid = tokens.grid
        slices = tokens.features.detach().view(grid.slices, grid.slice_tokens, -1)
        norms = torch.full(slices.shape[:2], torch.inf, dtype=wide(slices), device=slices.device)
        fixed = self.gate == "fixed" or number == grid.slices
        gate = None if weights is None or fixed else weights.gate
        seen = []
        for at, momentum in enumerate(momenta(slices, self.alpha) if left_out or not fixed else (), start=1):
            norms[at] = torch.linalg.vector_norm(momentum, dim=-1)
            if gate is not None:
                seen.append(gate.glance(momentum.clone() if torch.is_grad_enabled() else momentum))
        if fixed:
            return norms, Chosen([cube * grid.slices // number for cube in range(number)])
        means = norms.mean(dim=1)
        if gate is None or weights is None:
            return norms, Chosen(highest(means[1:], number))
        logits = gate(torch.stack(seen), means[1:])
        if tokens.training and weights.training and any(part.requires_grad for part in gate.parameters()):
            return norms, straight_through(logits, number, weights.noise, self.temperature, self.logit_penalty)
        return norms, Chosen(highest(logits, number))


def _is_number(value: object, least: float, most: float) -> bool:
    """Finite, and in that range."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most and value < math.inf
    )


def _times(tokens: VideoTokens) -> torch.Tensor:
    """(T,) when each slice is, as the host counts: by its temporal positions where it has any, else slice by slice."""
    first = tokens.positions[0, :: tokens.grid.slice_tokens]
    return first - first[0] if len(tokens.positions) == 3 else torch.arange(tokens.grid.slices)
