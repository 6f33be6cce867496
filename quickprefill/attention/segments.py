"""Attention within segments: a vision tower's windows and slices, all of one length in one call.

Without flash-attn a host cuts queries, keys and values along the segments' boundaries and calls SDPA for each: hundreds
of small calls in every layer, which take longer to launch than to run. Segments of equal length are a batch:

    lengths 4 4 2 4      x x x x | x x x x | x x | x x x x   ->   (3, H, 4, D) and (1, H, 2, D)
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
import torch.nn.functional as F

from quickprefill.attention.interface import host_attention, host_implementation, in_place_of_hosts

__all__ = ["batched_segments", "boundaries_on", "segment_attention"]

# Hosts hand the boundaries over, instead of cutting along them, where the name of the implementation has "flash" in it.
_KIND = "flash_segments"
_LENGTHS = "_quickprefill_lengths"
"""Attribute of boundaries that lie on a device: the lengths between them."""
_MOST_SEGMENTS = 1 << 14
"""In one call; a CUDA kernel's grid ends at 65,535."""


def segment_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: tuple[int, ...], scale: float
) -> torch.Tensor:
    """Attention of (1, H, n, D) within consecutive segments of these lengths, as (1, n, H, D)."""
    by_length = _rows_by_length(lengths, query.device)
    if len(by_length) == 1:
        return _batch(query, key, value, length=by_length[0][0], scale=scale)
    output = torch.empty_like(query.transpose(1, 2))
    for length, rows in by_length:
        parts = (part.index_select(2, rows) for part in (query, key, value))
        output.index_copy_(1, rows, _batch(*parts, length=length, scale=scale))
    return output


def _batch(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, length: int, scale: float) -> torch.Tensor:
    """Attention of (1, H, n, D) within segments of one length, as (1, n, H, D)."""
    heads, dim = query.shape[1], query.shape[3]
    batches = (part.view(heads, -1, length, dim).transpose(0, 1) for part in (query, key, value))
    parts = (torch.split(batch, _MOST_SEGMENTS) for batch in batches)
    attended = [F.scaled_dot_product_attention(q, k, v, scale=scale) for q, k, v in zip(*parts, strict=True)]
    batch = torch.cat(attended) if len(attended) > 1 else attended[0]
    return batch.transpose(1, 2).flatten(0, 1)[None]


@functools.lru_cache(maxsize=16)
def _rows_by_length(lengths: tuple[int, ...], device: torch.device) -> list[tuple[int, torch.Tensor]]:
    """Each length that occurs, and the rows of its segments in order."""
    of_segment = torch.tensor(lengths)
    of_row = of_segment.repeat_interleave(of_segment)
    return [(length, (of_row == length).nonzero()[:, 0].to(device)) for length in sorted(set(lengths) - {0})]


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **kwargs: Any
) -> Any:
    """The host's sdpa, but by segments where it is given their boundaries."""
    boundaries = kwargs.get("cu_seq_lens_q")
    if boundaries is None:
        return host_attention("sdpa", module)(module, query, key, value, attention_mask, **kwargs)
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    lengths = getattr(boundaries, _LENGTHS, None) or tuple(boundaries.diff().tolist())
    return segment_attention(query, key, value, lengths, scale), None


def boundaries_on(device: torch.device, boundaries: torch.Tensor) -> torch.Tensor:
    """Boundaries (S + 1,) from the CPU on a device where a tower needs them, so that no layer reads them back."""
    there = boundaries.to(device)
    setattr(there, _LENGTHS, tuple(boundaries.diff().tolist()))
    return there


def batched_segments(config: Any) -> contextlib.AbstractContextManager[None]:
    """While a vision tower on "sdpa" runs, its segments are attended to in batches."""
    if host_implementation(config) != "sdpa":
        return contextlib.nullcontext()
    return in_place_of_hosts(config, _KIND, _attend)
