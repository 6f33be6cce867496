"""Everything that quickdecode knows about qwen-vl-utils: its reader table, its sampling and its sizes.

install() replaces four things in `qwen_vl_utils.vision_process`, remove() puts them back (qwen-omni-utils carries
a copy of that module and is served in the same way):

    VIDEO_READER_BACKENDS["quickdecode"]   our reader
    FORCE_QWENVL_VIDEO_READER              its name, so that it is chosen
    VIDEO_READER_BACKENDS["torchvision"]   what fetch_video calls after ANY failure of the chosen reader: raises
                                           our reader's own error if there is one, else does what it always did
    fetch_video                            the original, noting the patch size it works with (readers are not
                                           told), and given bytes or file objects under a string, as it demands;
                                           raises our reader's own error too, for others (ms-swift) put a reader of
                                           theirs under "torchvision"

Frame counts, ranges and sizes come from the library's own helpers and constants, read at each call.
"""

from __future__ import annotations

import functools
import importlib
import inspect as signatures
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch

from ..errors import HostError, RequestError
from ..index.media import Media
from ..lazy.frames import read_or_stream
from ..opening import Options
from ..read import Choice
from .replace import Replacements

NAME = "quickdecode"
NEEDED = "install qwen-vl-utils >= 0.0.14 (or qwen-omni-utils >= 0.0.9)"
SEAMS = (
    "FORCE_QWENVL_VIDEO_READER",
    "FRAME_FACTOR",
    "MODEL_SEQ_LEN",
    "SPATIAL_MERGE_SIZE",
    "VIDEO_MAX_TOKEN_NUM",
    "VIDEO_MIN_TOKEN_NUM",
    "VIDEO_READER_BACKENDS",
    "calculate_video_frame_range",
    "fetch_video",
    "get_video_reader_backend",
    "smart_nframes",
    "smart_resize",
)

Element = dict[str, Any]
Answer = tuple[torch.Tensor, dict[str, Any], float]

_image_factor: ContextVar[int | None] = ContextVar("quickdecode_image_factor", default=None)
_failure: ContextVar[tuple[Element, Exception] | None] = ContextVar("quickdecode_failure", default=None)


class QwenUtils:
    """One of the packages that carry this reader table; they differ in nothing but the module's name."""

    def __init__(self, package: str, module: str) -> None:
        self._package = package
        self._module = module
        self._replaced = Replacements()
        self._how: tuple[bool, str] | None = None

    @property
    def streams(self) -> bool:
        return self._how is not None and self._how[0]

    def install(self, *, stream: bool = False, resize: str = "antialiased") -> None:
        """Make the package read with quickdecode. Raises HostError, before any change, if a seam is absent."""
        if self._replaced and self._how == (stream, resize):
            return
        host = self._host()
        self.remove()
        self._how = stream, resize
        original, readers = host.fetch_video, host.VIDEO_READER_BACKENDS
        fetch_video = _fetching(original, host)
        self._replaced.afterwards(host.get_video_reader_backend.cache_clear)
        self._replaced.item(readers, NAME, functools.partial(read, host, stream=stream, resize=resize))
        self._replaced.item(readers, "torchvision", _raising_our_error(readers["torchvision"]))
        self._replaced.attribute(host, "FORCE_QWENVL_VIDEO_READER", NAME)
        for holder in self._holders(host):
            if getattr(holder, "fetch_video", None) is original:
                self._replaced.attribute(holder, "fetch_video", fetch_video)
        host.get_video_reader_backend.cache_clear()

    def remove(self) -> None:
        """Put back what install() replaced, except where somebody else has replaced it since."""
        self._replaced.undo()
        self._how = None

    def _holders(self, host: Any) -> list[Any]:
        """The module and the packages above it, which export its functions."""
        parents = [self._module.rsplit(".", up)[0] for up in range(1, self._module.count(".") + 1)]
        return [host, *(importlib.import_module(name) for name in parents)]

    def _host(self) -> Any:
        try:
            host = importlib.import_module(self._module)
        except ImportError as error:
            name = self._package.replace("_", "-")
            raise HostError(f"{name} cannot be imported ({error}); install it: pip install {name}") from error
        absent = [name for name in SEAMS if not hasattr(host, name)]
        if not absent:
            if "torchvision" not in host.VIDEO_READER_BACKENDS:
                absent.append('VIDEO_READER_BACKENDS["torchvision"]')
            wanted = {"ele", "image_patch_size"} - set(signatures.signature(host.fetch_video).parameters)
            absent += [f"fetch_video({name}=)" for name in sorted(wanted)]
        if absent:
            raise HostError(f"{self._module} lacks {', '.join(absent)}; {NEEDED}.")
        return host


