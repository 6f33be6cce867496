"""Everything that quickdecode knows about transformers' own video loading.

install() replaces two things, remove() puts them back:

    video_utils.VIDEO_DECODERS["quickdecode"]   for `load_video(..., backend="quickdecode")`
    BaseVideoProcessor.fetch_videos             what processors call for a path or URL (apply_chat_template,
                                                pipelines); the original wants torchcodec, or raises ImportError

Which frames are read is decided by the processor, as with any other backend.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

from ..errors import HostError
from ..index.probe import Media
from ..lazy.frames import read_or_stream
from ..opening import Options
from ..read import Choice
from ..source.source import VideoSource, is_web
from .replace import Replacements

NAME = "quickdecode"
SEAMS = {
    "transformers.video_utils": ("VIDEO_DECODERS", "VideoMetadata", "load_video"),
    "transformers.video_processing_utils": ("BaseVideoProcessor",),
}


class Transformers:
    """The transformers library."""

    def __init__(self) -> None:
        self._replaced = Replacements()
        self.streams = False

    def install(self, *, stream: bool = False) -> None:
        """Make transformers read with quickdecode. Raises HostError, before any change, if a seam is absent."""
        if self._replaced and self.streams == stream:
            return
        utils, processing = _modules()
        self.remove()
        self.streams = stream
        self._replaced.item(utils.VIDEO_DECODERS, NAME, functools.partial(read_video_quickdecode, stream=stream))
        holder = next(cls for cls in processing.BaseVideoProcessor.__mro__ if "fetch_videos" in vars(cls))
        self._replaced.attribute(holder, "fetch_videos", _fetch_videos(utils))

    def remove(self) -> None:
        """Put back what install() replaced, except where somebody else has replaced it since."""
        self._replaced.undo()
        self.streams = False


def read_video_quickdecode(
    video_path: VideoSource, sample_indices_fn: Callable[..., Any], stream: bool = False, **options: Any
) -> tuple[torch.Tensor, Any]:
    """A decoder as VIDEO_DECODERS wants it: frames (T, 3, H, W) uint8, and a VideoMetadata.

    `sample_indices_fn(metadata=..., **options)` names the frames.
    """
    utils, _ = _modules()
    metadata: Any = None

    def choose(media: Media) -> Choice:
        nonlocal metadata
        info = media.info
        metadata = utils.VideoMetadata(
            total_num_frames=info.num_frames,
            fps=info.fps,
            width=info.width,
            height=info.height,
            duration=info.duration_seconds,
            video_backend=NAME,
        )
        metadata.frames_indices = sample_indices_fn(metadata=metadata, **options)
        return [int(index) for index in metadata.frames_indices], None

    video = read_or_stream(video_path, choose, Options.of(), stream=stream)
    return video.frames, metadata


def _fetch_videos(utils: Any) -> Callable[..., Any]:
    def fetch_videos(self: Any, video_url_or_urls: Any, sample_indices_fn: Any = None) -> Any:
        """Read one video, or each of a (nested) list of them."""
        if isinstance(video_url_or_urls, list):
            return list(zip(*(self.fetch_videos(each, sample_indices_fn) for each in video_url_or_urls), strict=True))
        if isinstance(video_url_or_urls, str) and is_web(video_url_or_urls) and "youtube.com/" not in video_url_or_urls:
            return utils.VIDEO_DECODERS[NAME](video_url_or_urls, sample_indices_fn)  # it would download all of it
        return utils.load_video(video_url_or_urls, backend=NAME, sample_indices_fn=sample_indices_fn)

    return fetch_videos


def _modules() -> list[Any]:
    modules, absent = [], []
    for name, attributes in SEAMS.items():
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise HostError(f"{name} cannot be imported ({error}); install transformers >= 4.57.") from error
        modules.append(module)
        absent += [f"{name}.{attribute}" for attribute in attributes if not hasattr(module, attribute)]
    if not absent and not hasattr(modules[1].BaseVideoProcessor, "fetch_videos"):
        absent.append("BaseVideoProcessor.fetch_videos")
    if absent:
        raise HostError(f"transformers lacks {', '.join(absent)}; install transformers >= 4.57.")
    return modules
