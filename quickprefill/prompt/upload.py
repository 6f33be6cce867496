"""Rows of pixels from the host to a GPU, the next ones while the present ones are used."""

from __future__ import annotations

import torch

__all__ = ["Upload"]


class Upload:
    """Hands out slices of a CPU tensor on a CUDA device, and starts to copy the slice that will probably be next.

    A copy from pageable memory makes the host wait for all that is queued before it. So rows go through pinned memory
    and a stream of their own, and are there when their turn comes.
    """

    def __init__(self, rows: torch.Tensor, device: torch.device) -> None:
        self._rows, self._device = rows, device
        self._stream: torch.cuda.Stream | None = None
        self._pinned: torch.Tensor | None = None
        self._ahead: tuple[int, int, torch.Tensor, torch.cuda.Event] | None = None

    def __call__(self, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) on the device, ready for the current stream."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[:2] == (start, stop):
            part, arrived = ahead[2:]
            current = torch.cuda.current_stream(self._device)
            current.wait_event(arrived)
            part.record_stream(current)  # its memory must outlive what the current stream does with it
        else:
            part = self._rows[start:stop].to(self._device)
        following = min(2 * stop - start, self._rows.shape[0])
        if following > stop:
            if ahead is not None:
                ahead[3].synchronize()  # the pinned memory is the source of that copy
            self._ahead = (stop, following, *self._copied(self._rows[stop:following]))
        return part

    def _copied(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
        """Rows on their way to the device, and what tells that they have arrived."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        if self._pinned is None or len(self._pinned) < len(rows):
            self._pinned = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
        staged = self._pinned[: len(rows)].copy_(rows)
        with torch.cuda.stream(self._stream):
            part = staged.to(self._device, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(self._stream)
        return part, arrived
