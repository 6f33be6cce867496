"""Where the rows of a LazyTensor come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


class RowSource(Protocol):
    """Makes rows, in any order, but best in ascending order."""

    @property
    def step(self) -> int:
        """Rows that are made together."""

    def take(self, start: int, stop: int, device: torch.device) -> torch.Tensor:
        """A new tensor of rows [start, stop). Raises whatever making them raises."""

    def close(self) -> None:
        """Stop what is being made ahead."""


@dataclass(frozen=True)
class Held:
    """Rows of a tensor that is there already."""

    tensor: torch.Tensor
    step: int = 1

    def take(self, start: int, stop: int, device: torch.device) -> torch.Tensor:
        return self.tensor[start:stop].to(device, copy=True)

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of a source."""

    source: RowSource
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start
