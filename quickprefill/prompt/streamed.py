"""StreamedPixels: what a reader must offer whose pixels are prefilled while it still decodes."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

__all__ = ["StreamedPixels"]


@runtime_checkable
class StreamedPixels(Protocol):
    """What a pixel tensor has beyond torch.Tensor if its rows are still being read: all that a reader must offer.

    It is a tensor of known shape whose rows are made when they are asked for. Moving and casting it, torch.cat,
    torch.split and slices of whole rows must not make them, since they happen on the way here.
    """

    def rows(self, start: int, stop: int, device: torch.device | None = None) -> torch.Tensor:
        """Rows [start, stop) as a real tensor, on `device`; asked for in ascending order, but for a new start at 0."""

    def same_rows(self, other: object) -> bool:
        """Whether `other` is known to hold the same values, without making them."""

    def close(self) -> None:
        """Stop whatever makes the rows, until more of them are asked for."""