def read(host: Any, element: Element, *, stream: bool = False, resize: str = "antialiased") -> Answer:
    """A reader as the table wants it: frames (T, 3, H, W) uint8, metadata, sampled frames per second."""
    try:
        return _read(host, element, stream, resize)
    except Exception as error:
        _failure.set((element, error))
        raise


def _read(host: Any, element: Element, stream: bool, resize: str) -> Answer:
    total, sample_fps = 0, 0.0
    factor = _image_factor.get()  # of this call: the frames of a stream may be chosen again after it

    def choose(media: Media) -> Choice:
        nonlocal total, sample_fps
        wanted, total = _frame_indices(host, element, media)
        sample_fps = len(wanted) / max(total, 1e-6) * media.info.fps
        return wanted, _target_size(host, element, media, len(wanted), factor)

    # fetch_video resizes what is not of its size, and would wait for every frame to do so.
    video = read_or_stream(_source(element["video"]), choose, Options.of(resize=resize), stream=stream, resized=True)
    metadata = {
        "fps": video.info.fps,
        "frames_indices": video.indices,
        "total_num_frames": total,
        "video_backend": NAME,
    }
    return video.frames, metadata, sample_fps


def _frame_indices(host: Any, element: Element, media: Media) -> tuple[list[int], int]:
    """The library's own rule: evenly spaced frames between video_start and video_end."""
    info = media.info
    try:
        start, end, total = host.calculate_video_frame_range(element, info.num_frames, info.fps)
        count = host.smart_nframes(element, total_frames=total, video_fps=info.fps)
    except (AssertionError, ValueError) as error:
        raise RequestError(
            f"{info.name}: qwen-vl-utils cannot sample this video ({error}). It has "
            f"{info.num_frames} frames in {info.duration_seconds:g} s; change nframes, fps, video_start or video_end."
        ) from error
    indices: list[int] = torch.linspace(start, end, count).round().long().tolist()
    return indices, int(total)


def _target_size(
    host: Any, element: Element, media: Media, num_frames: int, factor: int | None
) -> tuple[int, int] | None:
    """The size that fetch_video will resize to; None (the file's own) unless that resize is sure to be a no-op."""
    if factor is None:
        return None
    if "resized_height" in element and "resized_width" in element:
        height, width = host.smart_resize(element["resized_height"], element["resized_width"], factor=factor)
        return int(height), int(width)
    least = element.get("min_pixels", host.VIDEO_MIN_TOKEN_NUM * factor * factor)
    total = element.get("total_pixels", host.MODEL_SEQ_LEN * factor * factor * 0.9)
    most = host.VIDEO_MAX_TOKEN_NUM * factor * factor
    most = max(min(most, total / num_frames * host.FRAME_FACTOR), int(least * 1.05))
    limits = {"factor": factor, "min_pixels": least, "max_pixels": min(element.get("max_pixels", most), most)}
    try:
        size = host.smart_resize(media.info.height, media.info.width, **limits)
        settled = size == host.smart_resize(*size, **limits)
    except (AssertionError, ValueError) as error:
        raise RequestError(f"{media.info.name}: qwen-vl-utils cannot size this video ({error}).") from error
    return (int(size[0]), int(size[1])) if settled else None


def _source(video: Any) -> Any:
    return video.source if isinstance(video, _Handle) else video


class _Handle(str):
    """Stands for a source that is no string: fetch_video takes a list of frames for everything but a str."""

    source: Any


def _fetching(original: Callable[..., Any], host: Any) -> Callable[..., Any]:
    parameters = signatures.signature(original)

    @functools.wraps(original)
    def fetch_video(*args: Any, **kwargs: Any) -> Any:
        call = parameters.bind(*args, **kwargs)
        call.apply_defaults()
        element = call.arguments["ele"]
        if not isinstance(element["video"], (str, list, tuple)):
            handle = _Handle(f"<{type(element['video']).__name__}>")
            handle.source = element["video"]
            call.arguments["ele"] = {**element, "video": handle}
        factor = _image_factor.set(int(call.arguments["image_patch_size"] * host.SPATIAL_MERGE_SIZE))
        failure = _failure.set(None)
        try:
            return original(*call.args, **call.kwargs)
        except Exception as error:
            ours = _failure.get()
            shown = ours[1] if ours is not None and ours[0] is call.arguments["ele"] else error
        finally:
            _failure.reset(failure)
            _image_factor.reset(factor)
        raise shown

    return fetch_video


def _raising_our_error(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def read_video_torchvision(element: Element) -> Any:
        failure = _failure.get()
        if failure is not None and failure[0] is element:
            _failure.set(None)
            raise failure[1]
        return original(element)

    return read_video_torchvision
