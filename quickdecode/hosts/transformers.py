"""Everything that quickdecode knows about transformers' own video loading.

install() replaces three things, remove() puts them back:

    video_utils.VIDEO_DECODERS["quickdecode"]   for `load_video(..., backend="quickdecode")`
    BaseVideoProcessor.fetch_videos             what processors call for a path or URL (apply_chat_template,
                                                pipelines); the original wants torchcodec, or raises ImportError
    BaseVideoProcessor.preprocess               the original, noting what it is called with, so that frames can be
                                                resized while they are decoded (target.py)

Which frames are read, and to which size, is decided by the processor, as with any other backend.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import torch

from ..errors import HostError
from ..index.media import Media
from ..lazy.frames import read_or_stream
from ..opening import Options
from ..read import Choice
from ..source.source import VideoSource, is_web
from . import target
from .replace import Replacements
from .video_processor import needs_whole, warn_once

NAME = "quickdecode"
SEAMS = {
    "transformers.video_utils": ("VIDEO_DECODERS", "VideoMetadata", "default_sample_indices_fn", "load_video"),
    "transformers.video_processing_utils": ("BaseVideoProcessor",),
}


class Transformers:
    """The transformers library."""

    def __init__(self) -> None:
        self._replaced = Replacements()
        self._how: tuple[bool, str] | None = None

    @property
    def streams(self) -> bool:
        return self._how is not None and self._how[0]

    def install(self, *, stream: bool = False, resize: str = "antialiased") -> None:
        """Make transformers read with quickdecode. Raises HostError, before any change, if a seam is absent."""
        if self._replaced and self._how == (stream, resize):
            return
        utils, processing = _modules()
        self.remove()
        self._how = stream, resize
        decoder = functools.partial(read_video_quickdecode, stream=stream, resize=resize)
        self._replaced.item(utils.VIDEO_DECODERS, NAME, decoder)
        base = processing.BaseVideoProcessor
        for name, replacement in (("fetch_videos", _fetch_videos(utils)), ("preprocess", _preprocess(base.preprocess))):
            holder = next(cls for cls in base.__mro__ if name in vars(cls))
            self._replaced.attribute(holder, name, replacement)

    def remove(self) -> None:
        """Put back what install() replaced, except where somebody else has replaced it since."""
        self._replaced.undo()
        self._how = None


def read_video_quickdecode(
    video_path: VideoSource,
    sample_indices_fn: Callable[..., Any],
    stream: bool = False,
    resize: str = "antialiased",
    **options: Any,
) -> tuple[torch.Tensor, Any]:
    """A decoder as VIDEO_DECODERS wants it: frames (T, 3, H, W) uint8, and a VideoMetadata.

    `sample_indices_fn(metadata=..., **options)` names the frames. Called by a processor, it delivers them of the size
    that this one wants; the processor's own resize then has nothing to do.
    """
    utils, _ = _modules()
    metadata: Any = None
    stream = stream and _can_stream()
    how = None if resize != "fast" and target.resizes_elsewhere() else target.interpolation()
    calling = copy_context()  # the frames of a stream may be chosen again after this call

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
        indices = [int(index) for index in metadata.frames_indices]
        if how is None:
            return indices, None
        return indices, calling.run(target.target_size, len(indices), info.height, info.width, how)

    # Its own resize is torchvision's second one, so that is what "exact" means here.
    ours = "fast" if resize == "fast" else "antialiased"
    video = read_or_stream(video_path, choose, Options.of(interpolation=how or "bicubic", resize=ours), stream=stream)
    return video.frames, metadata


def _can_stream() -> bool:
    """Whether the running processor, if any, takes frames as they come; says so if not."""
    running = target.call.get()
    if running is None:
        return True
    processor, _, given = running
    reason = needs_whole(processor, given)
    if reason is not None:
        warn_once(reason)
    return reason is None


def _fetch_videos(utils: Any) -> Callable[..., Any]:
    def fetch_videos(self: Any, video_url_or_urls: Any, sample_indices_fn: Any = None) -> Any:
        """Read one video, or each of a (nested) list of them."""
        if isinstance(video_url_or_urls, list):
            return list(zip(*(self.fetch_videos(each, sample_indices_fn) for each in video_url_or_urls), strict=True))
        if isinstance(video_url_or_urls, str) and is_web(video_url_or_urls) and "youtube.com/" not in video_url_or_urls:
            sample = sample_indices_fn or utils.default_sample_indices_fn  # load_video's own, of every frame
            return utils.VIDEO_DECODERS[NAME](video_url_or_urls, sample)  # it would download all of the file
        return utils.load_video(video_url_or_urls, backend=NAME, sample_indices_fn=sample_indices_fn)

    return fetch_videos


def _preprocess(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def preprocess(self: Any, videos: Any, **kwargs: Any) -> Any:
        token = target.call.set((self, original, kwargs))
        try:
            return original(self, videos, **kwargs)
        finally:
            target.call.reset(token)

    return preprocess


def _modules() -> list[Any]:
    modules, absent = [], []
    for name, attributes in SEAMS.items():
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise HostError(f"{name} cannot be imported ({error}); install transformers >= 4.57.") from error
        modules.append(module)
        absent += [f"{name}.{attribute}" for attribute in attributes if not hasattr(module, attribute)]
    if not absent:
        processor = modules[1].BaseVideoProcessor
        absent += [
            f"BaseVideoProcessor.{name}" for name in ("fetch_videos", "preprocess") if not hasattr(processor, name)
        ]
    if absent:
        raise HostError(f"transformers lacks {', '.join(absent)}; install transformers >= 4.57.")
    return modules
