"""Everything that quickdecode knows about transformers' video processors of the Qwen families.

install() replaces one method of each, remove() puts it back:

    _preprocess     frames -> rows of patches and their grid. Frames that are still being decoded give rows that are
                    made when they are asked for: the original is called on the frames of a few slices at a time, on
                    the device where the rows are wanted

That is exact because the original treats temporal slices independently, but for the size to which it resizes frames:
that may depend on how many they are (Qwen3-VL always, Qwen2-VL with `cap_pixels_per_frame`). So it is asked beforehand
what it makes of the whole video, with a tensor that has a shape but no values, and a few slices are resized to that.
"""

from __future__ import annotations

import functools
import importlib
import inspect as signatures
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import HostError
from ..lazy.rows import Piece
from ..lazy.tensor import LazyTensor
from .replace import Replacements

SERVED = {
    "Qwen2VLVideoProcessor": "transformers.models.qwen2_vl.video_processing_qwen2_vl",
    "Qwen3VLVideoProcessor": "transformers.models.qwen3_vl.video_processing_qwen3_vl",
}
"""Qwen2-VL's is Qwen2.5-VL's and Qwen2.5-Omni's too, Qwen3-VL's is Qwen3.5's."""
PARAMETERS = {
    *("videos", "do_resize", "resample", "do_rescale", "do_normalize", "return_tensors"),
    *("patch_size", "temporal_patch_size"),
}
PIXELS, GRID = "pixel_values_videos", "video_grid_thw"

Preprocess = Callable[..., Any]
Resize = Callable[..., torch.Tensor]


class VideoProcessor:
    """The video processors of the Qwen families."""

    def __init__(self) -> None:
        self._replaced = Replacements()

    def install(self) -> None:
        """Let the processors pass streamed videos on. Raises HostError, before any change, if the seam is absent."""
        if self._replaced:
            return
        holders = [_holder(module, name) for name, module in SERVED.items()]
        for holder in holders:
            self._replaced.attribute(holder, "_preprocess", _lazily(holder))

    def remove(self) -> None:
        """Put back what install() replaced, except where somebody else has replaced it since."""
        self._replaced.undo()


def _holder(module: str, name: str) -> Any:
    try:
        holder = getattr(importlib.import_module(module), name)
        absent = PARAMETERS - set(signatures.signature(holder._preprocess).parameters)
    except (ImportError, AttributeError) as error:
        raise HostError(f"{module} cannot be used ({error}); install transformers >= 5.17.") from error
    if absent:
        raise HostError(f"{name}._preprocess takes no {', '.join(sorted(absent))}.")
    return holder


def _lazily(holder: Any) -> Preprocess:
    original = holder._preprocess

    @functools.wraps(original)
    def _preprocess(self: Any, videos: list[torch.Tensor], **kwargs: Any) -> Any:
        if not any(isinstance(video, LazyTensor) and video.known() is None for video in videos):
            return original(self, videos, **kwargs)
        preprocess = functools.partial(original, self)
        # Somebody's own way to resize is only known to work on a whole video.
        resize = super(holder, self).resize if type(self).resize is holder.resize else None
        each = [_one(preprocess, resize, video, kwargs) for video in videos]
        pixels, grids = [pixels for pixels, _ in each], [grid for _, grid in each]
        from transformers.image_processing_utils import BatchFeature

        data = {PIXELS: torch.cat(pixels) if len(pixels) > 1 else pixels[0], GRID: torch.cat(grids)}
        return BatchFeature(data=data, tensor_type=kwargs.get("return_tensors"))

    return _preprocess


def _one(
    preprocess: Preprocess, resize: Resize | None, video: torch.Tensor, kwargs: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of patches and grid (1, 3) of one video; lazy rows if the video is lazy and the original allows it."""
    kwargs = {**kwargs, "return_tensors": None}
    resizes = kwargs["do_resize"]
    if kwargs["do_normalize"] and (resize or not resizes) and isinstance(video, LazyTensor) and video.known() is None:
        shape = _shaped(preprocess, video, kwargs)
        (slices, height, width) = shape[GRID][0].tolist()
        size = (height * kwargs["patch_size"], width * kwargs["patch_size"])
        resized = functools.partial(_resized, resize, size, kwargs["resample"]) if resize and resizes else None
        # A copy, so that what is done to the frames afterwards does not change the rows.
        patches = Patches(preprocess, video.copied(), {**kwargs, "do_resize": False}, resized, height * width)
        rows = slices * height * width
        # Normalising casts to float32, whatever the frames are.
        pixels = LazyTensor((Piece(patches, 0, rows),), shape[PIXELS].shape, torch.float32, video.device)
        return pixels, shape[GRID]
    processed = preprocess([video], **kwargs)
    return processed[PIXELS], processed[GRID]


def _shaped(preprocess: Preprocess, video: torch.Tensor, kwargs: dict[str, Any]) -> Any:
    """What the original makes of a video, without values; the grid is real."""
    frames = torch.empty(video.shape, dtype=video.dtype, device="meta")
    return preprocess([frames], **{**kwargs, "do_rescale": False, "do_normalize": False})


def _resized(resize: Resize, size: tuple[int, int], resample: Any, frames: torch.Tensor) -> torch.Tensor:
    """Frames (n, 3, H, W) resized as the original does it, which holds one video as (1, n, 3, H, W)."""
    from transformers.image_utils import SizeDict

    resized: torch.Tensor = resize(frames[None], SizeDict(height=size[0], width=size[1]), resample=resample)[0]
    return resized


@dataclass(frozen=True, eq=False)
class Patches:
    """Rows of patches, made by the original from the frames of the slices that they belong to."""

    preprocess: Preprocess
    frames: Any
    """A LazyTensor, (T, 3, H, W)."""
    kwargs: dict[str, Any]
    """The original's; it does not resize."""
    resized: Callable[[torch.Tensor], torch.Tensor] | None
    """Frames of the size that the whole video gets."""
    step: int
    """Rows of one temporal slice."""

    @property
    def frames_per_slice(self) -> int:
        """Frames that become one temporal slice."""
        return int(self.kwargs["temporal_patch_size"])

    def take(self, start: int, stop: int, device: torch.device) -> torch.Tensor:
        first, last = start // self.step, -(-stop // self.step)
        begin, end = first * self.frames_per_slice, min(last * self.frames_per_slice, len(self.frames))
        frames = self.frames.rows(begin, end, device)
        frames = frames if self.resized is None else self.resized(frames)
        pixels: torch.Tensor = self.preprocess([frames], **self.kwargs)[PIXELS]
        return pixels[start - first * self.step : stop - first * self.step]

    def close(self) -> None:
        self.frames.close()
