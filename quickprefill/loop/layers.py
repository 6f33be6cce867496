"""Stretches of one prompt through the decoder layers, each layer's cache pruned as soon as the layer is done."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from quickprefill.attention.running import Running, Stored, running
from quickprefill.cache.layer import PrunedLayer
from quickprefill.config import QuickPrefillConfig
from quickprefill.hosts.base import Host
from quickprefill.loop.encode import Entering
from quickprefill.loop.pruner import Pruner
from quickprefill.loop.stretch import Stretch, Text, begin
from quickprefill.report import Recorder

__all__ = ["Decoder"]


class Decoder:
    """Runs stretches of one prompt through the decoder layers into its cache."""

    def __init__(self, host: Host, core: Any, config: QuickPrefillConfig, cache: DynamicCache, recorder: Recorder):
        self._host, self._core, self._config = host, core, config
        self._cache, self._layers, self._recorder = cache, cache.layers, recorder
        self._pruner = Pruner(host, core, config, len(cache.layers), recorder)
        self._attention_config = host.attention_config(core)

    def text(self, text: Text, group: int, *, prunable: bool = False) -> torch.Tensor:
        """Text behind a group, (n, C) -> final hidden states (n, C). `prunable`: text that prune_text means."""
        hidden = text.embeds[None]
        rotary = self._host.rotary(self._core, hidden, text.positions)
        prunable = prunable and self._config.prune_text
        with running(self._attention_config, Running(self._layers)), self._recorder.span("decode", group):
            for index, layer in enumerate(self._layers):
                with self._residual(index, prunable and self._pruner.watches_residual(layer)) as residual:
                    hidden = self._host.layer(self._core, index, hidden, rotary, self._cache)
                if prunable:
                    self._pruner.text(index, len(text), layer, residual[0] if residual else None)
        return self._host.norm(self._core, hidden)[0]

    def group(
        self, entering: Entering, text: Text, question: Text | None, *, finish: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A group's video tokens and its text.

        Args:
            text: the group's text before and between its slices.
            question: text that rides along behind the group, leaving no trace.
            finish: whether anybody reads the final hidden states. If not, the last layer only fills its cache.

        Returns:
            final hidden states (n, C) of the group's rows that finished, in prompt order, and their columns (n,) on the
            CPU; none where `finish` is False.
        """
        group = entering.group
        if not entering.tokens.num_tokens:  # merged away: all of the group's tokens stand in earlier groups
            hidden = self.text(text, group.index) if len(text) else text.embeds
            return hidden, group.text_columns()
        stretch = begin(self._host, self._core, group, text, entering.tokens, question)
        before = [_stored(layer) for layer in self._layers]
        cache = self._cache if self._config.see_past else self._scratch(stretch.hidden.shape[1])
        forward = Running(cache.layers)
        with running(self._attention_config, forward), self._recorder.span("decode", group.index):
            for index in range(len(self._layers)):
                whole = finish or index + 1 < len(self._layers)
                self._group_layer(index, stretch, entering, cache, forward, whole=whole)
        for index, layer in enumerate(self._layers):
            stored = 0
            if isinstance(layer, PrunedLayer):
                if cache is not self._cache:
                    layer.absorb(cache.layers[index])
                stored = layer.stored_length - before[index] - group.num_text
            self._recorder.stored(index, stored)
        self._recorder.finished_tokens += stretch.num_video
        if not finish:
            return stretch.hidden[0, :0], torch.empty(0, dtype=torch.long)
        hidden = self._host.norm(self._core, stretch.hidden[:, : stretch.num_rows])[0]
        return hidden, _columns(stretch, entering)

    def _group_layer(
        self, index: int, stretch: Stretch, entering: Entering, cache: Any, forward: Running, *, whole: bool
    ) -> None:
        inputs, layer, group = stretch.hidden, cache.layers[index], entering.group
        watches = self._pruner.watches_residual(layer)
        forward.watched_queries = stretch.num_question if self._pruner.watches_queries(index, layer) else 0
        forward.stop = not (whole or watches or self._host.observed(self._core, index))
        with self._residual(index, watches) as residual, contextlib.suppress(Stored):
            stretch.hidden = self._layer(index, stretch, cache)
        forward.stop, forward.watched_queries = False, 0
        with self._recorder.layer_span("prune", group.index, index, len(self._layers)):
            seen = residual[0] if residual else None
            self._pruner.group(index, inputs, stretch, entering, cache.layers, forward, seen)

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
                cache.layers[index], layer = copy.copy(layer), cache.layers[index]
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


def _columns(stretch: Stretch, entering: Entering) -> torch.Tensor:
    """Columns of the rows that finished, ascending, on the CPU."""
    group = entering.group
    columns = torch.cat([group.text_columns(), group.columns(stretch.places.cpu())])
    return columns.sort().values
