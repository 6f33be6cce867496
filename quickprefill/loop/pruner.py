"""What stays behind a layer: of the hidden states by selection, of the layer's cache by score."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from quickprefill.attention.group import question_attention
from quickprefill.attention.running import Running, Stored, running
from quickprefill.budget.counts import num_kept, select, selected_count, stored_count
from quickprefill.cache.layer import PrunedLayer
from quickprefill.config import QuickPrefillConfig
from quickprefill.errors import ConfigError
from quickprefill.hosts.base import Host
from quickprefill.loop.stretch import Stretch
from quickprefill.policies import GroupAttention, GroupKV, Scorer, Selector
from quickprefill.reporting import Recorder

__all__ = ["Pruner"]


class Pruner:
    """Applies a config's selector and scorer to one prompt's layers."""

    def __init__(self, host: Host, core: Any, config: QuickPrefillConfig, num_layers: int, recorder: Recorder) -> None:
        self._host, self._core, self._config = host, core, config
        self._num_layers, self._recorder = num_layers, recorder
        self._scorer, self._selector = config.scorer, config.selector

    def watches_residual(self, layer: Any) -> bool:
        """Whether the score of a layer needs hidden states."""
        return isinstance(layer, PrunedLayer) and self._scorer is not None and self._scorer.uses_residual

    def watches_queries(self, index: int, layer: Any) -> bool:
        """Whether what stays behind a layer depends on the queries of its question's rows."""
        if not isinstance(layer, PrunedLayer):
            return False
        selector = self._selector
        selects = selector is not None and index == selector.layer and selector.attention == "causal"
        return selects or (self._scorer is not None and self._scorer.uses_question)

    def group(
        self,
        index: int,
        inputs: torch.Tensor,
        stretch: Stretch,
        layers: list[Any],
        forward: Running,
        residual: torch.Tensor | None,
    ) -> None:
        """Prune behind layer `index`, whose input was `inputs` (1, n, C), and whose cache still holds the question."""
        layer = layers[index]
        selector = self._selector
        selected = None
        if selector is not None and index == selector.layer:
            selected = self._selected(selector, index, inputs, stretch, forward)
        if not isinstance(layer, PrunedLayer):
            self._select(selector, selected, index, stretch, layers)
            return
        layer.drop_last(stretch.num_question)
        if selected is not None:
            self._select(selector, selected, index, stretch, layers)
            return
        kept = self._scored(index, stretch, layer, forward, residual)
        if kept is not None:
            layer.prune(*stretch.among_last(kept))
        self._recorder.kept_places("score", stretch.group, index, stretch.places, kept)
        progressive = self._config.progressive_from
        if kept is not None and progressive is not None and index >= progressive:
            stretch.keep(kept, self._host)

    def text(self, index: int, length: int, layer: Any, residual: torch.Tensor | None) -> None:
        """Prune the last `length` tokens of a layer, the text that prune_text means."""
        count = num_kept(self._config, length, index, self._num_layers)
        if count < length and self._scorer is not None and isinstance(layer, PrunedLayer):
            keys, values = layer.keys[..., -length:, :], layer.values[..., -length:, :]
            kv = GroupKV(keys, values, index, -1, count, residual=residual)
            layer.prune(length, select(_scores(self._scorer, kv), count)[0])

    def _selected(
        self, selector: Selector, index: int, inputs: torch.Tensor, stretch: Stretch, run: Running
    ) -> torch.Tensor:
        """What the selecting policy keeps; it asks for the question's attention to the group."""
        seen = GroupAttention(
            attention=self._question_attention(selector, index, inputs, stretch, run),
            num_kept=min(
                selected_count(self._config, stretch.num_video, stretch.unit_tokens, stretch.unit_entered),
                stretch.num_video,
            ),
            pools=stretch.pools,
            grid=stretch.group.grid,
            places=stretch.places,
            layer=index,
            group=stretch.group.index,
        )
        selected = selector.select(seen)
        if not isinstance(selected, torch.Tensor) or selected.ndim != 1 or selected.dtype != torch.long:
            shown = (
                f"{selected.dtype} {tuple(selected.shape)}" if isinstance(selected, torch.Tensor) else repr(selected)
            )
            raise ConfigError(
                f"{type(selector).__name__}.select() must return ascending indices, (n,) long, got {shown}"
            )
        if not 1 <= len(selected) <= stretch.num_video:
            raise ConfigError(
                f"{type(selector).__name__}.select() must keep 1 to {stretch.num_video} tokens, got {len(selected)}"
            )
        return selected.to(inputs.device)

    def _question_attention(
        self, selector: Selector, index: int, inputs: torch.Tensor, stretch: Stretch, run: Running
    ) -> torch.Tensor:
        """(H, Q, N) of the question's rows to the group's video; without a question Q is 0."""
        if not stretch.num_question:
            return torch.empty(0, 0, stretch.num_video, device=inputs.device)
        causal = selector.attention == "causal"
        queries, keys = (run.queries, run.keys) if causal else self._position_free(index, inputs, stretch)
        attention = question_attention(queries, keys, causal=causal)[0]  # type: ignore[arg-type]
        return stretch.of_video(attention[..., attention.shape[-1] - stretch.num_question - stretch.num_rows :])

    def _position_free(
        self, index: int, inputs: torch.Tensor, stretch: Stretch
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Queries of the question and keys of the group as the layer makes them before it turns them by position."""
        watch = Running([], watched_queries=stretch.num_question, stop=True)
        with running(self._host.attention_config(self._core), watch), contextlib.suppress(Stored):
            self._host.attention(self._core, index, inputs, self._host.no_rotary(stretch.rotary), None)
        return watch.queries, watch.keys

    def _select(
        self,
        selector: Selector | None,
        selected: torch.Tensor | None,
        index: int,
        stretch: Stretch,
        layers: list[Any],
    ) -> None:
        if selector is None or selected is None:
            return
        for at in range(index + 1):
            other = layers[at]
            if isinstance(other, PrunedLayer) and selector.prune_cache:
                other.prune(*stretch.among_last(selected))
                self._recorder.kept_places("select", stretch.group, at, stretch.places, selected)
        stretch.keep(selected, self._host)

    def _scored(
        self,
        index: int,
        stretch: Stretch,
        layer: PrunedLayer,
        forward: Running,
        residual: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """Indices among the group's video tokens that stay in a layer's cache; None: all."""
        count = min(
            stored_count(
                self._config,
                stretch.entered,
                stretch.unit_tokens,
                stretch.unit_entered,
                index,
                self._num_layers,
            ),
            stretch.num_video,
        )
        if self._scorer is None or count == stretch.num_video:
            return None
        last = slice(layer.stored_length - stretch.num_rows, None)
        kv = GroupKV(
            keys=stretch.of_video(layer.keys[..., last, :], dim=-2),
            values=stretch.of_video(layer.values[..., last, :], dim=-2),
            layer=index,
            group=stretch.group.index,
            num_kept=count,
            queries=forward.queries,
            residual=None if residual is None else stretch.of_video(residual[:, : stretch.num_rows], dim=1),
            grid=stretch.group.grid,
            places=stretch.places,
        )
        scores = _scores(self._scorer, kv)
        if self._recorder.spread is not None and kv.group == 0:
            self._recorder.spread.note(self._scorer.rests_on(kv, scores))
        return select(scores, kv.num_kept)[0]


def _scores(scorer: Scorer, kv: GroupKV) -> torch.Tensor:
    """(B, N), or (B, K, N) per head; ConfigError for any other shape."""
    scores = scorer.score(kv)
    batch, heads, num_tokens, _ = kv.keys.shape
    expected = (batch, heads, num_tokens) if scorer.per_head else (batch, num_tokens)
    if not isinstance(scores, torch.Tensor) or scores.shape != expected:
        shown = tuple(scores.shape) if isinstance(scores, torch.Tensor) else repr(scores)
        raise ConfigError(
            f"{type(scorer).__name__}.score() must return one score per token, shape {expected}, got {shown}"
        )
    return scores
