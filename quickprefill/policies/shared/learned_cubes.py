"""What Cubes can learn: a gate that says where cubes begin, and a resampler that fills them.

After Quicksviewer (arXiv 2504.15270), with two differences: both start as the rule that needs no training, and the gate
sees each place of a slice before it takes their mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

from quickprefill.errors import ConfigError

__all__ = ["Chosen", "CubesWeights", "Gate", "Resampler", "gate_bytes", "resampler_bytes", "straight_through"]

NOISE = 0.1
"""Weight of the noise in training where no callback anneals it."""
_PRIOR = 2.0
"""Weight of the momentum in an untrained gate's logits."""
_MOST_INNER, _HEAD = 1024, 128
_MOST_SEEN = 256
_SLICES_AT_ONCE, _TOKENS_AT_ONCE = 32, 4096


class CubesWeights(nn.Module):
    """The parameters of a `Cubes` policy; `noise` is the weight of the noise in a gate that trains."""

    def __init__(self, width: int, gate: bool, resampler: bool) -> None:
        super().__init__()
        self.gate = Gate(width) if gate else None
        self.resampler = Resampler(width) if resampler else None
        self.noise = NOISE

    def forward(self, compress: Any, *args: Any) -> Any:
        """compress(self, *args): whoever wraps modules (FSDP, PEFT) sees their parameters used inside a call."""
        return compress(self, *args)


