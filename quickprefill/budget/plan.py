"""What a prefill will cost, from sizes alone: cache slots and bytes, activation bytes of a group, work in FLOPs.

Where a policy decides by content how many tokens stay (PruneVid), figures are those of a video that it cannot shrink.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import psutil
import torch

from quickprefill.budget.counts import num_kept
from quickprefill.cache.layer import ROOM_TOKENS
from quickprefill.config import QuickPrefillConfig
from quickprefill.errors import MemoryBudgetError
from quickprefill.hosts.base import Geometry
from quickprefill.prompt.spans import Grid, Group, split_prompt

__all__ = ["ENOUGH_TOKENS", "Plan", "free_bytes", "largest_group_slices", "plan_prompt", "split_lengths"]

ENOUGH_TOKENS = {"cpu": 1024}
"""Device type -> tokens of a group beyond which nothing gets faster; a CPU's caches hold no larger group."""
_ENOUGH_TOKENS_ELSEWHERE = 8192
_SHARE_OF_FREE = 0.8
"""Share of the free memory that "auto" plans with; allocators need some room between blocks."""


@dataclass(frozen=True)
class Plan:
    """One prompt's prefill."""

    capacity: int
    """Cache slots that a layer needs at its fullest, and room to decode into."""
    cache_bytes: int
    """Keys and values stored in all layers once the prefill is done."""
    reserved_bytes: int
    """Storage of all layers with that capacity."""
    activation_bytes: int
    """Most that is alive besides weights, pixels and storage, while a group passes."""
    flops: float
    """Multiplications and additions in matrix products: vision tower, decoder layers, attention."""


def plan_prompt(
    geometry: Geometry,
    config: QuickPrefillConfig,
    groups: Sequence[Group],
    grids: Sequence[Grid],
    num_tail: int,
    finishing: Collection[int] = (),
) -> Plan:
    """The plan of a prompt cut into groups with `num_tail` tokens behind them.

    Args:
        grids: those of its videos.
        finishing: groups whose final hidden states are read; in the others the last layer only fills its cache.
    """
    whole = config.scorer is not None and config.scorer.uses_residual
    stored = [0] * geometry.layers
    capacity, activation, flops = 0, 0, 0.0
    for group in groups:
        entered = entering_tokens(config, group.num_video)
        new = group.num_text + entered
        capacity = max(capacity, max(stored) + new)
        activation = max(activation, activation_bytes(geometry, group.num_text + group.num_video, group.num_video))
        flops += vision_flops(geometry, group.num_video, grids[group.video].slice_tokens)
        for layer in range(geometry.layers):
            if layer + 1 < geometry.layers or whole or group.index in finishing:
                flops += layer_flops(geometry, new, stored[layer])
            else:
                flops += store_flops(geometry, new)
            kept = min(num_kept(config, group.num_video, layer, geometry.layers), entered)
            stored[layer] += group.num_text + kept
            if config.progressive_from is not None and layer >= config.progressive_from:
                new = min(new, group.num_text + kept)
    flops += sum(layer_flops(geometry, num_tail, length) for length in stored)
    capacity = max(capacity, max(stored) + num_tail) + ROOM_TOKENS
    return Plan(
        capacity=capacity,
        cache_bytes=sum(length + num_tail for length in stored) * geometry.kv_bytes,
        reserved_bytes=capacity * geometry.layers * geometry.kv_bytes,
        activation_bytes=max(activation, activation_bytes(geometry, num_tail, 0)),
        flops=flops,
    )


def entering_tokens(config: QuickPrefillConfig, num_video: int) -> int:
    """How many of a group's tokens enter the decoder, as far as that is known beforehand."""
    compressor = config.policy_for("compress")
    ratio = getattr(compressor, "retention_ratio", 1.0)
    return max(int(ratio * num_video + 0.5), 1)


