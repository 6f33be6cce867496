"""PendingVideo: a video whose vision features are computed when a group asks for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch

from quickprefill.prompt.spans import Grid

__all__ = ["PendingVideo", "StreamedPixels"]

Encode = Callable[[torch.Tensor, int], torch.Tensor]


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


class PendingVideo:
    """Stands where the host expects one video's features, (N, C).

    Our prefill takes it slice by slice. Anything else that touches it as a tensor gets all features, encoded at once as
    the stock model would have, so a stock path that meets one stays right.
    """

    def __init__(self, pixels: torch.Tensor, grid: Grid, encode: Encode, device: torch.device | None = None) -> None:
        """
        Args:
            pixels: (patches, patch values) rows in slice order, on any device; they stay there until encoded. They may
                be StreamedPixels.
            grid: the merged grid.
            encode: (pixel rows, number of slices) -> (N, C) features on the model's device.
            device: where StreamedPixels are to be made; None: on their own.
        """
        self.pixels = pixels
        self.grid = grid
        self._encode, self._device = encode, device
        self._features: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.grid.num_tokens

    def __repr__(self) -> str:
        return f"PendingVideo(grid={self.grid}, pixels={tuple(self.pixels.shape)} on {self.pixels.device})"

    def encode(self, first_slice: int, stop_slice: int) -> torch.Tensor:
        """Features of temporal slices [first_slice, stop_slice), (N, C). Exact: the tower attends within a slice."""
        rows = self.pixels.shape[0] // self.grid.slices
        start, stop = first_slice * rows, stop_slice * rows
        pixels: Any = self.pixels
        streamed = isinstance(pixels, StreamedPixels)
        part = pixels.rows(start, stop, self._device) if streamed else pixels[start:stop]
        return self._encode(part, stop_slice - first_slice)

    def features(self) -> torch.Tensor:
        """Features of the whole video, (N, C), encoded once."""
        if self._features is None:
            self._features = self.encode(0, self.grid.slices)
        return self._features

    def same_as(self, other: PendingVideo) -> bool:
        """Whether both hold the same pixels, as the copies of one prompt for several beams do."""
        if self is other:
            return True
        if self.grid != other.grid:
            return False
        for ours, theirs in ((self.pixels, other.pixels), (other.pixels, self.pixels)):
            if isinstance(ours, StreamedPixels):
                return ours.same_rows(theirs)
        return torch.equal(self.pixels, other.pixels)

    def close(self) -> None:
        """Stop whatever reads the video ahead."""
        if isinstance(self.pixels, StreamedPixels):
            self.pixels.close()

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
