"""The rows of a batch: prefilled one after the other, then laid side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from quickprefill.budget.plan import Plan
from quickprefill.hosts.geometry import Geometry

__all__ = ["batch_bytes"]

_ByDevice = dict[torch.device, int]


def batch_bytes(geometry: Geometry, plans: Sequence[Plan]) -> tuple[_ByDevice, _ByDevice]:
    """Storage at its fullest, and storage with activations at theirs.

    What a row has stored lies there while the next ones pass. Then each layer of all rows is laid side by side, as long
    as in the longest of them, and is free again in the rows before it is the next one's turn.
    """
    devices = {device for plan in plans for device in plan.peak_bytes}
    storage, peak = dict.fromkeys(devices, 0), dict.fromkeys(devices, 0)
    for plan in plans:
        for device in devices:
            peak[device] = max(peak[device], storage[device] + plan.peak_bytes[device])
            storage[device] += plan.reserved_bytes.get(device, 0)
    fullest = dict(storage)
    if len(plans) > 1:
        for layer, device in enumerate(geometry.devices):
            longest, state = max(plan.stored[layer] for plan in plans), len(plans) * geometry.state_bytes(layer)
            storage[device] += len(plans) * longest * geometry.kv_bytes + state
            fullest[device] = max(fullest[device], storage[device])
            storage[device] -= sum(plan.slots[layer] for plan in plans) * geometry.kv_bytes + state
    return fullest, {device: max(peak[device], fullest[device]) for device in devices}
