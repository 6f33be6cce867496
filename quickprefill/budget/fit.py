""" "auto": the largest group that fits the devices' free memory, but none larger than helps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import psutil
import torch

from quickprefill.budget.plan import Plan, plan_row
from quickprefill.config import QuickPrefillConfig
from quickprefill.errors import MemoryBudgetError
from quickprefill.hosts.geometry import Geometry
from quickprefill.prompt.spans import VideoSpan

__all__ = ["ENOUGH_TOKENS", "fitted", "free_bytes"]

ENOUGH_TOKENS = {"cpu": 1024}
"""Device type -> tokens of a group beyond which nothing gets faster; a CPU's caches hold no larger group."""
_ENOUGH_TOKENS_ELSEWHERE = 8192
_SHARE_OF_FREE = 0.8
"""Share of the free memory that "auto" plans with; allocators need some room between blocks."""


def fitted(
    geometry: Geometry, config: QuickPrefillConfig, spans: Sequence[VideoSpan], length: int, frames_per_slice: int
) -> QuickPrefillConfig:
    """The config with a number of frames for "auto"; any other as it is.

    Raises:
        MemoryBudgetError: not even one temporal slice at a time fits beside the cache.
    """
    if config.group_frames != "auto" or not spans:
        return config
    enough = ENOUGH_TOKENS.get(geometry.devices[0].type, _ENOUGH_TOKENS_ELSEWHERE)
    slice_tokens = max(span.grid.slice_tokens for span in spans)
    most = min(max(enough // slice_tokens, 1), max(span.grid.slices for span in spans))
    step = 1 if frames_per_slice % 2 == 0 else 2  # a config counts an even number of frames
    free = {device: free_bytes(device) for device in {*geometry.devices, geometry.vision_device}}

    def with_steps(steps: int) -> QuickPrefillConfig:
        return replace(config, group_frames=steps * step * frames_per_slice)

    def plan(steps: int) -> Plan:
        return plan_row(geometry, with_steps(steps), spans, length, frames_per_slice)

    def fits(steps: int) -> bool:
        needed = plan(steps).peak_bytes
        return all(needed[device] <= free[device] * _SHARE_OF_FREE for device in needed)

    if not fits(1):
        raise MemoryBudgetError(_refusal(plan(1), free, slice_tokens))
    return with_steps(_largest(fits, max(most // step, 1)))


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number in 1..most that fits, where 1 does and what fits grows no smaller by chance."""
    low, high = 1, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _refusal(plan: Plan, free: dict[torch.device, int], slice_tokens: int) -> str:
    device = max(free, key=lambda one: plan.peak_bytes.get(one, 0) / max(free[one], 1))
    reserved, activation = plan.reserved_bytes.get(device, 0), plan.activation_bytes.get(device, 0)
    return (
        f"beside the weights this prompt needs {reserved / 2**30:.2f} GiB of cache and {activation / 2**30:.2f} GiB "
        f"for one temporal slice of {slice_tokens} tokens at a time, but of the {free[device] / 2**30:.2f} GiB that "
        f"are free on {device} only {_SHARE_OF_FREE:.0%} can be planned with; use a smaller keep, fewer or smaller "
        "frames, or free memory"
    )


def free_bytes(device: torch.device) -> int:
    """Memory that this process can still get on a device."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    free, total = torch.cuda.mem_get_info(device)
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    allowed = int(torch.cuda.get_per_process_memory_fraction(device) * total) - allocated
    return min(free + reserved - allocated, allowed)
