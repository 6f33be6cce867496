"""From a row's videos to groups of tokens that enter the decoder: encoded, compressed, and filled up again."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from quickprefill.budget.counts import compressed_count
from quickprefill.budget.groups import GROUP_TOKENS, check_slices, group_slices, refills, tower_slices
from quickprefill.config import QuickPrefillConfig
from quickprefill.errors import ConfigError
from quickprefill.hosts.base import Host, Row
from quickprefill.policies import Compressor
from quickprefill.prompt.pending import PendingVideo
from quickprefill.prompt.spans import Group, VideoSpan, find_videos
from quickprefill.prompt.tokens import VideoTokens
from quickprefill.reporting import Recorder

__all__ = ["Encoder", "Entering", "find_spans"]


def find_spans(host: Host, core: Any, config: QuickPrefillConfig, row: Row) -> list[VideoSpan]:
    """Where a row's videos stand in it.

    Raises:
        InputError: placeholders do not match the videos, or the policy needs tokens that the prompt leaves out.
    """
    grids = [video.grid for video in row.videos]
    check_slices(config, grids)
    return find_videos(row.ids, host.video_token_id(core), grids, host.closing_placeholders)


@dataclass(frozen=True)
class Entering:
    """A group's video tokens as they enter the decoder."""

    group: Group
    tokens: VideoTokens
    unit_tokens: int
    """Tokens that the tower made for the unit, group or video, in which the compressor compared them."""
    unit_entered: int
    """How many of that unit's tokens enter the decoder."""


