"""What is alive on each device, moment by moment of one prompt's prefill; and of a batch, row by row."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from quickprefill.budget.activations import (
    feature_bytes,
    layer_bytes,
    question_bytes,
    stored_only_bytes,
    tower_bytes,
    upload_bytes,
)
from quickprefill.budget.counts import compressed_count
from quickprefill.budget.schedule import Band, Schedule
from quickprefill.budget.states import state_layer_bytes
from quickprefill.cache.storage import keeps_storage
from quickprefill.config import QuickPrefillConfig
from quickprefill.hosts.geometry import Geometry
from quickprefill.prompt.spans import Grid

__all__ = ["Memory"]


class Memory:
    """Follows one prompt through its prefill; the calls come in the order of the loop's own."""

    def __init__(
        self,
        geometry: Geometry,
        config: QuickPrefillConfig,
        layers: Sequence[Band],
        slots: Sequence[int],
        question: int,
    ) -> None:
        """
        Args:
            slots: what each layer of a band reserves.
            question: tokens that ride along behind each group.
        """
        self._geometry, self._config, self._bands = geometry, config, layers
        self._slots, self._question = slots, question
        devices = {*geometry.devices, geometry.vision_device}
        self.activation = dict.fromkeys(devices, 0)
        """Most that is alive besides weights, inputs and storage."""
        self.peak = dict.fromkeys(devices, 0)
        """The same with the storage of the moment."""
        self._storage = dict.fromkeys(devices, 0)
        self._reserved = [False] * len(layers)
        self._held = 0
        """Bytes on the vision device for as long as its video passes: what a compressor left of all of it."""

    def encode(self, unit: Grid, step: int, *, more: bool) -> None:
        """Slices of a video, `step` at a time, through the tower.

        Args:
            more: whether slices follow, the pixels of which may already be on their way.
        """
        geometry, part = self._geometry, unit.part(0, min(step, unit.slices))
        made = feature_bytes(geometry, unit.num_tokens) if part.slices < unit.slices else 0
        ahead = upload_bytes(geometry, part.num_tokens) if more or made else 0
        self._moment(geometry.vision_device, made + ahead + tower_bytes(geometry, part))

    def compress(self, unit: Grid, num_groups: int = 1) -> None:
        """The compressor at work on slices that were encoded."""
        geometry, compressor = self._geometry, self._config.compressor
        if compressor is None:
            return
        tokens, count = unit.num_tokens, compressed_count(self._config, unit, num_groups)
        sizes = (tokens, unit.slice_tokens, geometry.hidden * (1 + geometry.levels), geometry.dtype.itemsize, count)
        self._moment(geometry.vision_device, feature_bytes(geometry, tokens) + compressor.workspace_bytes(*sizes))

    def hold(self, num_tokens: int) -> None:
        """So many compressed tokens stay on the vision device until the next call."""
        self._held = feature_bytes(self._geometry, num_tokens)

    def group(self, schedule: Schedule, held: Sequence[int]) -> None:
        """A group through the layers, which hold so many tokens."""
        geometry, config = self._geometry, self._config
        for at, (band, rows, here) in enumerate(zip(self._bands, schedule.rows, held, strict=True)):
            device, prefix = geometry.devices[band.first], here if config.see_past else 0
            self._reserve(at)
            beside = self._scratch_bytes(band, schedule.rows[0]) + self._level_bytes(band, rows)
            if geometry.state_bytes(band.first):
                self._moment(device, beside + self._state_moment(band, rows))
                continue
            if band.last + 1 < geometry.layers or schedule.last_whole:
                self._moment(device, beside + layer_bytes(geometry, device, rows, prefix))
            self._moment(device, beside + stored_only_bytes(geometry, rows) + self._grown_bytes(at))
            keys, apart = self._watched_keys(band, rows, prefix)
            if keys:
                self._moment(device, beside + question_bytes(geometry, rows, self._question, keys, apart=apart))

    def tail(self, rows: int, held: Sequence[int]) -> None:
        """The text behind the last video, whose embeddings its caller keeps."""
        for at, (band, here) in enumerate(zip(self._bands, held, strict=True)):
            device = self._geometry.devices[band.first]
            self._reserve(at)
            embeds = feature_bytes(self._geometry, rows) + self._level_bytes(band, rows)
            if self._geometry.state_bytes(band.first):
                self._moment(device, embeds + self._state_moment(band, rows))
                continue
            self._moment(device, embeds + layer_bytes(self._geometry, device, rows, here))

    def trim(self, left: Sequence[int], room: int) -> None:
        """Each layer in turn gives back what nothing needs: half of the rest lies beside all that it had."""
        for band, slots, stored in zip(self._bands, self._slots, left, strict=True):
            if not self._geometry.state_bytes(band.first) and not keeps_storage(slots, stored, room):
                self._moment(self._geometry.devices[band.first], (stored + room) * self._geometry.kv_bytes // 2)

    def _state_moment(self, band: Band, rows: int) -> int:
        """Beside a layer's state: those that it is made from while it is written, and a copy for the question."""
        copies = 2 + bool(self._question)
        return state_layer_bytes(self._geometry, rows) + copies * self._geometry.state_bytes(band.first)

    def _moment(self, device: torch.device, nbytes: int) -> None:
        if device == self._geometry.vision_device:
            nbytes += self._held
        if device == self._geometry.devices[0]:
            nbytes += feature_bytes(self._geometry, self._question)
        self.activation[device] = max(self.activation[device], nbytes)
        self.peak[device] = max(self.peak[device], nbytes + self._storage[device])

    def _reserve(self, at: int) -> None:
        if not self._reserved[at]:
            self._reserved[at] = True
            band = self._bands[at]
            nbytes = self._slots[at] * self._geometry.kv_bytes + self._geometry.state_bytes(band.first)
            self._storage[self._geometry.devices[band.first]] += band.count * nbytes

    def _grown_bytes(self, at: int) -> int:
        """What lies twice while storage grows: half of what a layer had."""
        compressor = self._config.compressor
        grows = compressor is not None and not compressor.exact
        return self._slots[at] * self._geometry.kv_bytes // 2 * grows

    def _level_bytes(self, band: Band, rows: int) -> int:
        """Features for later layers, beside the rows that enter the band."""
        geometry = self._geometry
        return rows * geometry.hidden * geometry.dtype.itemsize * max(geometry.levels - band.first, 0)

    def _scratch_bytes(self, band: Band, rows: int) -> int:
        """Where a group does not see the past: caches of its own, of the layers about which nothing is decided yet."""
        selector = self._config.selector
        if self._config.see_past:
            return 0
        waiting = selector is not None and selector.prune_cache and band.last <= selector.layer
        return (band.last + 1 if waiting else 1) * rows * self._geometry.kv_bytes

    def _watched_keys(self, band: Band, rows: int, prefix: int) -> tuple[int, bool]:
        """To how many keys a policy takes the question's attention behind a layer of the band; are they made for it."""
        scorer, selector = self._config.scorer, self._config.selector
        if selector is not None and selector.uses_question and band.first == selector.layer:
            causal = selector.attention == "causal"
            return rows + (prefix if causal else 0), not causal
        return (rows - self._question if scorer is not None and scorer.uses_question else 0), False
