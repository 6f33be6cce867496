"""What a prefill takes, from sizes alone: slots of each layer, bytes on each device, work in FLOPs.

One simulation of the groups drives the loop (how much each layer reserves), estimate() and group_frames="auto". Where a
policy decides by content how many tokens stay (PruneVid), figures are the most that it may leave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from quickprefill.budget.flops import layer_flops, vision_flops
from quickprefill.budget.groups import GROUP_TOKENS, group_slices, refills, tower_slices
from quickprefill.budget.memory import Memory
from quickprefill.budget.schedule import Band, Passing, Schedule, bands, passing_groups, tail_left
from quickprefill.budget.states import state_layer_flops
from quickprefill.config import QuickPrefillConfig
from quickprefill.hosts.geometry import Geometry
from quickprefill.prompt.spans import Group, VideoSpan

__all__ = ["Plan", "plan_row"]


@dataclass(frozen=True)
class Plan:
    """One prompt's prefill."""

    groups: int
    most_group_slices: int
    slots: tuple[int, ...]
    """What each layer may come to hold behind what the cache holds: its fullest moment."""
    known: bool
    """Whether that is so, or only a bound because the content decides: storage then grows up to it, and is trimmed at
    the end."""
    stored: tuple[int, ...]
    """Tokens that the prompt leaves in each layer, text included."""
    cache_bytes: int
    """Keys and values of `stored`, and the states of layers that hold one."""
    reserved_bytes: dict[torch.device, int]
    """Storage at its fullest, by device."""
    activation_bytes: dict[torch.device, int]
    """Most that is alive besides weights, inputs and storage, by device."""
    peak_bytes: dict[torch.device, int]
    """Storage and activations together at their fullest moment, by device."""
    flops: float
    """Multiplications and additions in matrix products: vision tower, decoder layers, attention."""


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
    layers = bands(geometry, config, before)
    passes = _Passes(geometry, config, layers, question)
    held = [before[band.first] for band in layers]
    for passing in passing_groups(config, spans, frames_per_slice):
        held = passes.add(passing, held, finish=wants(passing.group))
    tail = length - (spans[-1].stop if spans else 0)
    stores = [not geometry.state_bytes(band.first) for band in layers]
    fullest = [max(most, here + tail * does) for most, here, does in zip(passes.fullest, held, stores, strict=True)]
    stays = [tail_left(config, tail, band.first, geometry.layers) if spans else tail for band in layers]
    left = [here + text * does for here, text, does in zip(held, stays, stores, strict=True)]
    slots = [max(most, here + room * does) for most, here, does in zip(fullest, left, stores, strict=True)]
    memory = Memory(geometry, config, layers, slots, question)
    passes.fill(memory, spans, frames_per_slice)
    memory.tail(tail, held)
    memory.trim(left, room)
    flops = passes.flops + sum(vision_flops(geometry, span.grid.num_made, span.grid.slice_tokens) for span in spans)
    flops += sum(
        band.count * (layer_flops(geometry, tail, here) if does else state_layer_flops(geometry, tail))
        for here, band, does in zip(held, layers, stores, strict=True)
    )
    every_slots, every_left = _every(layers, slots), _every(layers, left)
    stored = tuple(here - start for here, start in zip(every_left, before, strict=True))
    return Plan(
        groups=len(passes),
        most_group_slices=passes.most_slices,
        slots=tuple(most - start for most, start in zip(every_slots, before, strict=True)),
        known=config.compressor is None or config.compressor.exact,
        stored=stored,
        cache_bytes=sum(stored) * geometry.kv_bytes + sum(map(geometry.state_bytes, range(geometry.layers))),
        reserved_bytes=_by_device(geometry, every_slots),
        activation_bytes=memory.activation,
        peak_bytes=memory.peak,
        flops=flops,
    )


class _Passes:
    """The groups of a prompt, in order, and what each band of layers holds before them."""

    def __init__(self, geometry: Geometry, config: QuickPrefillConfig, layers: Sequence[Band], question: int) -> None:
        self._geometry, self._config, self._bands, self._question = geometry, config, layers, question
        self._passes: list[tuple[Passing, Schedule, list[int]]] = []
        self._schedules: dict[tuple[int, ...], Schedule] = {}
        self.fullest = [0] * len(layers)
        """Most that each layer of a band stores."""
        self.flops = 0.0
        self.most_slices = 0

    def __len__(self) -> int:
        return len(self._passes)

    def add(self, passing: Passing, held: list[int], *, finish: bool) -> list[int]:
        """The next group, behind `held` tokens in each band; returns what is held after it."""
        group = passing.group
        schedule = self._schedule(passing, finish=finish)
        self._passes.append((passing, schedule, held))
        self.flops += schedule.flops(held)
        self.most_slices = max(self.most_slices, group.stop_slice - group.first_slice)
        # Without the past a group lies in a cache of its own until it is pruned.
        taken = schedule.stored if self._config.see_past else schedule.left
        self.fullest = [max(most, here + new) for most, here, new in zip(self.fullest, held, taken, strict=True)]
        return [here + new for here, new in zip(held, schedule.left, strict=True)]

    def _schedule(self, passing: Passing, *, finish: bool) -> Schedule:
        key = (passing.group.num_text, passing.entered, passing.unit_tokens, passing.unit_entered, finish)
        if key not in self._schedules:
            self._schedules[key] = Schedule(
                self._geometry, self._config, passing, self._question, self._bands, finish=finish
            )
        return self._schedules[key]

    def fill(self, memory: Memory, spans: Sequence[VideoSpan], frames_per_slice: int) -> None:
        """Let the groups pass."""
        config = self._config
        whole = config.compressor is not None and config.compressor.scope == "video"
        for passing, schedule, held in self._passes:
            video = passing.group.video_grid
            grid = video if whole else passing.group.grid
            if not whole or not passing.group.first_slice:
                memory.hold(self._waiting(passing))
                step = tower_slices(config, frames_per_slice, video, self._geometry.vision_device)
                memory.encode(grid, step, more=passing.group.stop_slice < video.slices)
                memory.compress(grid, -(-grid.slices // group_slices(config, frames_per_slice, video)))
                memory.hold(passing.unit_entered if whole else self._waiting(passing))
            memory.group(schedule, held)
        memory.hold(0)

    def _waiting(self, passing: Passing) -> int:
        """Compressed tokens of other groups that may lie beside this one, until enough have come to enter together."""
        if not refills(self._config):
            return 0
        return min(GROUP_TOKENS, passing.entered * (len(self) - 1))


def _every(layers: Sequence[Band], values: Sequence[int]) -> list[int]:
    """A value of each band, for each layer."""
    return [value for value, band in zip(values, layers, strict=True) for _ in range(band.count)]


def _by_device(geometry: Geometry, slots: Sequence[int]) -> dict[torch.device, int]:
    by_device: dict[torch.device, int] = {}
    for layer, (device, count) in enumerate(zip(geometry.devices, slots, strict=True)):
        by_device[device] = by_device.get(device, 0) + count * geometry.kv_bytes + geometry.state_bytes(layer)
    return by_device
