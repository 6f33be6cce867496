"""One stretch of tokens through the decoder layers, each layer's cache pruned as soon as the layer is done."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from quickprefill.attention.group import group_mask, mask_free, question_attention
from quickprefill.budget.counts import num_kept, select
from quickprefill.cache.layer import PrunedLayer
from quickprefill.config import QuickPrefillConfig
from quickprefill.errors import ConfigError
from quickprefill.hosts.base import Family
from quickprefill.policies import GroupKV
from quickprefill.prompt.tokens import VideoTokens
from quickprefill.report import Recorder

__all__ = ["Decoder", "Text"]


@dataclass(frozen=True)
class Text:
    """Embedded text and image tokens."""

    embeds: torch.Tensor
    """(n, C)."""
    positions: torch.Tensor
    """(3, n)."""

    def __len__(self) -> int:
        return int(self.embeds.shape[0])


@dataclass
class _Stretch:
    """The state of a group between two layers: text, then video tokens, then the question where it rides along."""

    hidden: torch.Tensor
    rotary: Any
    num_text: int
    num_question: int
    alive: torch.Tensor
    """Which of the group's tokens are still in the hidden states, ascending."""

    @property
    def num_video(self) -> int:
        return len(self.alive)

    def keep(self, kept: torch.Tensor) -> None:
        """Go on with the video tokens at `kept` only."""
        length = self.hidden.shape[1]
        columns = torch.arange(length, device=kept.device)
        video = columns[self.num_text : length - self.num_question][kept]
        columns = torch.cat([columns[: self.num_text], video, columns[length - self.num_question :]])
        self.hidden = self.hidden[:, columns]
        self.rotary = tuple(part[:, columns.to(part.device)] for part in self.rotary)
        self.alive = self.alive.to(kept.device)[kept]


