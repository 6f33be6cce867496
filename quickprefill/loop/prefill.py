"""THE LOOP: for each group encode, decode, prune; then the trailing text; then what the head looks at."""

from __future__ import annotations

from typing import Any

import torch
from tqdm import tqdm
from transformers.cache_utils import DynamicCache

from quickprefill import versions
from quickprefill.budget.fit import fitted
from quickprefill.budget.plan import Plan, plan_row
from quickprefill.cache.host_layers import fork, is_prunable
from quickprefill.cache.layer import PrunedLayer, stored_tokens
from quickprefill.cache.padding import merge_rows
from quickprefill.config import QuickPrefillConfig
from quickprefill.errors import InputError
from quickprefill.hosts.base import Host, Row
from quickprefill.hosts.geometry import Geometry
from quickprefill.loop.collect import Collector, wanted_columns
from quickprefill.loop.encode import Encoder, Entering, find_spans
from quickprefill.loop.layers import Decoder
from quickprefill.loop.stretch import Stretch, Text
from quickprefill.loop.text import TextEmbedder
from quickprefill.reporting import Recorder
from quickprefill.weights import weights_of

__all__ = ["MAX_LENGTH", "prefill"]

MAX_LENGTH = "_quickprefill_max_length"
"""Attribute of a cache in which generate() leaves how long the sequence may become."""
_MOST_ROOM_TOKENS = 8192
"""Room that is reserved for tokens to come; beyond it storage grows as it fills."""


def prefill(
    host: Host,
    core: Any,
    config: QuickPrefillConfig,
    call: dict[str, Any],
    logits_to_keep: int | torch.Tensor,
    geometry: Geometry,
    recorder: Recorder,
) -> Any:
    """Do what the core's forward() would for a prompt with video, group by group, into a pruned cache.

    The rows of a batch are prefilled one after the other, each without its padding, and equal rows (beams) once.

    Returns:
        The core's output. Its hidden states are those of the columns that `logits_to_keep` names, counted from the
        last, or of all columns where it is a tensor; NaN where the column's token did not reach the last layer. Its
        cache, the caller's own where there was one, holds PrunedLayers.
    """
    cache = versions.cache_of(call)
    cache = DynamicCache() if cache is None else cache
    rows, row_of = _unique(host.rows(core, call))
    num_columns = call["input_ids"].shape[1]
    if any(len(row.columns) and int(row.columns[-1]) + 1 < num_columns for row in rows):
        raise InputError(
            "attention_mask has padding on the right of a prompt; a prompt that is generated from is padded on the "
            'left: use AutoProcessor.from_pretrained(..., padding_side="left")'
        )
    logical_length = cache.get_seq_length() + num_columns
    room = min(max(vars(cache).pop(MAX_LENGTH, logical_length) - logical_length, 0), _MOST_ROOM_TOKENS)
    wanted = wanted_columns(logits_to_keep, num_columns)
    filled, hidden = [], []
    try:
        for row in rows:
            prompt = _Prompt(host, core, config, row, cache, geometry, recorder)
            row_layers, row_hidden = prompt.prefill(wanted, room if len(row_of) == 1 else 0)
            recorder.prompts += 1
            filled.append(row_layers)
            hidden.append(row_hidden)
    finally:
        for video in (video for row in rows for video in row.videos):
            video.close()
    layers = range(len(filled[0]))
    cache.layers[:] = [merge_rows([row.pop(0) for row in filled], row_of, logical_length, room) for _ in layers]
    # popped, so that a layer of the rows is free again before the next one is laid together
    recorder.note_cache(cache.layers)
    states = torch.stack([hidden[row] for row in row_of])
    if isinstance(logits_to_keep, torch.Tensor):  # the head takes its columns from all of them
        everything = states.new_full((len(row_of), num_columns, states.shape[-1]), float("nan"))
        everything[:, wanted.to(states.device)] = states
        states = everything
    return host.output(core, states, cache)


