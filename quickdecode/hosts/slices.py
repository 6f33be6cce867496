"""What a video processor of transformers makes of a video that is still being decoded: its pixels slice by slice.

A slice is what the processor treats by itself: a frame, or the two of a patch. Its own code makes the pixels of a few
slices at a time, as they are asked for, on the device where they are wanted. Only the size to which frames are resized
may depend on how many there are, so that is asked beforehand, with frames that have no values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..lazy.rows import Piece
from ..lazy.tensor import LazyTensor

FILTERS = ("resample", "interpolation")
"""What a _preprocess and a resize() call the filter to resize with; the second up to transformers 5.4."""
GRID = "video_grid_thw"
LANCZOS = (1, "lanczos")
"""As Pillow numbers and torchvision names it."""

Preprocess = Callable[..., Any]
Resize = Callable[..., torch.Tensor]


def frames(preprocess: Preprocess, video: LazyTensor, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What `preprocess` makes of [video], if it stays frames: of every frame what it makes of one."""
    one = preprocess([torch.zeros((1, *video.shape[1:]), dtype=video.dtype)], **kwargs)
    name = pixels_of(one)
    answer = {key: [value[0].expand(len(video), *value[0].shape[1:])] for key, value in one.items()}
    answer[name] = [Slices(preprocess, name, video.copied(), kwargs).tensor(answer[name][0])]
    return answer


def patches(preprocess: Preprocess, resize: Resize, video: LazyTensor, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What `preprocess` makes of [video], if each slice becomes rows of patches.

    Args:
        resize: (1, n, 3, H, W), a size, the filter: what the processor calls once it knows the size.
    """
    blank = torch.empty(video.shape, dtype=video.dtype, device="meta")
    # A mask of tokens, without values here, would leave out none.
    whole = preprocess([blank], **{**kwargs, "do_rescale": False, "do_normalize": False})
    answer = {key: torch.ones_like(value, device="cpu") if value.is_meta else value for key, value in whole.items()}
    slices, *grid = answer[GRID][0].tolist()
    size = [side * kwargs["patch_size"] for side in grid]
    resized = functools.partial(_resized, resize, size, _filter(kwargs)) if kwargs["do_resize"] else None
    sized, name = {**kwargs, "do_resize": False}, pixels_of(whole)
    one, rows = preprocess([torch.zeros((1, 3, *size), dtype=video.dtype)], **sized)[name], len(whole[name])
    made = Slices(preprocess, name, video.copied(), sized, resized, kwargs["temporal_patch_size"], rows // slices)
    answer[name] = made.tensor(one[:1].expand(rows, -1))
    return answer


def pixels_of(answer: Any) -> str:
    """The name of the pixels in what a processor makes."""
    return next(str(name) for name in answer if name.startswith("pixel_values"))


def _filter(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The argument that names the filter to resize with."""
    return {name: kwargs[name] for name in FILTERS if name in kwargs}


def _resized(resize: Resize, size: list[int], by: dict[str, Any], frames: torch.Tensor) -> torch.Tensor:
    """Frames (n, 3, H, W) resized as the processor does it, which holds one video as (1, n, 3, H, W)."""
    from transformers.image_utils import SizeDict

    resized: torch.Tensor = resize(frames[None], SizeDict(height=size[0], width=size[1]), **by)[0]
    return resized


@dataclass(frozen=True, eq=False)
class Slices:
    """Rows of pixels, made by the processor from the frames of the slices that they belong to."""

    preprocess: Preprocess
    name: str
    """Of the pixels."""
    frames: Any
    """A LazyTensor, (T, 3, H, W): a copy, so that what is done to the video afterwards does not change the rows."""
    kwargs: dict[str, Any]
    """The processor's."""
    resized: Callable[[torch.Tensor], torch.Tensor] | None = None
    """Frames of the size that the whole video gets; None: the processor resizes each by itself, or none."""
    frames_per_slice: int = 1
    step: int = 1
    """Rows of one slice."""

    def tensor(self, like: torch.Tensor) -> LazyTensor:
        """The rows of all slices, which look like these."""
        return LazyTensor((Piece(self, 0, len(like)),), like.shape, like.dtype, self.frames.device)

    def take(self, start: int, stop: int, device: torch.device) -> torch.Tensor:
        first, last = start // self.step, -(-stop // self.step)
        begin, end = first * self.frames_per_slice, min(last * self.frames_per_slice, len(self.frames))
        resample: Any = next(iter(_filter(self.kwargs).values()), None)
        # Which the processor does on the CPU only; elsewhere it does something else.
        here = self.frames.device if getattr(resample, "value", resample) in LANCZOS else device
        frames = self.frames.rows(begin, end, here)
        frames = frames if self.resized is None else self.resized(frames)
        pixels: Any = self.preprocess([frames], **self.kwargs)[self.name]
        rows: torch.Tensor = pixels[0] if isinstance(pixels, list) else pixels
        return rows[start - first * self.step : stop - first * self.step].to(device)

    def close(self) -> None:
        self.frames.close()
