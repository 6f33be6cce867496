"""What a prefill takes, from sizes alone: slots of each layer, bytes on each device, work in FLOPs.

One simulation of the groups drives the loop (how much each layer reserves), estimate() and group_frames="auto". Where a
policy decides by content how many tokens stay (PruneVid), figures are the most that it may leave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from quickprefill.budget.activations import decoder_bytes, whole_video_bytes
from quickprefill.budget.counts import num_kept, selected_count, stored_count
from quickprefill.budget.flops import layer_flops, store_flops, vision_flops
from quickprefill.budget.groups import expected_entering, group_slices, tower_slices
from quickprefill.config import QuickPrefillConfig
from quickprefill.hosts.base import Geometry
from quickprefill.prompt.spans import Group, VideoSpan

__all__ = ["Passing", "Plan", "passing_groups", "plan_row"]


@dataclass(frozen=True)
class Plan:
    """One prompt's prefill."""

    groups: int
    most_group_slices: int
    slots: tuple[int, ...]
    """What each layer reserves at first behind what the cache holds: its fullest moment. 0 where that is the content's
    to say; storage then grows, and is trimmed at the end."""
    stored: tuple[int, ...]
    """Tokens that the prompt leaves in each layer, text included."""
    room: int
    """Tokens to come for which each layer reserves in the end."""
    cache_bytes: int
    """Keys and values of `stored`."""
    reserved_bytes: dict[torch.device, int]
    """Storage at its fullest, by device."""
    activation_bytes: dict[torch.device, int]
    """Most that is alive besides weights, inputs and storage, by device."""
    flops: float
    """Multiplications and additions in matrix products: vision tower, decoder layers, attention."""

    @property
    def peak_bytes(self) -> dict[torch.device, int]:
        """Storage and activations together, by device."""
        devices = {**self.reserved_bytes, **self.activation_bytes}
        return {at: self.reserved_bytes.get(at, 0) + self.activation_bytes.get(at, 0) for at in devices}


@dataclass(frozen=True)
class Passing:
    """A group as far as it is known beforehand."""

    group: Group
    entered: int
    """Video tokens that enter the decoder."""
    unit_tokens: int
    unit_entered: int
    """As in Entering: of the group or video in which a compressor compares tokens."""


