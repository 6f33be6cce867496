"""Everything that quickdecode knows about transformers' Qwen2VLVideoProcessor (Qwen2-VL, Qwen2.5-VL).

install() replaces one method, remove() puts it back:

    Qwen2VLVideoProcessor._preprocess   frames -> rows of patches and their grid. Frames that are still being decoded
                                        give rows that are made when they are asked for: the original is called on the
                                        frames of a few slices at a time, on the device where the rows are wanted

That is exact because the original treats temporal slices independently. What it makes of a whole video and of one slice
is asked beforehand with tensors that have a shape but no values; where sizes differ, it gets the whole video as always.
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
from ..lazy.tensor import LazyTensor, joined
from .replace import Replacements

MODULE = "transformers.models.qwen2_vl.video_processing_qwen2_vl"
PARAMETERS = {"videos", "do_resize", "do_rescale", "do_normalize", "temporal_patch_size", "return_tensors"}
PIXELS, GRID = "pixel_values_videos", "video_grid_thw"

Preprocess = Callable[..., Any]


class VideoProcessor:
    """The video processor of the Qwen2-VL family."""

    def __init__(self) -> None:
        self._replaced = Replacements()

    def install(self) -> None:
        """Let the processor pass streamed videos on. Raises HostError, before any change, if the seam is absent."""
        if self._replaced:
            return
        try:
            holder = importlib.import_module(MODULE).Qwen2VLVideoProcessor
            absent = PARAMETERS - set(signatures.signature(holder._preprocess).parameters)
        except (ImportError, AttributeError) as error:
            raise HostError(f"{MODULE} cannot be used ({error}); install transformers >= 5.17.") from error
        if absent:
            raise HostError(f"Qwen2VLVideoProcessor._preprocess takes no {', '.join(sorted(absent))}.")
        self._replaced.attribute(holder, "_preprocess", _lazily(holder._preprocess))

    def remove(self) -> None:
        """Put back what install() replaced, except where somebody else has replaced it since."""
        self._replaced.undo()


def _lazily(original: Preprocess) -> Preprocess:
    @functools.wraps(original)
    def _preprocess(self: Any, videos: list[torch.Tensor], **kwargs: Any) -> Any:
        if not any(isinstance(video, LazyTensor) and video.known() is None for video in videos):
            return original(self, videos, **kwargs)
        preprocess = functools.partial(original, self)
        each = [_one(preprocess, video, kwargs) for video in videos]
        pixels, grids = [pixels for pixels, _ in each], [grid for _, grid in each]
        from transformers.image_processing_utils import BatchFeature

        data = {PIXELS: joined(pixels) if len(pixels) > 1 else pixels[0], GRID: torch.cat(grids)}
        return BatchFeature(data=data, tensor_type=kwargs.get("return_tensors"))

    return _preprocess


def _one(preprocess: Preprocess, video: torch.Tensor, kwargs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of patches and grid (1, 3) of one video; lazy rows if the video is lazy and the original allows it."""
    kwargs = {**kwargs, "return_tensors": None}
    if isinstance(video, LazyTensor) and video.known() is None and kwargs["do_normalize"]:
        shape = _shaped(preprocess, video, len(video), kwargs)
        (slices, height, width) = shape[GRID][0].tolist()
        # A copy, so that what is done to the frames afterwards does not change the rows.
        patches = Patches(preprocess, video.copied(), kwargs, height * width)
        if _shaped(preprocess, video, patches.frames_per_slice, kwargs)[GRID][0].tolist() == [1, height, width]:
            rows = slices * height * width
            # Normalising casts to float32, whatever the frames are.
            pixels = LazyTensor((Piece(patches, 0, rows),), shape[PIXELS].shape, torch.float32, video.device)
            return pixels, shape[GRID]
    processed = preprocess([video], **kwargs)
    return processed[PIXELS], processed[GRID]


def _shaped(preprocess: Preprocess, video: torch.Tensor, num_frames: int, kwargs: dict[str, Any]) -> Any:
    """What the original makes of so many frames, without values; the grid is real."""
    frames = torch.empty((num_frames, *video.shape[1:]), dtype=video.dtype, device="meta")
    return preprocess([frames], **{**kwargs, "do_rescale": False, "do_normalize": False})


@dataclass(frozen=True, eq=False)
class Patches:
    """Rows of patches, made by the original from the frames of the slices that they belong to."""

    preprocess: Preprocess
    frames: Any
    """A LazyTensor, (T, 3, H, W)."""
    kwargs: dict[str, Any]
    step: int
    """Rows of one temporal slice."""

    @property
    def frames_per_slice(self) -> int:
        """Frames that become one temporal slice."""
        return int(self.kwargs["temporal_patch_size"])

    def take(self, start: int, stop: int, device: torch.device) -> torch.Tensor:
        first, last = start // self.step, -(-stop // self.step)
        begin, end = first * self.frames_per_slice, min(last * self.frames_per_slice, len(self.frames))
        pixels: torch.Tensor = self.preprocess([self.frames.rows(begin, end, device)], **self.kwargs)[PIXELS]
        return pixels[start - first * self.step : stop - first * self.step]

    def close(self) -> None:
        self.frames.close()
