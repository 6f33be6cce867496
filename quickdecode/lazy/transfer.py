"""Pictures from the host to the device that works on them."""

from __future__ import annotations

import functools

import torch


def wants_pinned(device: torch.device) -> bool:
    """Whether a copy to `device` is faster, and does not wait, from page-locked memory."""
    return device.type == "cuda"


def to_device(frames: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`frames` on `device`. On CUDA the copy runs beside the work that is queued there, which then waits for it."""
    if device.type != "cuda":
        return frames.to(device)
    ours, theirs = _copies(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(ours):
        moved = frames.to(device, non_blocking=True)
    theirs.wait_stream(ours)
    moved.record_stream(theirs)  # or its memory could be given away while the model still reads it
    return moved


@functools.cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