def passing_groups(config: QuickPrefillConfig, spans: Sequence[VideoSpan], frames_per_slice: int) -> Iterator[Passing]:
    """The groups that the loop will make, in order."""
    index = 0
    compressor = config.compressor
    whole = compressor is not None and compressor.scope == "video"
    for span in spans:
        slices, total = span.grid.slices, span.grid.num_tokens
        step = group_slices(config, frames_per_slice, span.grid)
        entering = expected_entering(config, span.grid, -(-slices // step))
        for first in range(0, slices, step):
            group = span.group(index, first, min(first + step, slices))
            if whole:
                entered = entering * group.stop_slice // slices - entering * first // slices
                yield Passing(group, entered, total, entering)
            else:
                entered = expected_entering(config, group.grid)
                yield Passing(group, entered, group.num_video, entered)
            index += 1


def plan_row(
    geometry: Geometry,
    config: QuickPrefillConfig,
    spans: Sequence[VideoSpan],
    length: int,
    frames_per_slice: int,
    *,
    past: Sequence[int] = (),
    room: int = 0,
    question: int = 0,
    wants: Callable[[Group], bool] = lambda group: False,
) -> Plan:
    """The plan of one prompt of `length` tokens without padding.

    Args:
        config: with group_frames resolved; "auto" is none of its values here.
        past: tokens that each layer holds already.
        room: tokens to come.
        question: tokens of the text behind the last video, if it rides along behind each group.
        wants: whether a group's final hidden states are read; in the others the last layer only fills its cache.
    """
    before = list(past) or [0] * geometry.layers
    bands = _bands(config, before)
    held = [before[at] for at, _ in bands]
    slots = [0] * len(bands)
    activation, flops, num_groups, most_slices = 0, 0.0, 0, 0
    schedules: dict[tuple[int, ...], _Schedule] = {}
    tower = {span.index: tower_slices(config, frames_per_slice, span.grid, geometry.vision_device) for span in spans}
    for passing in passing_groups(config, spans, frames_per_slice):
        group, span = passing.group, spans[passing.group.video]
        num_groups, most_slices = num_groups + 1, max(most_slices, group.stop_slice - group.first_slice)
        finish = wants(group)
        key = (group.num_text, passing.entered, passing.unit_tokens, passing.unit_entered, finish)
        if key not in schedules:
            schedules[key] = _Schedule(geometry, config, passing, question, bands, finish=finish)
        schedule = schedules[key]
        tower_tokens = min(tower[span.index] * span.grid.slice_tokens, group.num_video)
        activation = max(
            activation, decoder_bytes(geometry, schedule.rows[0], max(held), tower_tokens, group.num_video)
        )
        flops += vision_flops(geometry, group.num_video, span.grid.slice_tokens) + schedule.flops(held)
        slots = [max(most, here + rows) for most, here, rows in zip(slots, held, schedule.rows, strict=True)]
        held = [here + new for here, new in zip(held, schedule.left, strict=True)]
    tail = length - (spans[-1].stop if spans else 0)
    flops += sum(count * layer_flops(geometry, tail, here) for here, (_, count) in zip(held, bands, strict=True))
    activation = max(activation, decoder_bytes(geometry, tail, max(held), 0, 0))
    activation = max(activation, whole_video_bytes(geometry, config, spans, tower))
    slots = [max(most, here + tail) for most, here in zip(slots, held, strict=True)]
    held = [here + _tail_left(config, tail, at, geometry.layers) for here, (at, _) in zip(held, bands, strict=True)]
    slots = [max(most, here + room) for most, here in zip(slots, held, strict=True)]
    every_slots, every_held = _every(bands, slots), _every(bands, held)
    stored = tuple(here - start for here, start in zip(every_held, before, strict=True))
    fresh = tuple(most - start for most, start in zip(every_slots, before, strict=True))
    known = config.compressor is None or config.compressor.exact
    return Plan(
        groups=num_groups,
        most_group_slices=most_slices,
        slots=fresh if known else (0,) * geometry.layers,
        stored=stored,
        room=room,
        cache_bytes=sum(stored) * geometry.kv_bytes,
        reserved_bytes=_by_device(geometry, every_slots),
        activation_bytes={device: activation for device in {*geometry.devices, geometry.vision_device}},
        flops=flops,
    )


_Bands = Sequence[tuple[int, int]]
"""(first layer, number of layers) of consecutive layers that every group treats alike."""


def _bands(config: QuickPrefillConfig, before: Sequence[int]) -> _Bands:
    layers, cuts = len(before), {0, config.first_layer, len(before) - 1}
    if config.layer_decay is not None:
        cuts = set(range(layers))
    for layer in (config.progressive_from, config.selector.layer if config.selector is not None else None):
        cuts |= set() if layer is None else {layer, layer + 1}
    cuts |= {at for at in range(1, layers) if before[at] != before[at - 1]}
    starts = sorted(at for at in cuts if 0 <= at < layers)
    return [(start, stop - start) for start, stop in zip(starts, [*starts[1:], layers], strict=True)]


def _every(bands: _Bands, values: Sequence[int]) -> list[int]:
    """A value of each band, for each layer."""
    return [value for value, (_, count) in zip(values, bands, strict=True) for _ in range(count)]


def _tail_left(config: QuickPrefillConfig, tail: int, layer: int, layers: int) -> int:
    return num_kept(config, tail, layer, layers) if config.prune_text and tail else tail


class _Schedule:
    """What a kind of group does to every band of layers."""

    def __init__(
        self,
        geometry: Geometry,
        config: QuickPrefillConfig,
        passing: Passing,
        question: int,
        bands: _Bands,
        *,
        finish: bool,
    ) -> None:
        self._geometry, self._bands = geometry, bands
        self._last_whole = finish or (config.scorer is not None and config.scorer.uses_residual)
        num_text = passing.group.num_text
        kept = list(_kept(config, passing, geometry.layers))
        self.rows = [num_text + kept[at][0] + question for at, _ in bands]
        """Rows that enter each layer of a band."""
        self.left = [num_text + kept[at][1] for at, _ in bands]
        """Tokens of the group that each of its layers stores in the end."""

    def flops(self, held: Sequence[int]) -> float:
        """Work of the layers, which hold so many tokens."""
        work = 0.0
        for rows, here, (at, count) in zip(self.rows, held, self._bands, strict=True):
            if at + 1 == self._geometry.layers and not self._last_whole:
                work += store_flops(self._geometry, rows)
            else:
                work += count * layer_flops(self._geometry, rows, here)
        return work


def _kept(config: QuickPrefillConfig, passing: Passing, layers: int) -> Iterator[tuple[int, int]]:
    """For each layer: the video tokens of a group that enter it, and those that it stores in the end."""
    alive, selector = passing.entered, config.selector
    entered, unit, unit_entered = passing.entered, passing.unit_tokens, passing.unit_entered
    for at in range(layers):
        entering = stays = alive
        if config.scorer is not None:
            stays = min(stored_count(config, entered, unit, unit_entered, at, layers), alive)
            if config.progressive_from is not None and at >= config.progressive_from:
                alive = stays
        elif selector is not None and (at == selector.layer or (at < selector.layer and selector.prune_cache)):
            stays = min(selected_count(config, alive, unit, unit_entered), alive)
            alive = stays if at == selector.layer else alive
        yield entering, stays


def _by_device(geometry: Geometry, slots: Sequence[int]) -> dict[torch.device, int]:
    by_device: dict[torch.device, int] = {}
    for device, count in zip(geometry.devices, slots, strict=True):
        by_device[device] = by_device.get(device, 0) + count * geometry.kv_bytes
    return by_device
