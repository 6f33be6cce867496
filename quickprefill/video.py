"""PendingVideo: a video whose vision features are computed when a group asks for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from quickprefill.groups import Grid

__all__ = ["PendingVideo"]

Encode = Callable[[torch.Tensor, int], torch.Tensor]


class PendingVideo:
    """Stands where the host expects one video's features, (N, C).

    Our prefill takes it slice by slice. Anything else that touches it as a tensor gets all features, encoded at once as
    the stock model would have, so a stock path that meets one stays right.
    """

    def __init__(self, pixels: torch.Tensor, grid: Grid, encode: Encode) -> None:
        """
        Args:
            pixels: (patches, patch values) rows in slice order, on any device; they stay there until encoded.
            grid: the merged grid.
            encode: (pixel rows, number of slices) -> (N, C) features on the model's device.
        """
        self.pixels = pixels
        self.grid = grid
        self._encode = encode
        self._features: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.grid.num_tokens

    def __repr__(self) -> str:
        return f"PendingVideo(grid={self.grid}, pixels={tuple(self.pixels.shape)} on {self.pixels.device})"

    def encode(self, first_slice: int, stop_slice: int) -> torch.Tensor:
        """Features of temporal slices [first_slice, stop_slice), (N, C). Exact: the tower attends within a slice."""
        rows = self.pixels.shape[0] // self.grid.slices
        return self._encode(self.pixels[first_slice * rows : stop_slice * rows], stop_slice - first_slice)

    def features(self) -> torch.Tensor:
        """Features of the whole video, (N, C), encoded once."""
        if self._features is None:
            self._features = self.encode(0, self.grid.slices)
        return self._features

    def same_as(self, other: PendingVideo) -> bool:
        """Whether both hold the same pixels, as the copies of one prompt for several beams do."""
        if self is other:
            return True
        return self.grid == other.grid and torch.equal(self.pixels, other.pixels)

    def to(self, *args: Any, **kwargs: Any) -> PendingVideo:
        """Itself: features are made on the model's device, so moving inputs has nothing to move."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> PendingVideo:
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.features(), name)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return func(*_materialise(args), **_materialise(kwargs or {}))


def _materialise(value: Any) -> Any:
    if isinstance(value, PendingVideo):
        return value.features()
    if isinstance(value, tuple | list):
        return type(value)(_materialise(item) for item in value)
    if isinstance(value, dict):
        return {key: _materialise(item) for key, item in value.items()}
    return value
