"""A resampler that learns what of a cube to add to its mean, starting from nothing (Quicksviewer, arXiv 2504.15270)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from quickprefill.errors import ConfigError

__all__ = ["Resampler", "resampler_bytes"]

_MOST_INNER, _HEAD = 1024, 128
_SLICES_AT_ONCE, _TOKENS_AT_ONCE = 32, 4096


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