class Encoder:
    """Makes one row's groups, each when it is asked for."""

    def __init__(
        self,
        row: Row,
        config: QuickPrefillConfig,
        frames_per_slice: int,
        width: int,
        question: torch.Tensor | None,
        weights: torch.nn.Module | None,
        recorder: Recorder,
        training: bool = False,
    ) -> None:
        """
        Args:
            config: with group_frames resolved, "auto" is none of its values here.
            width: C; rows of embeddings may be wider.
            question: (Q, C), for a compressor that asks for it.
            weights: for one that has some.
            training: as in VideoTokens.
        """
        self._row, self._config, self._frames_per_slice = row, config, frames_per_slice
        self._width, self._question, self._weights, self._recorder = width, question, weights, recorder
        self._training, self._index = training, 0

    def groups(self, span: VideoSpan) -> Iterator[Entering]:
        """The groups of one video."""
        compressor = self._config.compressor
        slices = span.grid.slices
        if compressor is not None and compressor.scope == "video":
            yield from self._whole_video(span, compressor)
            return
        step = group_slices(self._config, self._frames_per_slice, span.grid)
        units = (self._unit(span, first, min(first + step, slices)) for first in range(0, slices, step))
        # map(), because a variable of the generator would keep a group's tokens alive while it is decoded.
        yield from map(self._counted, self._refilled(span, units) if refills(self._config) else units)

    def _whole_video(self, span: VideoSpan, compressor: Compressor) -> Iterator[Entering]:
        slices = span.grid.slices
        tokens = self._compressed(span, 0, slices)
        step = group_slices(self._config, self._frames_per_slice, span.grid, tokens.num_tokens)
        stops = [*range(step, slices, step), slices]
        if self._config.group_frames is None and tokens.num_tokens < span.grid.num_tokens:
            stops = _even_stops(tokens, len(stops))
        entered = tokens.num_tokens
        for first, part in zip([0, *stops], tokens.cut(*stops), strict=False):
            group = span.group(self._index, first, first + part.grid.slices)
            yield self._counted(Entering(group, part, span.grid.num_tokens, entered))

    def _unit(self, span: VideoSpan, first: int, stop: int) -> Entering:
        tokens = self._compressed(span, first, stop)
        group = span.group(self._index, first, stop)
        return Entering(group, tokens, group.num_video, tokens.num_tokens)

    def _counted(self, entering: Entering) -> Entering:
        recorder = self._recorder
        recorder.groups += 1
        recorder.video_tokens += entering.group.num_video
        recorder.entered_tokens += entering.tokens.num_tokens
        entering = replace(entering, group=replace(entering.group, index=self._index))
        self._index += 1
        return entering

    def _compressed(self, span: VideoSpan, first: int, stop: int) -> VideoTokens:
        """Temporal slices [first, stop) of a video, some of them at a time through the tower, then compressed."""
        video, compressor = self._row.videos[span.index], self._config.compressor
        step = tower_slices(self._config, self._frames_per_slice, span.grid, video.device)
        with self._recorder.span("encode", self._index):
            embeds = _encoded(video, first, stop, step)
        group = span.group(self._index, first, stop)
        tokens = VideoTokens(
            embeds=embeds,
            positions=_columns(self._row.positions, group),
            source=group.grid.places(embeds.device),
            grid=group.grid,
            width=self._width if embeds.shape[1] > self._width else None,
        )
        if compressor is None:
            return tokens
        groups = -(-(stop - first) // group_slices(self._config, self._frames_per_slice, span.grid))
        count = compressed_count(self._config, group.grid, groups)
        with self._recorder.span("compress", self._index):
            compressed = compressor.compress(
                replace(
                    tokens,
                    num_kept=count,
                    question=self._question,
                    weights=self._weights,
                    training=self._training,
                )
            )
        _check(compressor, compressed, tokens)
        self._recorder.kept_places("compress", group, None, compressed.source)
        return compressed

    def _refilled(self, span: VideoSpan, units: Iterable[Entering]) -> Iterator[Entering]:
        """Units side by side, as many as make GROUP_TOKENS: few tokens left by a compressor make no small groups."""
        held: list[Entering] = []
        for unit in units:
            if held and sum(one.unit_entered for one in held) + unit.unit_entered > GROUP_TOKENS:
                yield _joined(self._index, span, _emptied(held))
            held.append(unit)
            del unit
        if held:
            yield _joined(self._index, span, _emptied(held))


def _check(compressor: Compressor, after: VideoTokens, before: VideoTokens) -> None:
    """Raise ConfigError where sizes show that compress() did not do what it must; nothing waits for the device."""
    title = f"{type(compressor).__name__}.compress()"
    if not isinstance(after, VideoTokens):
        raise ConfigError(f"{title} must return VideoTokens, as tokens.take(index) does, got {type(after).__name__}")
    number, width = after.num_tokens, before.embeds.shape[1]
    shapes = (tuple(after.embeds.shape), tuple(after.positions.shape), tuple(after.source.shape))
    if shapes != ((number, width), (before.positions.shape[0], number), (number,)) or number > before.num_tokens:
        raise ConfigError(
            f"{title} must return at most {before.num_tokens} tokens {width} wide, with a position and a source each; "
            f"got embeds, positions and source of shapes {', '.join(map(str, shapes))}"
        )


def _encoded(video: PendingVideo, first: int, stop: int, step: int) -> torch.Tensor:
    """Features of temporal slices [first, stop), (N, C), `step` slices at a time through the tower."""
    features = video.encode(first, min(first + step, stop))
    if first + step >= stop:
        return features
    number = video.grid.part(first, stop).num_tokens
    embeds = features.new_empty(number, features.shape[1])  # filled as they come: no second copy of all
    filled = len(features)
    embeds[:filled] = features
    del features
    for at in range(first + step, stop, step):
        upto = min(at + step, stop)
        start, filled = filled, filled + video.grid.part(at, upto).num_tokens
        embeds[start:filled] = video.encode(at, upto)
    return embeds


def _even_stops(tokens: VideoTokens, number: int) -> list[int]:
    """Slices behind which to cut a video into at most so many groups of about as many tokens.

    Waits for the device, to learn in which slices they are.
    """
    size, slices, total = tokens.grid.slice_tokens, tokens.grid.slices, tokens.num_tokens
    places = size * torch.arange(1, slices, device=tokens.source.device)
    passed = torch.searchsorted(tokens.source, places).tolist()
    stops = [bisect_left(passed, total * part // number) + 1 for part in range(1, number)]
    return [*sorted({stop for stop in stops if stop < slices}), slices]


def _emptied(held: list[Entering]) -> list[Entering]:
    """What a list holds, which it then no longer does."""
    taken = held[:]
    held.clear()
    return taken


def _columns(positions: torch.Tensor, group: Group) -> torch.Tensor:
    """Positions (P, n) of a group's video tokens."""
    if group.consecutive:
        return positions[:, group.video_start : group.stop]
    return positions[:, group.columns().to(positions.device)]


def _joined(index: int, span: VideoSpan, units: list[Entering]) -> Entering:
    """Consecutive units of one video as one."""
    if len(units) == 1:
        return units[0]
    first = units[0].group.first_slice
    parts = [unit.tokens for unit in units]
    offsets = [(unit.group.first_slice - first) * span.grid.slice_tokens for unit in units]
    # A pool of one unit is none of another.
    pools = [part.pools + (at << 32) for at, part in enumerate(parts) if part.pools is not None]
    tokens = VideoTokens(
        embeds=torch.cat([part.embeds for part in parts]),
        positions=torch.cat([part.positions.to(parts[0].positions.device) for part in parts], dim=1),
        source=torch.cat([part.source + offset for part, offset in zip(parts, offsets, strict=True)]),
        grid=span.grid.part(first, units[-1].group.stop_slice),
        pools=torch.cat(pools) if pools else None,
        width=parts[0].width,
    )
    return Entering(
        group=span.group(index, first, units[-1].group.stop_slice),
        tokens=tokens,
        unit_tokens=sum(unit.unit_tokens for unit in units),
        unit_entered=sum(unit.unit_entered for unit in units),
    )
