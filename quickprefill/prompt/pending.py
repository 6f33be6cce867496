"""PendingVideo: a video's features that the vision tower has not made yet, a tensor; PendingVideos: several in one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from quickprefill.errors import InputError
from quickprefill.prompt.spans import Grid
from quickprefill.prompt.streamed import StreamedPixels
from quickprefill.prompt.upload import Upload

__all__ = ["Encode", "PendingVideo", "PendingVideos"]

Encode = Callable[[torch.Tensor, int], torch.Tensor]
"""(pixel rows, number of slices) -> (N, C) features on the model's device."""


class _Pending(torch.Tensor):
    """A tensor of known shape, type and device that any operation but moving and copying makes."""

    @abstractmethod
    def features(self) -> torch.Tensor:
        """The tensor itself."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Itself where nothing would change, as every tensor does."""
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if device in (None, self.device) and dtype in (None, self.dtype):
            return self
        return self.features().to(*args, **kwargs)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is torch.ops.aten.detach.default:
            return args[0]
        if func is torch.ops.aten.stack.default and len(args) == 1 and _alike(args[0]):
            return PendingVideos(args[0])
        args, kwargs = tree_map_only(_Pending, lambda pending: pending.features(), (args, kwargs or {}))
        return func(*args, **kwargs)


class PendingVideo(_Pending):
    """Stands where the host expects one video's features, (N, C): a tensor of known shape, type and device.

    Our prefill takes it slice by slice. Any operation on it as a tensor gets all features, encoded once as the stock
    model would have, so a stock path that meets one stays right. Moving and copying it leave it as it is.

    Some towers make features for later decoder layers too. They ride behind the first in encode()'s rows, (N, (1 + L) x
    C), and level(i) is the tensor that stands where the host expects those of the i-th.
    """

    pixels: torch.Tensor
    grid: Grid
    _encode: Encode
    _features: list[torch.Tensor]
    """Of the whole video, once somebody made them; shared by all levels."""
    _upload: Upload | None
    _columns: slice
    _closing: torch.Tensor | None
    _part_of: tuple[PendingVideo, int] | None
    """The video of which this one is some slices, and the first of them."""

    @staticmethod
    def __new__(
        cls,
        pixels: torch.Tensor,
        grid: Grid,
        encode: Encode,
        *,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        closing: torch.Tensor | None = None,
    ) -> PendingVideo:
        """
        Args:
            pixels: (patches, patch values) rows in slice order, on any device; they stay there until encoded. They may
                be StreamedPixels.
            grid: the merged grid.
            encode: makes the features of some slices.
            width: C.
            dtype, device: those of the features, and where StreamedPixels are to be made.
            closing: (k, C) what the host expects behind the last slice, without a place in the video.
        """
        shape = (grid.num_made + (0 if closing is None else len(closing)), width)
        video: PendingVideo = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        video.pixels, video.grid, video._encode = pixels, grid, encode
        video._features, video._upload, video._columns, video._closing = [], None, slice(0, width), closing
        video._part_of = None
        if device.type == "cuda" and pixels.device.type == "cpu" and not isinstance(pixels, StreamedPixels):
            video._upload = Upload(pixels, device)
        return video

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"PendingVideo(grid={self.grid}, pixels={tuple(self.pixels.shape)} on {self.pixels.device})"

    def __len__(self) -> int:
        """Tokens that the prompt holds: by them generate() finds the videos of a prompt, to repeat them for beams."""
        return int(self.shape[0]) - self.grid.num_made + self.grid.num_tokens

    def level(self, index: int) -> PendingVideo:
        """The features that ride behind the first `index` x C of each row."""
        width, encode = self.shape[1], self._encode
        other = PendingVideo(self.pixels, self.grid, encode, width=width, dtype=self.dtype, device=self.device)
        other._features, other._upload = self._features, self._upload
        other._columns = slice(index * width, (index + 1) * width)
        return other

    def part(self, first_slice: int, stop_slice: int) -> PendingVideo:
        """Slices [first_slice, stop_slice) as a video; its features() are made with those of the others."""
        if self._part_of is not None:
            whole, before = self._part_of
            return whole.part(before + first_slice, before + stop_slice)
        rows, grid = self.pixels.shape[0] // self.grid.slices, self.grid.part(first_slice, stop_slice)
        pixels, sizes = self.pixels[first_slice * rows : stop_slice * rows], (self.shape[1], self.dtype, self.device)
        part = PendingVideo(pixels, grid, self._encode, width=sizes[0], dtype=sizes[1], device=sizes[2])
        part._part_of = (self, first_slice)
        return part

    def slices(self) -> list[PendingVideo]:
        """Each slice as a part."""
        return [self.part(at, at + 1) for at in range(self.grid.slices)]

    @staticmethod
    def joined(parts: Sequence[PendingVideo]) -> PendingVideo:
        """Consecutive parts of one video as one part of it.

        Raises:
            InputError: they are parts of several.
        """
        origins = [part._part_of for part in parts if part._part_of is not None]
        whole, first = origins[0]
        if any(origin[0] is not whole for origin in origins):
            raise InputError(
                "the frames of one video stand in several rows of pixel_values; pass each video as one row"
            )
        return whole.part(first, first + sum(part.grid.slices for part in parts))

    def encode(self, first_slice: int, stop_slice: int) -> torch.Tensor:
        """Rows of those tokens of temporal slices [first_slice, stop_slice) that the prompt holds, levels side by side.

        Exact: the tower attends within a slice.
        """
        made, grid = self._made(first_slice, stop_slice), self.grid.part(first_slice, stop_slice)
        return made if grid.present is None else made[grid.places(made.device)]

    def _made(self, first_slice: int, stop_slice: int) -> torch.Tensor:
        rows = self.pixels.shape[0] // self.grid.slices
        start, stop = first_slice * rows, stop_slice * rows
        return self._encode(self._rows(start, stop), stop_slice - first_slice)

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        if self._upload is not None:
            return self._upload(start, stop)
        pixels: Any = self.pixels
        rows: torch.Tensor = (
            pixels.rows(start, stop, self.device) if isinstance(pixels, StreamedPixels) else pixels[start:stop]
        )
        return rows

    def features(self) -> torch.Tensor:
        """Features of the whole video, (N, C), encoded once; also of tokens that the host leaves out of the prompt."""
        if self._part_of is not None:
            origin, first = self._part_of
            return origin.features()[first * self.grid.slice_tokens :][: self.shape[0]]
        if not self._features:
            made = self._made(0, self.grid.slices).to(self.device, self.dtype)
            closing = self._closing
            self._features.append(made if closing is None else torch.cat([made, closing.to(made)]))
        whole = self._features[0]
        return whole if whole.shape[1] == self.shape[1] else whole[:, self._columns]

    def same_as(self, other: PendingVideo) -> bool:
        """Whether both hold the same pixels, as the copies of one prompt for several beams do."""
        if self is other:
            return True
        if self.grid != other.grid or not torch.equal(self.grid.places(), other.grid.places()):
            return False
        for ours, theirs in ((self.pixels, other.pixels), (other.pixels, self.pixels)):
            if isinstance(ours, StreamedPixels):
                return ours.same_rows(theirs)
        return torch.equal(self.pixels, other.pixels)

    def close(self) -> None:
        """Stop whatever reads the video ahead."""
        if isinstance(self.pixels, StreamedPixels):
            self.pixels.close()


