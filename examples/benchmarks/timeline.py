"""What ran when between a video file and the first token: spans per stage, and a picture of how they overlap."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

STAGES = ("decode", "preprocess", "vision tower", "decoder")
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")
FINEST = 1 / 500
"""Gaps and spans below this share of the whole are not told apart."""

Spans = list[tuple[float, float]]


class Timeline:
    """Collects spans, in seconds since it was made; on a GPU those of the device, read from events at the end."""

    def __init__(self) -> None:
        self._gpu = torch.cuda.is_available()
        self._spans: dict[str, list[tuple[Any, Any]]] = {stage: [] for stage in STAGES}
        self._decoded_until = threading.local()
        if self._gpu:
            torch.cuda.synchronize()
            self._first = self._event()
        self.start = time.perf_counter()

    def seconds(self) -> float:
        """Since it was made."""
        return time.perf_counter() - self.start

    @contextlib.contextmanager
    def span(self, stage: str, *, device: bool = False) -> Iterator[None]:
        """Time a block on the host, or what it queues on the device."""
        now = self._event if device and self._gpu else self.seconds
        begin = now()
        yield
        self._spans[stage].append((begin, now()))

    def wrap(self, stage: str, function: Callable[..., Any], *, device: bool = False) -> Callable[..., Any]:
        """`function`, timed."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.span(stage, device=device):
                return function(*args, **kwargs)

        return timed

    def watch_model(self, model: Any) -> None:
        """Time the vision tower and the decoder layers of a video model."""
        tower = getattr(model.model, "visual", None) or model.model.vision_tower
        tower.forward = self.wrap("vision tower", tower.forward, device=True)
        for layer in model.model.language_model.layers:
            layer.forward = self.wrap("decoder", layer.forward, device=True)

    def watch_quickdecode(self) -> None:
        """Time its threads: what lies between two pictures, but not waiting for room."""
        from quickdecode.decode.block import CountingDecoder, SegmentDecoder
        from quickdecode.decode.picture import PictureWriter
        from quickdecode.decode.ring import Ring

        def after(holder: type, name: str, note: Callable[[float, float], None]) -> None:
            function = getattr(holder, name)

            @functools.wraps(function)
            def noting(*args: Any, **kwargs: Any) -> Any:
                begin = self.seconds()
                result = function(*args, **kwargs)
                note(begin, self.seconds())
                return result

            setattr(holder, name, noting)

        def busy_until(_: float, end: float) -> None:
            self._decoded_until.seconds = end

        def worked(begin: float, end: float) -> None:
            self._spans["decode"].append((getattr(self._decoded_until, "seconds", begin), end))
            busy_until(begin, end)

        def waited(begin: float, end: float) -> None:
            worked(begin, begin)
            busy_until(begin, end)

        after(SegmentDecoder, "__init__", busy_until)
        after(CountingDecoder, "__init__", busy_until)
        after(PictureWriter, "write", worked)
        after(Ring, "place", waited)

    def spans(self) -> dict[str, Spans]:
        """Spans of each stage, ascending and apart."""
        whole = self.seconds()
        return {stage: _merged([self._host(span) for span in spans], whole) for stage, spans in self._spans.items()}

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _host(self, span: tuple[Any, Any]) -> tuple[float, float]:
        if isinstance(span[0], float):
            return span
        span[1].synchronize()
        begin, end = (self._first.elapsed_time(event) / 1000 for event in span)
        return begin, end


def _merged(spans: Spans, whole: float) -> Spans:
    merged: Spans = []
    for begin, end in sorted(spans):
        if merged and begin - merged[-1][1] < FINEST * whole:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return [(round(begin, 4), round(end, 4)) for begin, end in merged]


def draw(runs: dict[str, dict[str, Any]], path: Path) -> None:
    """One panel per way: `spans` and `first_token_s` of a run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(runs), 1, figsize=(10, 1 + 1.6 * len(runs)), sharex=True, squeeze=False)
    for axis, (way, run) in zip(axes[:, 0], runs.items(), strict=True):
        for row, (stage, colour) in enumerate(zip(STAGES, COLOURS, strict=True)):
            axis.broken_barh([(begin, end - begin) for begin, end in run["spans"][stage]], (-row, 0.8), color=colour)
        axis.axvline(run["first_token_s"], color="black", linewidth=1)
        axis.set_yticks([0.4 - row for row in range(len(STAGES))], STAGES, fontsize=8)
        axis.set_title(f"{way}: first token after {run['first_token_s']:.1f} s", fontsize=9, loc="left")
    axes[-1, 0].set(xlabel="seconds since the file was named", xlim=(0, None))
    figure.tight_layout()
    figure.savefig(path, dpi=120)
