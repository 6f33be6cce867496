"""Everything that quickdecode knows about transformers' video processors.

install() replaces these, remove() puts them back:

    _preprocess       of each class below: frames -> pixels, and what goes with them. Frames that are still being
                      decoded give pixels that are made when they are asked for (slices.py)
    to_numpy_array    in LLaVA-NeXT-Video's processor, which wants a shape of it, and would wait for every frame

A processor is served if it uses one of these _preprocess and has overridden no method that this one calls. Every other,
and a call of which the whole video decides something, waits for the whole video; a warning says why, once.
"""

from __future__ import annotations

import functools
import importlib
import inspect as signatures
import logging
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from ..errors import HostError
from ..lazy.tensor import LazyTensor
from . import slices
from .replace import Replacements

BASE = "transformers.video_processing_utils"
SERVED = {
    "BaseVideoProcessor": BASE,
    **{
        f"{name}VideoProcessor": f"transformers.models.{module}.video_processing_{module}"
        for name, module in {
            "Glm46V": "glm46v",
            "Glm4v": "glm4v",
            "InternVL": "internvl",
            "Qwen2VL": "qwen2_vl",
            "Qwen3VL": "qwen3_vl",
            "SmolVLM": "smolvlm",
            "VideoLlama3": "video_llama_3",
        }.items()
    },
}
"""Classes with a _preprocess of their own. LLaVA's have the base's; GLM-4.5V, Qwen2.5 and Qwen3.5 one of another."""
STEPS = (
    *("resize", "center_crop", "pad", "patchify"),
    *("convert_to_rgb", "rescale", "normalize", "rescale_and_normalize"),
)
"""Methods that a _preprocess calls."""
PATCHES = {"do_resize", "do_rescale", "do_normalize", "patch_size", "temporal_patch_size"}
"""What a _preprocess takes that makes patches of frames."""
ARRAYS = ("transformers.models.llava_next_video.processing_llava_next_video", "to_numpy_array")

logger = logging.getLogger(__name__)


class VideoProcessor:
    """transformers' video processors."""

    def __init__(self) -> None:
        self._replaced = Replacements()

    def install(self) -> None:
        """Let the processors pass streamed videos on. Raises HostError, before any change, if the seam is absent."""
        if self._replaced:
            return
        replacements = {holder: _lazily(holder) for holder in map(_holder, SERVED, SERVED.values()) if holder}
        for holder, replacement in replacements.items():
            self._replaced.attribute(holder, "_preprocess", replacement)
        if (module := _module(ARRAYS[0])) is not None and hasattr(module, ARRAYS[1]):
            self._replaced.attribute(module, ARRAYS[1], _shaped(getattr(module, ARRAYS[1])))

    def remove(self) -> None:
        """Put back what install() replaced, except where somebody else has replaced it since."""
        self._replaced.undo()


def needs_whole(processor: Any, kwargs: dict[str, Any]) -> str | None:
    """Why a processor, called with these, needs the frames of a video all at once; None if it does not."""
    kind = type(processor)
    holder = next((cls for cls in kind.__mro__ if "_preprocess" in vars(cls)), kind)
    if SERVED.get(holder.__name__) != holder.__module__:
        return f"{holder.__name__} may treat them together in a way of its own"
    own = [name for name in STEPS if getattr(kind, name, None) is not getattr(holder, name, None)]
    if own:
        return f"{kind.__name__} has its own way to {', '.join(own)}, which may treat them together"
    if kwargs.get("use_token_compression", getattr(processor, "use_token_compression", False)):
        return (
            "which tokens the prompt holds depends on how they differ; pass use_token_compression=False to stream them"
        )
    makes_patches = "patch_size" in signatures.signature(vars(holder)["_preprocess"]).parameters
    if not makes_patches and version("transformers").startswith("4."):
        return "transformers 4 puts the frames of all videos of a call into one tensor"
    if kwargs.get("return_tensors") not in (None, "pt"):
        return f"return_tensors={str(kwargs['return_tensors'])!r} is no tensor that can be made row by row"
    return None