class PendingVideos(_Pending):
    """Stands where the host expects the features of several videos of one size in one tensor, (V, N, C).

    Taking videos out, repeating them, and stacking them again leave them pending; anything else gets all features.
    """

    videos: tuple[PendingVideo, ...]

    @staticmethod
    def __new__(cls, videos: Sequence[PendingVideo]) -> PendingVideos:
        shape, first = (len(videos), *videos[0].shape), videos[0]
        whole: PendingVideos = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=first.dtype, device=first.device)
        whole.videos = tuple(videos)
        return whole

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"PendingVideos({list(self.videos)})"

    def __iter__(self) -> Iterator[PendingVideo]:
        return iter(self.videos)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) and self.videos[index]:
            return PendingVideos(self.videos[index])
        return self.videos[index] if isinstance(index, int) else self.features()[index]

    def repeat(self, *times: Any) -> Any:
        """As torch.Tensor.repeat; pending where only the videos are repeated."""
        number, *others = times[0] if isinstance(times[0], Sequence) else times
        return PendingVideos(self.videos * number) if others == [1, 1] else self.features().repeat(*times)

    def features(self) -> torch.Tensor:
        """Features of all videos, (V, N, C), each encoded once."""
        return torch.stack([video.features() for video in self.videos])


def _alike(parts: Sequence[torch.Tensor]) -> bool:
    return all(isinstance(part, PendingVideo) and part.shape == parts[0].shape for part in parts)
