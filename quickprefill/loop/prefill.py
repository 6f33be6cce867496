"""THE LOOP: for each group encode, decode, prune; then the trailing text; then logits where they were asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from tqdm import tqdm
from transformers.cache_utils import DynamicCache

from quickprefill.budget.plan import largest_group_slices, plan_prompt
from quickprefill.cache.layer import PrunedLayer
from quickprefill.cache.padding import merge_rows
from quickprefill.config import QuickPrefillConfig
from quickprefill.errors import InputError
from quickprefill.hosts.base import Family, Row
from quickprefill.loop.stretch import Decoder, Text
from quickprefill.prompt.spans import Grid, Group, split_prompt
from quickprefill.prompt.tokens import VideoTokens
from quickprefill.report import Recorder

__all__ = ["group_slices", "prefill"]


def prefill(model: Any, family: Family, config: QuickPrefillConfig, call: dict[str, Any], recorder: Recorder) -> Any:
    """Do what the host's forward() would for a prompt with video, group by group, into a pruned cache.

    The rows of a batch are prefilled one after the other, each without its padding, and equal rows (beams) once.

    Returns:
        The host's output, with logits for the positions that `logits_to_keep` names (NaN where the position's token did
        not reach the last layer); its cache, the caller's own where there was one, holds PrunedLayers.
    """
    config.check_layers(family.num_layers(model))
    cache = call.get("past_key_values")
    cache = DynamicCache() if cache is None else cache
    rows, row_of = _unique(family.rows(model, call))
    num_columns = call["input_ids"].shape[1]
    logical_length = cache.get_seq_length() + num_columns
    wanted = _wanted_columns(call.get("logits_to_keep", 0), num_columns)
    layers, hidden = [], []
    try:
        for row in rows:
            row_layers, row_hidden = _prefill_row(model, family, config, row, cache.layers, wanted, recorder)
            layers.append(row_layers)
            hidden.append(row_hidden)
    finally:
        for video in (video for row in rows for video in row.videos):
            video.close()
    cache.layers[:] = [
        merge_rows([row.pop(0) for row in layers], row_of, logical_length) for _ in range(family.num_layers(model))
    ]  # popped, so that a layer of the rows is free again before the next one is laid together
    recorder.prompts = len(rows)
    recorder.cache_bytes = sum(layer.stored_bytes for layer in cache.layers)
    return family.output(model, torch.stack([hidden[row] for row in row_of]), cache, call.get("return_dict"))


def _prefill_row(
    model: Any,
    family: Family,
    config: QuickPrefillConfig,
    row: Row,
    past: list[Any],
    wanted: torch.Tensor,
    recorder: Recorder,
) -> tuple[list[PrunedLayer], torch.Tensor]:
    """Prefill one prompt. Returns its cache layers and the final hidden states of the wanted columns, (W, C)."""
    ids = row.ids.tolist()
    grids = [video.grid for video in row.videos]
    geometry = family.geometry(model)
    slices = group_slices(model, family, config, grids, len(ids))
    groups, tail = split_prompt(ids, family.video_token_id(model), grids, slices)
    collect = _Collector(row, wanted)
    finishing = {group.index for group in groups if collect.wants(group)}
    plan = plan_prompt(geometry, config, groups, grids, len(ids) - tail, finishing)
    recorder.group_frames = max(recorder.group_frames, slices * family.frames_per_slice(model))
    recorder.flops += plan.flops
    cache, past_length = DynamicCache(), past[0].get_seq_length() if past else 0
    capacity = past_length + plan.capacity
    cache.layers = [PrunedLayer.adopt(layer, capacity) for layer in past] or [
        PrunedLayer(capacity) for _ in range(family.num_layers(model))
    ]
    decoder = Decoder(model, family, config, cache, recorder)
    text = _TextEmbedder(model, family, row, ids)
    question = text(tail, len(ids)) if groups and any(policy.uses_question for policy in config.policies) else None
    if question is not None and not len(question):
        raise InputError(
            f"policy {config.policy!r} asks what the text behind the video attends to, but the prompt ends with its "
            "video; put the question behind it"
        )
    bar = tqdm(groups, desc="prefill", unit="group", disable=not config.progress)
    for group, tokens in _encode(bar, row, config, recorder):
        before = text(group.start, group.video_start)
        finish = group.index in finishing
        hidden, finished = decoder.group(before, tokens, question, group.index, finish=finish)
        if finish:
            collect.group(hidden, group, tokens, finished)
        for layer in cache.layers:
            layer.logical_length = past_length + group.stop
    if tail < len(ids):
        hidden = decoder.text(text(tail, len(ids)), prunable=True)
        collect.text(hidden, tail)
    return cache.layers, collect.hidden(like=hidden)


def _encode(
    groups: Iterable[Group], row: Row, config: QuickPrefillConfig, recorder: Recorder
) -> Iterator[tuple[Group, VideoTokens]]:
    """Each group's video tokens as they enter the decoder. A policy of scope "video" gets all groups of one at once."""
    compressor: Any = config.policy_for("compress")
    whole = compressor is not None and compressor.scope == "video"
    parts: list[VideoTokens] = []
    for group in groups:
        if whole:
            if group.first_slice == 0:
                slices, step = row.videos[group.video].grid.slices, group.stop_slice
                video = _tokens(row, group, 0, slices, step, compressor, recorder)
                parts = video.cut(*range(step, slices, step), slices)
            tokens = parts.pop(0)
        else:
            first, stop = group.first_slice, group.stop_slice
            tokens = _tokens(row, group, first, stop, stop - first, compressor, recorder)
        recorder.groups += 1
        recorder.video_tokens += group.num_video
        recorder.entered_tokens += tokens.num_tokens
        yield group, tokens