def activation_bytes(geometry: Geometry, num_tokens: int, num_video: int) -> int:
    """Bytes alive at the fullest moment of a stretch of `num_tokens`, `num_video` of them from the vision tower."""
    size, tokens = geometry.dtype.itemsize, num_tokens
    patches = num_video * geometry.patches_per_token
    # Residual, its norm, and the widest step: attention's q, k, v before and after rotary and its output, or the MLP.
    step = max(7 * geometry.vision_hidden, 3 * geometry.vision_mlp)
    vision = patches * (4 * geometry.patch_values + size * (2 * geometry.vision_hidden + step))
    attention = (3 * geometry.heads + 4 * geometry.kv_heads) * geometry.head_dim
    embeds = tokens * size * (2 * geometry.hidden + 2 * geometry.head_dim)
    decoder = embeds + tokens * size * (2 * geometry.hidden + max(attention, 3 * geometry.mlp))
    return int(max(vision, decoder))


def vision_flops(geometry: Geometry, num_video: int, slice_tokens: int) -> float:
    """Work of the vision tower, its merger included, as if every layer attended to the whole slice."""
    width, patches = geometry.vision_hidden, num_video * geometry.patches_per_token
    layer = 8 * width**2 + 6 * width * geometry.vision_mlp + 4 * width * slice_tokens * geometry.patches_per_token
    merged = width * geometry.patches_per_token
    merger = 2 * merged**2 + 2 * merged * geometry.hidden
    embed = 2 * geometry.patch_values * width
    return float(patches * (geometry.vision_layers * layer + embed) + num_video * merger)


def layer_flops(geometry: Geometry, new: int, stored: int) -> float:
    """Work of one decoder layer for `new` tokens behind `stored` ones."""
    heads = geometry.heads * geometry.head_dim
    projections = 2 * geometry.hidden * (2 * heads + 2 * geometry.kv_heads * geometry.head_dim)
    linear = projections + 6 * geometry.hidden * geometry.mlp
    return float(new * linear + 4 * heads * new * (stored + new / 2))


def store_flops(geometry: Geometry, new: int) -> float:
    """Work of projecting `new` tokens to a layer's keys and values."""
    return float(new * 2 * geometry.hidden * 2 * geometry.kv_heads * geometry.head_dim)


def largest_group_slices(
    geometry: Geometry, config: QuickPrefillConfig, grids: Sequence[Grid], num_text: int, device: torch.device
) -> int:
    """The most temporal slices a group may have: what fits the device's free memory, but no more than helps.

    Args:
        num_text: tokens of the prompt that are not video.

    Raises:
        MemoryBudgetError: not even one slice fits beside the cache.
    """
    slice_tokens = max(grid.slice_tokens for grid in grids)
    enough = ENOUGH_TOKENS.get(device.type, _ENOUGH_TOKENS_ELSEWHERE)
    most = min(max(enough // slice_tokens, 1), max(grid.slices for grid in grids))
    free = free_bytes(device)
    room = int(free * _SHARE_OF_FREE)
    for slices in range(most, 0, -1):
        groups, tail = split_lengths(grids, slices, num_text)
        plan = plan_prompt(geometry, config, groups, grids, tail)
        if plan.reserved_bytes + plan.activation_bytes <= room:
            return slices
    raise MemoryBudgetError(
        f"beside the weights this prompt needs {plan.reserved_bytes / 2**30:.2f} GiB of cache and "
        f"{plan.activation_bytes / 2**30:.2f} GiB for two frames of {slice_tokens} tokens at a time, but of the "
        f"{free / 2**30:.2f} GiB that are free on {device} only {_SHARE_OF_FREE:.0%} can be planned with; use a "
        "smaller keep, fewer or smaller frames, or free memory"
    )


def split_lengths(grids: Sequence[Grid], group_slices: int, num_text: int) -> tuple[list[Group], int]:
    """Groups of a prompt whose `num_text` text tokens all stand behind its videos, and their number."""
    ids = [0] * sum(grid.num_tokens for grid in grids) + [1] * num_text
    groups, _ = split_prompt(ids, 0, grids, group_slices)
    return groups, num_text


def free_bytes(device: torch.device) -> int:
    """Memory that this process can still get on a device."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    free, total = torch.cuda.mem_get_info(device)
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    allowed = int(torch.cuda.get_per_process_memory_fraction(device) * total) - allocated
    return min(free + reserved - allocated, allowed)