class Gate(nn.Module):
    """One logit a slice: how much sooner than another it opens a cube.

    The paper's gate has two logits, whose difference is this one. At first it is _PRIOR x log of the mean norm of the
    momentum: cubes begin where the rule without training says.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = min(width, _MOST_SEEN)
        self.look = nn.Linear(width, inner)
        self.norm = nn.LayerNorm(inner)
        self.hidden = nn.Linear(inner, inner)
        self.score = nn.Linear(inner, 1)
        self.log_prior = nn.Parameter(torch.zeros(1))  # not a scalar, which FSDP cannot spread
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, seen: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        """(T - 1,) float64 logits, whatever type the weights have.

        Args:
            seen: (T - 1, inner), what `glance` made of each slice but the first.
            norms: (T - 1,) mean norms of their momentum.
        """
        hidden = layer_norm(seen, seen.shape[-1:], *_float(self.norm))
        learned = linear(gelu(linear(hidden, *_float(self.hidden))), *_float(self.score))[:, 0]
        prior = _PRIOR * self.log_prior.double().exp() * (norms.double() + 1e-6).log()
        return prior + learned

    def glance(self, momentum: torch.Tensor) -> torch.Tensor:
        """(P, C) float32 -> (inner,): each place by itself, then their mean."""
        return gelu(linear(momentum, *_float(self.look))).mean(dim=0)


class Resampler(nn.Module):
    """Adds to each token of a cube what it finds among all tokens of the cube's slices; at first nothing.

    One query vector serves cubes of any number of tokens: beside it stand the token's mean and its place.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        if width % 16:
            raise ConfigError(
                f'resampler="attention" writes places into widths that 16 divides, but the model is {width} wide; '
                'use resampler="mean"'
            )
        inner = min(width, _MOST_INNER)
        self.heads = inner // _HEAD if inner % _HEAD == 0 else 1
        self.query = nn.Parameter(torch.randn(width) * 0.02)
        self.norm_query, self.norm_key = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_query = nn.Linear(width, inner, bias=False)
        self.to_key = nn.Linear(width, inner, bias=False)
        self.to_value = nn.Linear(width, inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(
        self, slices: torch.Tensor, means: torch.Tensor, starts: Sequence[int], times: torch.Tensor, centres: list[int]
    ) -> torch.Tensor:
        """(K, q, C): what to add to the cubes' means.

        Args:
            slices: (T, rows, columns, C).
            means: (K, q, C).
            times: (T,) of the slices, as the host counts them.
            centres: the q places of a cube's tokens in a slice.
        """
        rows, columns, width = slices.shape[1:]
        dtype, device = self.to_key.weight.dtype, slices.device
        raster = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).to(device).view(-1, 2)
        spatial, temporal = _codes(raster, width * 3 // 8), _codes(times.to(device)[:, None], width // 4)
        keys = self._keys(slices, spatial, temporal)
        values = torch.cat([self.to_value(block) for block in self._normed(slices)])
        stops = [*starts[1:], len(slices)]
        first = temporal[torch.tensor(starts, device=device)]
        own = self.norm_query(means.to(dtype) + self.query) + _laid(first, spatial[centres], dtype)
        queries = self.to_query(own)
        added = [torch.empty(0)] * len(starts)
        for cubes in _alike([stop - start for start, stop in zip(starts, stops, strict=True)]):
            inside = [slice(starts[cube], stops[cube]) for cube in cubes]
            own_keys, own_values = (torch.stack([part[one] for one in inside]).flatten(1, 2) for part in (keys, values))
            found = scaled_dot_product_attention(
                self._by_head(queries[cubes]), self._by_head(own_keys), self._by_head(own_values)
            )
            for cube, out in zip(cubes, self.out(found.transpose(1, 2).flatten(2)), strict=True):
                added[cube] = out
        return torch.stack(added)

    def _keys(self, slices: torch.Tensor, spatial: torch.Tensor, temporal: torch.Tensor) -> torch.Tensor:
        dtype = self.to_key.weight.dtype
        blocks = zip(self._normed(slices), torch.split(temporal, _slices_at_once(len(spatial))), strict=True)
        return torch.cat([self.to_key(block + _laid(times, spatial, dtype)) for block, times in blocks])

    def _normed(self, slices: torch.Tensor) -> Iterator[torch.Tensor]:
        """Some slices at a time, (n, P, C)."""
        step = _slices_at_once(slices.shape[1] * slices.shape[2])
        for at in range(0, len(slices), step):
            yield self.norm_key(slices[at : at + step].to(self.to_key.weight.dtype).flatten(1, 2))

    def _by_head(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.view(*rows.shape[:-1], self.heads, -1).transpose(-3, -2)


def gate_bytes(slices: int, slice_tokens: int, width: int) -> int:
    """The most bytes alive at once in a Gate, all of it in float32: weights, one slice seen, what was seen of all."""
    inner = min(width, _MOST_SEEN)
    return 4 * inner * (width + inner + 2 * slice_tokens + 5 * slices)


def resampler_bytes(slices: int, cubes: int, size: int, slice_tokens: int, width: int, itemsize: int) -> int:
    """The most bytes alive at once in a Resampler: keys and values of all slices, and the cubes' tokens."""
    inner, step = min(width, _MOST_INNER), min(_slices_at_once(slice_tokens), slices)
    projected = 2 * slices * slice_tokens * inner * itemsize
    codes = 4 * (slice_tokens * width * 3 // 4 + slices * width // 4)
    block = step * slice_tokens * width * (3 * itemsize + 8)
    tokens = cubes * size * (2 * width + inner) * itemsize
    taken = min(max(slices - cubes + 1, _SLICES_AT_ONCE), slices) * slice_tokens * 2 * inner * itemsize
    added = 2 * cubes * size * width * itemsize
    return codes + added + projected + max(block, projected // 2, tokens + taken)


def _slices_at_once(slice_tokens: int) -> int:
    return max(_TOKENS_AT_ONCE // slice_tokens, 1)


def _alike(lengths: list[int]) -> list[list[int]]:
    """Cubes of one length together, as many as make _SLICES_AT_ONCE: attention without a mask."""
    batches = []
    for length in sorted(set(lengths)):
        cubes = [cube for cube, own in enumerate(lengths) if own == length]
        step = max(_SLICES_AT_ONCE // length, 1)
        batches += [cubes[first : first + step] for first in range(0, len(cubes), step)]
    return batches


def _codes(numbers: torch.Tensor, width: int) -> torch.Tensor:
    """Sines, then cosines, of each number, (n, axes) -> (n, axes x width) float32."""
    half = width // 2
    rates = 10000.0 ** (-torch.arange(half, device=numbers.device) / half)
    angles = numbers.float()[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def _laid(temporal: torch.Tensor, spatial: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Codes of every time with every place, (..., 2C/8) and (n, 6C/8) -> (..., n, C)."""
    times = temporal[..., None, :].expand(*temporal.shape[:-1], len(spatial), -1)
    return torch.cat([times, spatial.expand(*times.shape[:-1], -1)], dim=-1).to(dtype)


def _float(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias in float32."""
    return cast(torch.Tensor, module.weight).float(), cast(torch.Tensor, module.bias).float()


@dataclass(frozen=True)
class Chosen:
    """Where cubes begin, and what a gradient may say about it."""

    starts: list[int]
    """Ascending, K of them, 0 among them."""
    straight: torch.Tensor | None = None
    """(T,) zeros with a gradient: by how much more each slice should have been chosen; None where nothing trains."""


def straight_through(
    logits: torch.Tensor, number: int, noise: float = 0.0, temperature: float = 0.5, penalty: float = 0.0
) -> Chosen:
    """The `number` - 1 slices of highest logit, and slice 0.

    Args:
        logits: (T - 1,) of slices 1 .. T-1, number < T.
        noise: weight of the logistic noise beside them, which is what Gumbel noise on two logits amounts to. 0: none.
        penalty: weight in the loss of the mean norm of the paper's two logits, here from the threshold on; it enters
            in the backward pass, since the loss is not ours to add to.
    """
    if noise:
        uniform = torch.rand(len(logits), device=logits.device).clamp(1e-7, 1 - 1e-7)
        logits = logits + noise * uniform.double().logit()
    order = logits.argsort(descending=True, stable=True)
    chosen = order[: number - 1].sort().values
    starts: list[int] = [0, *(chosen + 1).tolist()]
    if not logits.requires_grad:
        return Chosen(starts)
    # Only differences of logits matter, so probabilities are taken from the threshold between chosen and not chosen.
    threshold = logits[order[max(number - 2, 0) : number]].detach().mean()
    probability = (_Penalised.apply(logits - threshold, penalty) / temperature).sigmoid()
    return Chosen(starts, torch.cat([probability.new_zeros(1), probability - probability.detach()]))


class _Penalised(torch.autograd.Function):
    """The logits; the backward pass adds the gradient of the penalty."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, weight: float) -> torch.Tensor:
        ctx.save_for_backward(logits)
        ctx.weight = weight
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (logits,) = ctx.saved_tensors
        # The norm of (-x / 2, x / 2) is |x| / sqrt(2).
        return gradient + ctx.weight / (math.sqrt(2) * len(logits)) * logits.sign(), None
