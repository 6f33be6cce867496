"""Stretches of one prompt through the decoder layers, each layer's cache pruned as soon as the layer is done."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from quickprefill.attention.running import Running, Stored, running
from quickprefill.cache.host_layers import fork
from quickprefill.cache.layer import PrunedLayer
from quickprefill.config import QuickPrefillConfig
from quickprefill.hosts.base import Host
from quickprefill.loop.encode import Entering
from quickprefill.loop.pruner import Pruner
from quickprefill.loop.stretch import Stretch, Text, begin
from quickprefill.reporting import Recorder

__all__ = ["Decoder"]


class Decoder:
    """Runs stretches of one prompt through the decoder layers into its cache."""

    def __init__(self, host: Host, core: Any, config: QuickPrefillConfig, cache: DynamicCache, recorder: Recorder):
        self._host, self._core, self._config = host, core, config
        self._cache, self._layers, self._recorder = cache, cache.layers, recorder
        self._pruner = Pruner(host, core, config, len(cache.layers), recorder)
        self._attention_config = host.attention_config(core)

    def tail(self, text: Text, *, behind_video: bool) -> torch.Tensor:
        """The text behind the last group, (n, C) -> final hidden states (n, C).

        behind_video: whether there is a group at all; only text behind one is prune_text's.
        """
        hidden = text.embeds[None]
        rotary = self._host.rotary(self._core, hidden, text.positions)
        return self._text(hidden, rotary, -1, self._cache, prunable=self._config.prune_text and behind_video)

    def _text(
        self, hidden: torch.Tensor, rotary: Any, group: int, cache: Any, *, prunable: bool = False
    ) -> torch.Tensor:
        length = hidden.shape[1]
        with running(self._attention_config, Running(cache.layers)), self._recorder.span("decode", group):
            for index, layer in enumerate(cache.layers):
                with self._residual(index, prunable and self._pruner.watches_residual(layer)) as residual:
                    hidden = self._host.layer(self._core, index, hidden, rotary, cache)
                if prunable:
                    self._pruner.text(index, length, layer, residual[0] if residual else None)
        return self._host.norm(self._core, hidden)[0]

    def begin(self, entering: Entering, text: Text, question: Text | None) -> Stretch:
        """The rows of a group.

        Args:
            text: the group's text before and between its slices.
            question: text that rides along behind the group, leaving no trace.
        """
        return begin(self._host, self._core, entering, text, question)

    def group(self, stretch: Stretch, *, finish: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """A group's video tokens and its text, as begin() made them.

        Args:
            finish: whether anybody reads the final hidden states. If not, the last layer only fills its cache.

        Returns:
            final hidden states (n, C) of the group's rows that finished, in prompt order, and their columns (n,) on the
            CPU; none where `finish` is False.
        """
        group = stretch.group
        if not stretch.num_video:  # merged away: all of the group's tokens stand in earlier groups
            return self._without_video(stretch), group.text_columns()
        before = [_stored(layer) for layer in self._layers]
        cache = self._cache if self._config.see_past else self._scratch(stretch.hidden.shape[1])
        forward = Running(cache.layers)
        with running(self._attention_config, forward), self._recorder.span("decode", group.index):
            for index in range(len(self._layers)):
                whole = finish or index + 1 < len(self._layers)
                self._group_layer(index, stretch, cache, forward, whole=whole)
                if cache is not self._cache:
                    self._absorb(cache, index)
        for index, layer in enumerate(self._layers):
            stored = 0
            if isinstance(layer, PrunedLayer):
                stored = layer.stored_length - before[index] - group.num_text
            self._recorder.stored(index, stored)
        self._recorder.finished_tokens += stretch.num_video
        if not finish:
            return stretch.hidden.new_empty(0, stretch.hidden.shape[-1]), torch.empty(0, dtype=torch.long)
        hidden = self._host.norm(self._core, stretch.hidden[:, : stretch.num_rows])[0]
        return hidden, _columns(stretch)

    def _without_video(self, stretch: Stretch) -> torch.Tensor:
        rows = torch.arange(stretch.num_rows, device=stretch.hidden.device)
        hidden = stretch.hidden[:, : stretch.num_rows]
        if not stretch.num_rows:
            return hidden[0]
        rotary = self._host.take_rotary(stretch.rotary, rows)
        if self._config.see_past:
            return self._text(hidden, rotary, stretch.group.index, self._cache)
        scratch = self._scratch(len(rows))
        hidden = self._text(hidden, rotary, stretch.group.index, scratch)
        for layer, taken in zip(self._layers, scratch.layers, strict=True):
            layer.absorb(taken)
        return hidden

    def _absorb(self, scratch: Any, index: int) -> None:
        """Store what the layers of a scratch cache up to `index` keep, unless a later layer decides about it."""
        selector = self._config.selector
        if selector is not None and selector.prune_cache and index < selector.layer:
            return
        for at in range(index + 1):
            layer, taken = self._layers[at], scratch.layers[at]
            if isinstance(layer, PrunedLayer) and taken.stored_length:
                layer.absorb(taken)
                scratch.layers[at] = PrunedLayer()

    def _group_layer(self, index: int, stretch: Stretch, cache: Any, forward: Running, *, whole: bool) -> None:
        inputs, layer, group = stretch.hidden, cache.layers[index], stretch.group
        watches = self._pruner.watches_residual(layer)
        forward.watched_queries = stretch.num_question if self._pruner.watches_queries(index, layer) else 0
        forward.stop = not (whole or watches or self._host.observed(self._core, index))
        with self._residual(index, watches) as residual, contextlib.suppress(Stored):
            stretch.hidden = self._layer(index, stretch, cache)
        forward.stop, forward.watched_queries = False, 0
        with self._recorder.layer_span("prune", group.index, index, len(self._layers)):
            seen = residual[0] if residual else None
            self._pruner.group(index, inputs, stretch, cache.layers, forward, seen)

    def _layer(self, index: int, stretch: Stretch, cache: Any) -> torch.Tensor:
        layer, run = cache.layers[index], self._host.layer
        if isinstance(layer, PrunedLayer) or not stretch.num_question:
            return run(self._core, index, stretch.hidden, stretch.rotary, cache)
        # A layer that is not ours cannot forget the question again: it meets a copy.
        every = torch.arange(stretch.hidden.shape[1], device=stretch.hidden.device)
        rows = (every[: stretch.num_rows], every[stretch.num_rows :])
        parts = []
        for at, own in enumerate(rows):
            if at:
                cache.layers[index], layer = fork(layer), cache.layers[index]
            rotary = self._host.take_rotary(stretch.rotary, own)
            parts.append(run(self._core, index, stretch.hidden[:, own], rotary, cache))
        cache.layers[index] = layer
        return torch.cat(parts, dim=1)

    def _residual(self, index: int, watch: bool) -> contextlib.AbstractContextManager[list[torch.Tensor]]:
        return self._host.watch_residual(self._core, index) if watch else contextlib.nullcontext([])

    def _scratch(self, capacity: int) -> Any:
        cache = DynamicCache()
        cache.layers = [PrunedLayer(capacity) for _ in self._layers]
        return cache


def _stored(layer: Any) -> int:
    return layer.stored_length if isinstance(layer, PrunedLayer) else 0


def _columns(stretch: Stretch) -> torch.Tensor:
    """Columns of the rows that finished, ascending, on the CPU."""
    group = stretch.group
    columns = torch.cat([group.text_columns(), group.columns(stretch.places.cpu())])
    return columns.sort().values
