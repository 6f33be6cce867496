"""Which tokens of a prompt enter and stay, group by group and layer by layer, as far as sizes alone say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quickprefill.budget.counts import num_kept, selected_count, stored_count
from quickprefill.budget.flops import layer_flops, store_flops
from quickprefill.budget.groups import expected_entering, group_slices
from quickprefill.budget.states import state_layer_flops
from quickprefill.config import QuickPrefillConfig
from quickprefill.hosts.geometry import Geometry
from quickprefill.prompt.spans import Group, VideoSpan

__all__ = ["Band", "Passing", "Schedule", "bands", "passing_groups", "tail_left"]


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
        if whole:
            step = group_slices(config, frames_per_slice, span.grid, entering)
        for first in range(0, slices, step):
            group = span.group(index, first, min(first + step, slices))
            if whole:
                entered = entering * group.stop_slice // slices - entering * first // slices
                yield Passing(group, entered, total, entering)
            else:
                entered = expected_entering(config, group.grid)
                yield Passing(group, entered, group.num_video, entered)
            index += 1


@dataclass(frozen=True)
class Band:
    """Consecutive layers of one device that every group treats alike."""

    first: int
    count: int

    @property
    def last(self) -> int:
        """The last of them."""
        return self.first + self.count - 1


def bands(geometry: Geometry, config: QuickPrefillConfig, before: Sequence[int]) -> list[Band]:
    """All layers, of which the cache holds `before` tokens each; the last layer is a band of its own."""
    layers, cuts = geometry.layers, {0, config.first_layer, geometry.layers - 1}
    if config.layer_decay is not None:
        cuts = set(range(layers))
    for layer in (config.progressive_from, config.selector.layer if config.selector is not None else None):
        cuts |= set() if layer is None else {layer, layer + 1}
    alike = list(zip(before, geometry.devices, strict=True))
    cuts |= {at for at in range(1, layers) if alike[at] != alike[at - 1]}
    cuts |= {at for at in range(1, layers) if geometry.state_bytes(at) != geometry.state_bytes(at - 1)}
    starts = sorted(at for at in cuts if 0 <= at < layers)
    return [Band(start, stop - start) for start, stop in zip(starts, [*starts[1:], layers], strict=True)]


def tail_left(config: QuickPrefillConfig, tail: int, layer: int, layers: int) -> int:
    """How many of the `tail` tokens of text behind the last video a layer stores."""
    return num_kept(config, tail, layer, layers) if config.prune_text and tail else tail


class Schedule:
    """What a kind of group does to every band of layers."""

    def __init__(
        self,
        geometry: Geometry,
        config: QuickPrefillConfig,
        passing: Passing,
        question: int,
        layers: Sequence[Band],
        *,
        finish: bool,
    ) -> None:
        """
        Args:
            question: tokens that ride along behind the group.
            finish: whether its final hidden states are read.
        """
        self._geometry, self._bands = geometry, layers
        self.last_whole = finish or (config.scorer is not None and config.scorer.uses_residual)
        """Whether the last layer does more than to store keys and values."""
        num_text = passing.group.num_text
        kept = list(_kept(config, passing, geometry.layers))
        self.rows = [num_text + kept[band.first][0] + question for band in layers]
        """Rows that enter each layer of a band."""
        stores = [not geometry.state_bytes(band.first) for band in layers]
        self.stored = [rows * does for rows, does in zip(self.rows, stores, strict=True)]
        """Of those, what each of its layers stores before it is pruned."""
        self.left = [(num_text + kept[band.first][1]) * does for band, does in zip(layers, stores, strict=True)]
        """Tokens of the group that each of its layers stores in the end."""

    def flops(self, held: Sequence[int]) -> float:
        """Work of the layers, which hold so many tokens."""
        work = 0.0
        for rows, here, band in zip(self.rows, held, self._bands, strict=True):
            if self._geometry.state_bytes(band.first):
                work += band.count * state_layer_flops(self._geometry, rows)
            elif band.last + 1 == self._geometry.layers and not self.last_whole:
                work += store_flops(self._geometry, rows)
            else:
                work += band.count * layer_flops(self._geometry, rows, here)
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
