"""What a prefill did: tokens in and out of every stage, what is stored, and where the time went."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from quickprefill.cache.host_layers import held_tensors
from quickprefill.errors import InputError
from quickprefill.prompt.spans import Group
from quickprefill.spread import Spread

__all__ = ["KeptPlaces", "PrefillReport", "Recorder", "Span"]


@dataclass(frozen=True)
class KeptPlaces:
    """Which video tokens of a group stayed behind a stage."""

    stage: str
    """compress, select or score."""
    group: int
    layer: int | None
    """None: before the first layer."""
    prompt: int
    video: int
    grid: tuple[int, int, int]
    """(slices, rows, columns) of the video tokens in the group."""
    first_slice: int
    """The group's first temporal slice in its video."""
    slice_frames: int
    """Video frames of a slice."""
    places: torch.Tensor
    """(n,) in the raster of `grid`, ascending, on the CPU; (K, n) where each key-value head keeps its own."""


@dataclass(frozen=True)
class Span:
    """When a stage ran."""

    stage: str
    group: int
    start_seconds: float
    """From the beginning of the prefill."""
    stop_seconds: float


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
    """Video tokens in each layer's cache; 0 where a layer is of a kind that cannot be pruned."""
    cache_bytes: int
    """Keys and values stored in all layers, text included, and the states of layers that hold one."""
    reserved_bytes: int
    """Storage of all layers, with the room for tokens to come."""
    group_frames: int
    """Video frames in the largest group."""
    flops: float
    """Work in matrix products as planned, see quickprefill.estimate()."""
    seconds: dict[str, float]
    """encode (vision tower), compress, decode (decoder layers), prune (scores, selection and gathering; on a GPU one
    layer of each group is timed, in turn, and stands for all)."""
    kept_places: tuple[KeptPlaces, ...] = ()
    """With trace=True: what stayed behind every stage of every group and layer."""
    timeline: tuple[Span, ...] = ()
    """With trace=True: when each stage of each group ran."""

    @property
    def kept(self) -> tuple[float, ...]:
        """Share of the video tokens in each layer's cache."""
        return tuple(stored / max(self.video_tokens, 1) for stored in self.stored_tokens)

    def cubes(self, fps: float, video: int = 0, prompt: int = 0) -> tuple[tuple[float, float], ...]:
        """Start and end in seconds of the stretches that became one slice's tokens each; `fps` of the model's frames.

        Raises InputError if nothing was recorded, for want of trace=True or of a compressor.
        """
        wanted = ("compress", prompt, video)
        compressed = [kept for kept in self.kept_places if (kept.stage, kept.prompt, kept.video) == wanted]
        if not compressed or not fps > 0:
            raise InputError(
                f"no cubes of video {video} of prompt {prompt} at fps={fps!r} are known; patch with trace=True and a "
                "compressor such as policy='cubes', and give the frames a second that the model got, > 0"
            )
        size = compressed[0].grid[1] * compressed[0].grid[2]
        starts = sorted({int(slice_) for kept in compressed for slice_ in kept.first_slice + kept.places // size})
        seconds = compressed[0].slice_frames / fps
        stops = [*starts[1:], max(kept.first_slice + kept.grid[0] for kept in compressed)]
        return tuple((start * seconds, stop * seconds) for start, stop in zip(starts, stops, strict=True))

    def __str__(self) -> str:
        low, high = min(self.stored_tokens, default=0), max(self.stored_tokens, default=0)
        stored = f"{low}" if low == high else f"{low} to {high}"
        seconds = ", ".join(f"{name} {value:.3f}" for name, value in self.seconds.items())
        return (
            f"{self.video_tokens} video tokens in {self.groups} groups of {self.group_frames} frames; "
            f"{self.entered_tokens} entered the decoder, {self.finished_tokens} finished it, {stored} stored per "
            f"layer; cache {self.cache_bytes / 2**20:.1f} MiB of {self.reserved_bytes / 2**20:.1f} MiB reserved; "
            f"seconds: {seconds}"
        )


_STAGES = ("encode", "compress", "decode", "prune")


def _clock(device: torch.device) -> Callable[[], Any]:
    """What notes a point in time: where the decoder ends on a GPU, when that gets there, else when the host does."""
    return functools.partial(_event, device) if device.type == "cuda" else time.perf_counter


def _event(device: torch.device) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


@dataclass
class _Timed:
    stage: str
    group: int
    start: Any
    stop: Any
    weight: int = 1
    """How many such spans it stands for."""

    def seconds(self) -> float:
        return _elapsed(self.start, self.stop)


@dataclass
class Recorder:
    """Collects a PrefillReport. Times on a GPU are read from events afterwards, so recording never waits for it."""

    trace: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where the last decoder layer runs."""
    prompts: int = 0
    groups: int = 0
    video_tokens: int = 0
    entered_tokens: int = 0
    finished_tokens: int = 0
    stored_tokens: list[int] = field(default_factory=list)
    cache_bytes: int = 0
    reserved_bytes: int = 0
    group_frames: int = 0
    flops: float = 0.0
    spread: Spread | None = None
    """Notes how much the scores of the first group differ, where that is wanted."""
    _spans: list[_Timed] = field(default_factory=list)
    _kept: list[KeptPlaces] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._now = _clock(self.device)
        self._start = self._now()

    def stored(self, layer: int, count: int) -> None:
        """Add `count` video tokens to a layer's."""
        self.stored_tokens += [0] * (layer + 1 - len(self.stored_tokens))
        self.stored_tokens[layer] += count

    def note_cache(self, layers: Sequence[Any]) -> None:
        """Note what a cache's layers hold in the end."""
        parts = [part for layer in layers for part in held_tensors(layer)]
        self.cache_bytes = sum(part.nbytes for part in parts)
        self.reserved_bytes = sum(part.untyped_storage().nbytes() for part in parts)

    def kept_places(
        self, stage: str, group: Group, layer: int | None, places: torch.Tensor, kept: torch.Tensor | None = None
    ) -> None:
        """Note, if asked to, which of a group's tokens stayed: those at `places`[`kept`], or all."""
        if not self.trace:
            return
        stayed = places if kept is None else places.to(kept.device)[kept]
        grid = (group.grid.slices, group.grid.height, group.grid.width)
        video = (self.prompts, group.video, grid, group.first_slice, group.grid.slice_frames)
        self._kept.append(KeptPlaces(stage, group.index, layer, *video, stayed.cpu()))

    @contextlib.contextmanager
    def span(self, stage: str, group: int, weight: int = 1) -> Iterator[None]:
        """Time a stage of a group."""
        start = self._now()
        yield
        self._spans.append(_Timed(stage, group, start, self._now(), weight))

    def layer_span(self, stage: str, group: int, layer: int, layers: int) -> contextlib.AbstractContextManager[None]:
        """Time what happens in every layer of a group: each of them on a CPU; one, in turn, where that takes events."""
        if isinstance(self._start, float):
            return self.span(stage, group)
        return self.span(stage, group, layers) if group % layers == layer else contextlib.nullcontext()

    def __getstate__(self) -> dict[str, Any]:
        """A copy holds seconds, since events of a GPU cannot be copied."""
        spans = [
            _Timed(one.stage, one.group, _elapsed(self._start, one.start), _elapsed(self._start, one.stop), one.weight)
            for one in self._spans
        ]
        return {**vars(self), "_spans": spans, "_start": 0.0}

    def report(self) -> PrefillReport:
        """The report; waits for the GPU where there is one."""
        stages = [stage for stage in _STAGES if any(one.stage == stage for one in self._spans)]
        seconds = dict.fromkeys(stages, 0.0)
        for one in self._spans:
            seconds[one.stage] += one.seconds() * one.weight
        if "prune" in seconds:  # it happens between the layers
            seconds["decode"] -= min(seconds["prune"], seconds["decode"])
        timeline = [
            Span(one.stage, one.group, _elapsed(self._start, one.start), _elapsed(self._start, one.stop))
            for one in (self._spans if self.trace else ())
        ]
        return PrefillReport(
            prompts=self.prompts,
            groups=self.groups,
            video_tokens=self.video_tokens,
            entered_tokens=self.entered_tokens,
            finished_tokens=self.finished_tokens,
            stored_tokens=tuple(self.stored_tokens),
            cache_bytes=self.cache_bytes,
            reserved_bytes=self.reserved_bytes,
            group_frames=self.group_frames,
            flops=self.flops,
            seconds=seconds,
            kept_places=tuple(self._kept),
            timeline=tuple(timeline),
        )


def _elapsed(start: Any, stop: Any) -> float:
    if isinstance(start, float):
        return float(stop - start)
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1000