class Decoder:
    """Runs stretches of one prompt through the decoder layers into its cache."""

    def __init__(
        self, model: Any, family: Family, config: QuickPrefillConfig, cache: DynamicCache, recorder: Recorder
    ) -> None:
        self._model, self._family, self._config = model, family, config
        self._cache, self._recorder = cache, recorder
        self._layers: list[PrunedLayer] = cache.layers
        self._scorer, self._selector = config.scorer, config.policy_for("select")
        self._attention = family.attention_config(model)

    def text(self, text: Text, *, prunable: bool) -> torch.Tensor:
        """Text behind a group, (n, C) -> final hidden states (n, C). `prunable`: text that prune_text means."""
        hidden = text.embeds[None]
        rotary = self._family.rotary(self._model, hidden, text.positions[:, None])
        with mask_free(self._attention):
            for index in range(len(self._layers)):
                with self._recorder.span("decode"):
                    hidden = self._layer(index, hidden, rotary, self._cache)
                if prunable and self._config.prune_text:
                    self._prune_text(index, len(text))
        return self._family.norm(self._model, hidden)[0]

    def group(
        self, before: Text, tokens: VideoTokens, question: Text | None, group: int, *, finish: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A group's video tokens after the text before them.

        Args:
            finish: whether anybody reads the final hidden states. If not, the last layer only fills its cache.

        Returns:
            final hidden states (n, C) of the text and of the video tokens that finished, none where `finish` is False,
            and the latter's index in `tokens`.
        """
        if not tokens.num_tokens:  # merged away: all of the group's tokens stand in earlier groups
            hidden = self.text(before, prunable=False) if len(before) else before.embeds
            return hidden, tokens.source
        stretch = self._stretch(before, tokens, question)
        before_group = [layer.stored_length for layer in self._layers]
        cache = self._cache if self._config.see_past else self._scratch(stretch.hidden.shape[1])
        with mask_free(self._attention):
            for index in range(len(self._layers)):
                whole = finish or index + 1 < len(self._layers)
                self._group_layer(index, stretch, tokens, cache, group, whole=whole)
        for index, layer in enumerate(self._layers):
            if cache is not self._cache:
                layer.absorb(cache.layers[index])
            self._recorder.stored(index, layer.stored_length - before_group[index] - len(before))
        self._recorder.finished_tokens += stretch.num_video
        hidden = stretch.hidden[:, : stretch.num_text + stretch.num_video if finish else 0]
        return self._family.norm(self._model, hidden)[0], stretch.alive

    def _stretch(self, before: Text, tokens: VideoTokens, question: Text | None) -> _Stretch:
        parts = [before, Text(tokens.embeds.to(before.embeds), tokens.positions), *([question] if question else [])]
        hidden = torch.cat([part.embeds for part in parts])[None]
        positions = torch.cat([part.positions.to(hidden.device) for part in parts], dim=1)
        rotary = self._family.rotary(self._model, hidden, positions[:, None])
        alive = torch.arange(tokens.num_tokens, device=hidden.device)
        return _Stretch(hidden, rotary, len(before), len(question) if question else 0, alive)

    def _scratch(self, capacity: int) -> DynamicCache:
        cache = DynamicCache()
        cache.layers = [PrunedLayer(capacity) for _ in self._layers]
        return cache

    def _group_layer(
        self, index: int, stretch: _Stretch, tokens: VideoTokens, cache: DynamicCache, group: int, *, whole: bool
    ) -> None:
        inputs, layer = stretch.hidden, cache.layers[index]
        watch = self._scorer is not None and self._scorer.uses_residual
        with self._recorder.span("decode"):
            if whole or watch or self._family.watched(self._model, index):
                with self._watch(index, watch) as residual:
                    stretch.hidden = self._layer(index, inputs, stretch.rotary, cache)
            else:
                self._family.store(self._model, index, inputs, stretch.rotary, cache)
        with self._recorder.span("prune"):
            selected = self._select(index, inputs, stretch, tokens, layer)
            layer.drop_last(stretch.num_question)
            if selected is not None:
                earlier = cache.layers if self._selector.prune_cache else []  # type: ignore[union-attr]
                for other in earlier[: index + 1]:
                    other.prune(stretch.num_video, selected.to(other.keys.device))
                stretch.keep(selected)
                return
            kept = self._score(index, inputs, stretch, tokens, layer, residual[0] if watch else None, group)
            if kept is not None:
                layer.prune(stretch.num_video, kept)
                progressive = self._config.progressive_from
                if progressive is not None and index >= progressive:
                    stretch.keep(kept)

    def _layer(self, index: int, hidden: torch.Tensor, rotary: Any, cache: DynamicCache) -> torch.Tensor:
        mask = group_mask(self._attention, hidden.shape[1], cache.layers[index].stored_length, hidden)
        return self._family.layer(self._model, index, hidden, rotary, mask, cache)

    def _watch(self, index: int, watch: bool) -> contextlib.AbstractContextManager[list[torch.Tensor]]:
        return self._family.watch_residual(self._model, index) if watch else contextlib.nullcontext([])

    def _select(
        self, index: int, inputs: torch.Tensor, stretch: _Stretch, tokens: VideoTokens, layer: PrunedLayer
    ) -> torch.Tensor | None:
        """What the selecting policy keeps behind its layer; it asks for the question's attention to the group."""
        policy: Any = self._selector
        if policy is None or index != policy.layer:
            return None
        position_free = policy.attention == "position_free"
        rotary = None if position_free else stretch.rotary
        queries, keys = self._family.queries_and_keys(self._model, index, inputs, rotary)
        queries = queries[:, :, inputs.shape[1] - stretch.num_question :]
        keys = keys if position_free else layer.keys
        start = keys.shape[2] - stretch.num_question - stretch.num_video
        attention = question_attention(queries, keys, causal=not position_free)[0]
        kept: torch.Tensor = policy.select(attention[..., start : start + stretch.num_video], tokens.pools)
        return kept.to(inputs.device)

    def _score(
        self,
        index: int,
        inputs: torch.Tensor,
        stretch: _Stretch,
        tokens: VideoTokens,
        layer: PrunedLayer,
        residual: torch.Tensor | None,
        group: int,
    ) -> torch.Tensor | None:
        """Indices among the group's video tokens that stay in a layer's cache; None: all."""
        num_video = stretch.num_video
        count = min(num_kept(self._config, tokens.grid.num_tokens, index, len(self._layers)), num_video)
        if self._scorer is None or count == num_video:
            return None
        video = slice(stretch.num_text, stretch.num_text + num_video)
        queries = None
        if stretch.num_question:
            rotary = tuple(part[:, -stretch.num_question :] for part in stretch.rotary)
            asked = inputs[:, -stretch.num_question :]
            queries = self._family.queries_and_keys(self._model, index, asked, rotary)[0]
        kv = GroupKV(
            keys=layer.keys[..., -num_video:, :],
            values=layer.values[..., -num_video:, :],
            layer=index,
            group=group,
            num_kept=count,
            queries=queries,
            residual=None if residual is None else residual[:, video],
        )
        return _chosen(self._scorer, kv)

    def _prune_text(self, index: int, length: int) -> None:
        layer = self._layers[index]
        count = num_kept(self._config, length, index, len(self._layers))
        if count < length and self._scorer is not None:
            kv = GroupKV(layer.keys[..., -length:, :], layer.values[..., -length:, :], index, -1, count)
            layer.prune(length, _chosen(self._scorer, kv))


def _chosen(scorer: Any, kv: GroupKV) -> torch.Tensor:
    """Ascending indices of the tokens that a scorer keeps, (k,), or (K, k) per head."""
    scores = scorer.score(kv)
    batch, heads, num_tokens, _ = kv.keys.shape
    expected = (batch, heads, num_tokens) if getattr(scorer, "per_head", False) else (batch, num_tokens)
    if scores.shape != expected:
        raise ConfigError(
            f"{type(scorer).__name__}.score() must return one score per token, shape {expected}, "
            f"got {tuple(scores.shape)}"
        )
    return select(scores, kv.num_kept)[0]
