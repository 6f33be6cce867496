"""What a prefill did: tokens in and out of every stage, what is stored, and where the time went."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["PrefillReport", "Recorder"]


@dataclass(frozen=True)
class PrefillReport:
    """The last prefill of a patched model; sums over its prompts and groups."""

    prompts: int
    """Different prompts prefilled; beams of one prompt count once."""
    groups: int
    video_tokens: int
    """Tokens that the vision tower made."""
    entered_tokens: int
    """Tokens that entered the decoder, after compress()."""
    finished_tokens: int
    """Tokens that reached the end, after select() and progressive pruning."""
    stored_tokens: tuple[int, ...]
    """Video tokens in each layer's cache."""
    cache_bytes: int
    """Keys and values stored in all layers, text included."""
    group_frames: int
    """Video frames in a full group: the config's, or what "auto" chose."""
    flops: float
    """Work in matrix products as planned, see quickprefill.estimate()."""
    seconds: dict[str, float]
    """encode (vision tower), compress, decode (decoder layers), prune (scores, selection and gathering)."""

    @property
    def kept(self) -> tuple[float, ...]:
        """Share of the video tokens in each layer's cache."""
        return tuple(stored / max(self.video_tokens, 1) for stored in self.stored_tokens)

    def __str__(self) -> str:
        low, high = min(self.stored_tokens, default=0), max(self.stored_tokens, default=0)
        stored = f"{low}" if low == high else f"{low} to {high}"
        seconds = ", ".join(f"{name} {value:.3f}" for name, value in self.seconds.items())
        return (
            f"{self.video_tokens} video tokens in {self.groups} groups of {self.group_frames} frames; "
            f"{self.entered_tokens} entered the decoder, {self.finished_tokens} finished it, {stored} stored per "
            f"layer; cache {self.cache_bytes / 2**20:.1f} MiB; seconds: {seconds}"
        )


def _clock() -> Callable[[], Any]:
    """What notes a point in time; a prefill keeps to one, even if CUDA comes into use meanwhile."""
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return _event if in_use else time.perf_counter


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


@dataclass
class Recorder:
    """Collects a PrefillReport. Times on a GPU are read from events afterwards, so recording never waits for it."""

    prompts: int = 0
    groups: int = 0
    video_tokens: int = 0
    entered_tokens: int = 0
    finished_tokens: int = 0
    stored_tokens: list[int] = field(default_factory=list)
    cache_bytes: int = 0
    group_frames: int = 0
    flops: float = 0.0
    _spans: list[tuple[str, Any, Any]] = field(default_factory=list)
    _now: Callable[[], Any] = field(default_factory=_clock)

    def stored(self, layer: int, count: int) -> None:
        """Add `count` video tokens to a layer's."""
        self.stored_tokens += [0] * (layer + 1 - len(self.stored_tokens))
        self.stored_tokens[layer] += count

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Time a stage."""
        start = self._now()
        yield
        self._spans.append((name, start, self._now()))

    def __getstate__(self) -> dict[str, Any]:
        """A copy holds seconds, since events of a GPU cannot be copied."""
        spans = [(name, 0.0, _elapsed(start, stop)) for name, start, stop in self._spans]
        return {**vars(self), "_spans": spans}

    def report(self) -> PrefillReport:
        """The report; waits for the GPU where there is one."""
        seconds: dict[str, float] = {}
        for name, start, stop in self._spans:
            seconds[name] = seconds.get(name, 0.0) + _elapsed(start, stop)
        return PrefillReport(
            self.prompts,
            self.groups,
            self.video_tokens,
            self.entered_tokens,
            self.finished_tokens,
            tuple(self.stored_tokens),
            self.cache_bytes,
            self.group_frames,
            self.flops,
            seconds,
        )


def _elapsed(start: Any, stop: Any) -> float:
    if isinstance(start, float):
        return float(stop - start)
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1000