class _Prompt:
    """One prompt's prefill."""

    def __init__(
        self,
        host: Host,
        core: Any,
        config: QuickPrefillConfig,
        row: Row,
        cache: DynamicCache,
        geometry: Geometry,
        recorder: Recorder,
    ) -> None:
        self._host, self._core, self._row, self._recorder = host, core, row, recorder
        self._past, self._past_length = cache.layers, cache.get_seq_length()
        self._spans = find_spans(host, core, config, row)
        self._tail = self._spans[-1].stop if self._spans else 0
        self._geometry = geometry
        self._text = TextEmbedder(host, core, row)
        self._config = config

    def prefill(self, wanted: torch.Tensor, room: int) -> tuple[list[Any], torch.Tensor]:
        """Returns the prompt's cache layers and the final hidden states of the wanted columns, (W, C)."""
        host, core, row, recorder = self._host, self._core, self._row, self._recorder
        length, tail = len(row.ids), self._tail
        question = self._question()
        riding = question if self._config.question_rides else None
        collect = Collector(row.columns, wanted)
        frames_per_slice = host.frames_per_slice(core)
        config = fitted(self._geometry, self._config, self._spans, length, frames_per_slice)
        plan = plan_row(
            self._geometry,
            config,
            self._spans,
            length,
            frames_per_slice,
            past=[stored_tokens(layer) for layer in self._past],
            room=room,
            question=0 if riding is None else len(riding),
            wants=collect.wants,
        )
        recorder.group_frames = max(recorder.group_frames, plan.most_group_slices * frames_per_slice)
        recorder.flops += plan.flops
        cache = self._cache(plan)
        decoder = Decoder(host, core, config, cache, recorder)
        asked = None if question is None else question.embeds[:, : self._geometry.hidden]
        weights = weights_of(core)
        encoder = Encoder(row, config, frames_per_slice, self._geometry.hidden, asked, weights, recorder)
        frames = sum(span.grid.slices for span in self._spans) * frames_per_slice
        bar = tqdm(total=frames, desc="prefill", unit="frame", disable=not config.progress)

        def begin(entering: Entering) -> Stretch:
            return decoder.begin(entering, self._text(entering.group.text_columns()), riding)

        for span in self._spans:
            for stretch in map(begin, encoder.groups(span)):  # so nothing holds a group's tokens beside its rows
                group = stretch.group
                collect.take(*decoder.group(stretch, finish=collect.wants(group)))
                del stretch
                for layer in cache.layers:
                    if isinstance(layer, PrunedLayer):
                        layer.logical_length = self._past_length + group.stop
                bar.update((group.stop_slice - group.first_slice) * frames_per_slice)
        bar.close()
        if tail < length:
            columns = torch.arange(tail, length)
            collect.take(decoder.tail(self._text(columns), behind_video=bool(self._spans)), columns)
        return cache.layers, collect.hidden()

    def _cache(self, plan: Plan) -> DynamicCache:
        """A cache of its own that goes on where the caller's ends."""
        cache, kinds = DynamicCache(), self._host.new_layers(self._core)
        cache.layers = [
            PrunedLayer.adopt(layer, capacity, grows=not plan.known) if is_prunable(kind) else fork(layer)
            for layer, kind, capacity in zip(self._past or kinds, kinds, plan.slots, strict=True)
        ]
        return cache

    def _question(self) -> Text | None:
        """The text behind the last video, for a policy that asks for it."""
        if not self._spans or not any(policy.uses_question for policy in self._config.policies):
            return None
        ids = self._row.ids[self._tail :]
        closing = torch.tensor(sorted(self._host.closing_token_ids(self._core)))
        if bool(torch.isin(ids, closing).all()):
            names = [policy.name for policy in self._config.policies if policy.uses_question]
            raise InputError(
                f"policy {' and '.join(names)} keeps what the text behind the video attends to, but nothing stands "
                "there that asks; put the question behind the video, or use a policy that needs none"
            )
        return self._text(torch.arange(self._tail, len(self._row.ids)))


def _unique(rows: list[Row]) -> tuple[list[Row], list[int]]:
    """The different prompts among the rows, and which of them each row is."""
    unique: list[Row] = []
    row_of = []
    for row in rows:
        match = next((index for index, other in enumerate(unique) if row.same_as(other)), None)
        if match is None:
            match = len(unique)
            unique.append(row)
        row_of.append(match)
    return unique, row_of