def _tokens(
    row: Row, group: Group, first: int, stop: int, step: int, compressor: Any, recorder: Recorder
) -> VideoTokens:
    """Temporal slices [first, stop) of a group's video, encoded `step` at a time, then compressed."""
    video = row.videos[group.video]
    start = group.video_start + (first - group.first_slice) * video.grid.slice_tokens
    with recorder.span("encode"):
        parts = [video.encode(at, min(at + step, stop)) for at in range(first, stop, step)]
    embeds = torch.cat(parts) if len(parts) > 1 else parts[0]
    tokens = VideoTokens(
        embeds=embeds,
        positions=row.positions[:, start : start + len(embeds)],
        source=torch.arange(len(embeds), device=embeds.device),
        grid=replace(video.grid, slices=stop - first),
    )
    if compressor is None:
        return tokens
    with recorder.span("compress"):
        compressed: VideoTokens = compressor.compress(tokens)
    return compressed


class _TextEmbedder:
    """Embeds stretches of text and image tokens of one prompt."""

    def __init__(self, model: Any, family: Family, row: Row, ids: list[int]) -> None:
        self._model, self._family, self._row = model, family, row
        image_token = family.image_token_id(model)
        self._images_before = [0, *accumulate(token == image_token for token in ids)]

    def __call__(self, start: int, stop: int) -> Text:
        images = self._row.images
        if images is not None:
            images = images[self._images_before[start] : self._images_before[stop]]
        embeds = self._family.embed(self._model, self._row.ids[start:stop], images)
        return Text(embeds, self._row.positions[:, start:stop])


class _Collector:
    """Picks the wanted columns' hidden states out of the stretches that pass by."""

    def __init__(self, row: Row, wanted: torch.Tensor) -> None:
        index = {column: index for index, column in enumerate(row.columns.tolist())}
        self._wanted = torch.tensor([index.get(column, -1) for column in wanted.tolist()], dtype=torch.long)
        self._parts: list[tuple[torch.Tensor, torch.Tensor]] = []

    def wants(self, group: Group) -> bool:
        """Whether a column of the group is wanted: reading which of its tokens finished waits for the device."""
        return bool(((self._wanted >= group.start) & (self._wanted < group.stop)).any())

    def text(self, hidden: torch.Tensor, start: int) -> None:
        """Hidden states (n, C) of the prompt's tokens from `start` on."""
        self._take(hidden, torch.arange(start, start + len(hidden)))

    def group(self, hidden: torch.Tensor, group: Group, tokens: VideoTokens, finished: torch.Tensor) -> None:
        """Hidden states of a group: its text, then its tokens at `finished`."""
        video = group.video_start + tokens.source[finished.to(tokens.source.device)].cpu()
        columns = torch.cat([torch.arange(group.start, group.video_start), video])
        if len(columns):
            self._take(hidden, columns)

    def _take(self, hidden: torch.Tensor, columns: torch.Tensor) -> None:
        rows = torch.searchsorted(columns, self._wanted).clamp(max=len(columns) - 1)
        places = (columns[rows] == self._wanted).nonzero()[:, 0]
        if len(places):
            self._parts.append((places, hidden[rows[places].to(hidden.device)]))

    def hidden(self, like: torch.Tensor) -> torch.Tensor:
        """(W, C): zero for columns that are padding, NaN for tokens that did not reach the last layer."""
        collected = like.new_full((len(self._wanted), like.shape[-1]), float("nan"))
        collected[(self._wanted < 0).to(like.device)] = 0
        for places, part in self._parts:
            collected[places.to(part.device)] = part
        return collected


def group_slices(model: Any, family: Family, config: QuickPrefillConfig, grids: Sequence[Grid], num_tokens: int) -> int:
    """Temporal slices in a group of a prompt of `num_tokens` tokens with these videos."""
    if config.group_frames == "auto" and grids:
        num_text = num_tokens - sum(grid.num_tokens for grid in grids)
        return largest_group_slices(family.geometry(model), config, grids, num_text, family.device(model))
    frames = config.group_frames if isinstance(config.group_frames, int) else 2
    return max(frames // family.frames_per_slice(model), 1)


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


def _wanted_columns(logits_to_keep: int | torch.Tensor, num_columns: int) -> torch.Tensor:
    """Columns whose logits the host's forward() would return, on the CPU."""
    columns = torch.arange(num_columns)
    if isinstance(logits_to_keep, int):
        return columns[-logits_to_keep:]
    return columns[logits_to_keep.cpu()]
