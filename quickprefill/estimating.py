"""estimate(): what a generate() call will take, before it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from quickprefill import versions
from quickprefill.applying import configured
from quickprefill.budget.fit import fitted
from quickprefill.budget.groups import check_slices
from quickprefill.budget.plan import Plan, plan_row
from quickprefill.budget.rows import batch_bytes
from quickprefill.cache.layer import stored_tokens
from quickprefill.config import QuickPrefillConfig
from quickprefill.errors import InputError
from quickprefill.hosts.base import Host
from quickprefill.prompt.spans import Grid, find_videos

__all__ = ["Estimate", "estimate"]


@dataclass(frozen=True)
class Estimate:
    """A prefill to come; sums over the rows of a batch, but the rows pass one after the other."""

    video_tokens: int
    group_frames: int
    """Frames in the largest group: the config's, or what it would choose now."""
    groups: int
    cache_bytes: int
    """Keys and values stored once the prefill is done."""
    reserved_bytes: int
    """Their storage at its fullest: room for a group before it is pruned included."""
    activation_bytes: int
    """Most that is alive besides weights, inputs and storage, on the fullest device."""
    peak_bytes: dict[str, int]
    """Storage and activations together at their fullest moment, by device."""
    flops: float
    """Multiplications and additions in matrix products."""
    seconds: float | None
    """At the speed of this model's last prefill; None before the first."""

    def __str__(self) -> str:
        seconds = "unknown before a first prefill" if self.seconds is None else f"{self.seconds:.1f}"
        return (
            f"{self.video_tokens} video tokens in {self.groups} groups of {self.group_frames} frames; cache "
            f"{self.cache_bytes / 2**20:.1f} MiB of {self.reserved_bytes / 2**20:.1f} MiB reserved, activations "
            f"{self.activation_bytes / 2**20:.1f} MiB; {self.flops / 1e12:.2f} TFLOP; seconds: {seconds}"
        )


def estimate(
    model: Any, inputs: Mapping[str, Any], config: QuickPrefillConfig | None = None, **overrides: Any
) -> Estimate:
    """Bytes and work of prefilling `inputs`, from sizes alone: nothing is run and no pixel is touched.

    Args:
        model: a patched or stock model.
        inputs: what the processor gave: input_ids, attention_mask, video_grid_thw. In a later turn also
            the cache, under the name by which generate() takes it, and then input_ids of all turns, as generate()
            does, or of the new one with the mask of all, as forward() does.
        config: default the config that the model is patched with, else QuickPrefillConfig().
        **overrides: fields of the config that differ.

    What a policy drops by looking at the content (PruneVid) is not foreseen: figures are then upper bounds. Seconds
    scale with `flops` from the model's last prefill.

    Raises:
        ConfigError, UnsupportedModelError: as apply() does.
        InputError: prompt and grids do not fit together, or there is no video.
        MemoryBudgetError: group_frames="auto", and not even two frames fit.
    """
    core, host, config, before = configured(model, config, overrides)
    grids = host.grids(core, inputs)
    if not grids:
        raise InputError("the inputs hold no video; pass what the processor returned for a prompt with one")
    layers = getattr(versions.cache_of(inputs), "layers", [])
    past = [stored_tokens(layer) for layer in layers]
    plans = [_plan(host, core, config, ids, own, past) for ids, own in _prompts(host, core, inputs, grids)]
    reserved, peak = batch_bytes(host.geometry(core), plans)
    flops = sum(plan.flops for plan in plans)
    return Estimate(
        video_tokens=sum(grid.num_tokens for grid in grids),
        group_frames=max(plan.most_group_slices for plan in plans) * host.frames_per_slice(core),
        groups=sum(plan.groups for plan in plans),
        cache_bytes=sum(plan.cache_bytes for plan in plans),
        reserved_bytes=sum(reserved.values()),
        activation_bytes=max(most for plan in plans for most in plan.activation_bytes.values()),
        peak_bytes={str(device): most for device, most in peak.items()},
        flops=flops,
        seconds=None if before is None else flops / before.flops * sum(before.seconds.values()),
    )


def _prompts(
    host: Host, core: Any, inputs: Mapping[str, Any], grids: list[Grid]
) -> list[tuple[torch.Tensor, list[Grid]]]:
    """Each row's ids without padding, and the grids of its videos."""
    ids, mask, left = inputs["input_ids"].cpu(), inputs.get("attention_mask"), list(grids)
    past = versions.cache_of(inputs)
    seen = 0 if past is None else past.get_seq_length()
    if seen < ids.shape[1] and (mask is None or mask.shape[1] == ids.shape[1]):
        ids = ids[:, seen:]
    prompts = []
    for number in range(ids.shape[0]):
        row = ids[number] if mask is None else ids[number, mask[number, -ids.shape[1] :].bool().cpu()]
        row = host.named(core, row)
        own: list[Grid] = []
        missing = int((row == host.video_token_id(core)).sum())
        while left and missing > 0:
            own.append(left.pop(0))
            missing -= own[-1].num_tokens + host.closing_placeholders
        prompts.append((row, own))
    return prompts


def _plan(
    host: Host, core: Any, config: QuickPrefillConfig, ids: torch.Tensor, grids: list[Grid], past: Sequence[int]
) -> Plan:
    check_slices(config, grids)
    spans = find_videos(ids, host.video_token_id(core), grids, host.closing_placeholders)
    geometry = host.geometry(core)
    frames_per_slice, tail = host.frames_per_slice(core), spans[-1].stop if spans else 0
    config = fitted(geometry, config, spans, len(ids), frames_per_slice)
    return plan_row(
        geometry,
        config,
        spans,
        len(ids),
        frames_per_slice,
        past=past,
        question=len(ids) - tail if config.question_rides else 0,
        wants=lambda group: group.stop == len(ids),
    )
