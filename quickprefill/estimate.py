"""estimate(): what a generate() call will take, before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quickprefill.apply import configured, last_report
from quickprefill.budget.plan import plan_prompt
from quickprefill.errors import InputError
from quickprefill.loop.prefill import group_slices
from quickprefill.prompt.spans import split_prompt

__all__ = ["Estimate", "estimate"]


@dataclass(frozen=True)
class Estimate:
    """A prefill to come; sums over the rows of a batch, but the rows pass one after the other."""

    video_tokens: int
    group_frames: int
    """Frames in a group: the config's, or what "auto" would choose now."""
    groups: int
    cache_bytes: int
    """Keys and values stored once the prefill is done."""
    activation_bytes: int
    """Most that is alive besides weights, inputs and cache, while a group passes."""
    flops: float
    """Multiplications and additions in matrix products."""
    seconds: float | None
    """At the speed of this model's last prefill; None before the first."""

    def __str__(self) -> str:
        seconds = "unknown before a first prefill" if self.seconds is None else f"{self.seconds:.1f}"
        return (
            f"{self.video_tokens} video tokens in {self.groups} groups of {self.group_frames} frames; cache "
            f"{self.cache_bytes / 2**20:.1f} MiB, activations {self.activation_bytes / 2**20:.1f} MiB, "
            f"{self.flops / 1e12:.2f} TFLOP; seconds: {seconds}"
        )


def estimate(model: Any, inputs: Mapping[str, Any], config: Any = None, **overrides: Any) -> Estimate:
    """Bytes and work of prefilling `inputs`, from sizes alone: nothing is run and no pixel is touched.

    Args:
        model: a patched or stock model.
        inputs: what the processor gave: input_ids, attention_mask, video_grid_thw.
        config: default the config that the model is patched with, else QuickPrefillConfig().
        **overrides: fields of the config that differ.

    What a policy drops by looking at the content (PruneVid) is not foreseen: figures are then upper bounds. Eager
    attention's maps are not counted. Seconds scale with `flops` from the model's last prefill.

    Raises:
        ConfigError, UnsupportedModelError: as apply() does.
        InputError: prompt and grids do not fit together, or there is no video.
        MemoryBudgetError: group_frames="auto", and not even two frames fit.
    """
    target, family, config = configured(model, config, overrides)
    grids = family.grids(target, inputs)
    if not grids:
        raise InputError("the inputs hold no video; pass what the processor returned for a prompt with one")
    geometry, token = family.geometry(target), family.video_token_id(target)
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    plans, num_groups, most_slices = [], 0, 0
    left = list(grids)
    for number, row in enumerate(ids.tolist()):
        tokens = row if mask is None else [one for one, seen in zip(row, mask[number].tolist(), strict=True) if seen]
        own, missing = [], tokens.count(token)
        while left and missing > 0:
            own.append(left.pop(0))
            missing -= own[-1].num_tokens
        slices = group_slices(target, family, config, own, len(tokens))
        groups, tail = split_prompt(tokens, token, own, slices)
        most_slices = max(most_slices, slices)
        num_groups += len(groups)
        finishing = [groups[-1].index] if groups and tail == len(tokens) else []
        plans.append(plan_prompt(geometry, config, groups, own, len(tokens) - tail, finishing))
    flops = sum(plan.flops for plan in plans)
    before = last_report(target)
    return Estimate(
        video_tokens=sum(grid.num_tokens for grid in grids),
        group_frames=most_slices * family.frames_per_slice(target),
        groups=num_groups,
        cache_bytes=sum(plan.cache_bytes for plan in plans),
        activation_bytes=max(plan.activation_bytes for plan in plans),
        flops=flops,
        seconds=None if before is None else flops / before.flops * sum(before.seconds.values()),
    )