@functools.cache
def warn_once(reason: str) -> None:
    """Say that a video is not streamed."""
    logger.warning("quickdecode reads all frames before the model begins, instead of streaming them: %s.", reason)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:  # of a model that this release does not have yet
        return None


def _holder(name: str, module: str) -> Any:
    """A class that is served; None if the installed release lacks it."""
    try:
        holder = getattr(_module(module), name, None)
        taken = set(signatures.signature(holder._preprocess).parameters) if holder else set()
    except (ImportError, AttributeError) as error:
        raise HostError(f"{module} cannot be used ({error}); install transformers >= 4.57.") from error
    if holder is None and module == BASE:
        raise HostError(f"{module} has no {name}; install transformers >= 4.57.")
    absent = PATCHES - taken if taken & set(slices.FILTERS) else {*(PATCHES - taken), slices.FILTERS[0]}
    if "patch_size" in taken and absent:
        raise HostError(f"{name}._preprocess takes no {', '.join(sorted(absent))}.")
    return holder


def _lazily(holder: Any) -> slices.Preprocess:
    original = holder._preprocess
    makes_patches = "patch_size" in signatures.signature(original).parameters

    @functools.wraps(original)
    def _preprocess(self: Any, videos: list[torch.Tensor], **kwargs: Any) -> Any:
        if not any(isinstance(video, LazyTensor) and video.known() is None for video in videos):
            return original(self, videos, **kwargs)
        reason = needs_whole(self, kwargs)
        if reason is None:
            preprocess, each = functools.partial(original, self), {**kwargs, "return_tensors": None}
            resize = super(holder, self).resize if makes_patches else None
            answers = [_one(preprocess, resize, video, each) for video in videos]
            reason = _unequal(answers, kwargs)
        if reason is not None:
            warn_once(reason)
            return original(self, videos, **kwargs)
        from transformers.image_processing_utils import BatchFeature

        tensors = kwargs.get("return_tensors")
        data = {key: _together([answer[key] for answer in answers], stack=bool(tensors)) for key in answers[0]}
        return BatchFeature(data=data, tensor_type=tensors)

    return _preprocess


def _one(
    preprocess: slices.Preprocess, resize: slices.Resize | None, video: torch.Tensor, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """What the original makes of one video; with lazy pixels if the video is lazy."""
    if not isinstance(video, LazyTensor) or video.known() is not None:
        return dict(preprocess([video], **kwargs))
    if resize is None:
        return slices.frames(preprocess, video, kwargs)
    return slices.patches(preprocess, resize, video, kwargs)


def _unequal(answers: list[dict[str, Any]], kwargs: dict[str, Any]) -> str | None:
    """Why these videos have to be treated together; None if they do not."""
    pixels = [answer[slices.pixels_of(answer)] for answer in answers]
    shapes = {tuple(each.shape) for listed in pixels if isinstance(listed, list) for each in listed}
    if len(shapes) < 2 or not (kwargs.get("do_pad") or kwargs.get("return_tensors")):
        return None
    return f"videos of unequal size in one call ({', '.join(map(str, sorted(shapes)))}) go into one tensor"


def _together(values: list[Any], *, stack: bool) -> Any:
    """What is made of several videos: a list of tensors, one for each, or all rows in one tensor."""
    if isinstance(values[0], torch.Tensor):
        return torch.cat(values) if len(values) > 1 else values[0]
    listed = [each for value in values for each in value]
    return listed[0].unsqueeze(0) if stack and len(listed) == 1 else listed


def _shaped(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def to_numpy_array(tensor: Any) -> Any:
        lazy = isinstance(tensor, LazyTensor) and tensor.known() is None
        return np.broadcast_to(np.float32(0), tensor.shape) if lazy else original(tensor)

    return to_numpy_array
