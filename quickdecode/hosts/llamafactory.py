"""Everything that quickdecode knows about LLaMA-Factory, which opens videos with PyAV and decodes every frame of them.

install() replaces two things in `llamafactory.data.mm_plugin` as soon as somebody imports it, remove() puts them back:

    av                                        PyAV, but for open(): containers whose decode() has a picture only for
                                              the frames that were asked for, read with quickdecode
    MMPluginMixin._get_video_sample_indices   the original, noting which frames it names

The rest stays the plugin's own: which frames, their times, their size. Frames are of the file's size and bit for bit
what they were. Files that are to be turned for display, and what is no path, are decoded as before.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import numpy as np

from ..decode.room import Room
from ..errors import HostError
from ..index.media import Media
from ..index.sequential import ATTACHED_PICTURE
from ..opening import Options
from ..read import Choice, read_chosen
from . import late
from .replace import Replacements

MODULE = "llamafactory.data.mm_plugin"
SAMPLER = "_get_video_sample_indices"
NEEDED = "install llamafactory 0.9.5"

logger = logging.getLogger("quickdecode")

_asked: ContextVar[tuple[Any, list[int]] | None] = ContextVar("quickdecode_llamafactory_asked", default=None)
"""A stream, and the frames of it that the plugin has named."""


class LlamaFactory:
    """LLaMA-Factory."""

    streams = False
    """It wants pictures, one after the other."""

    def __init__(self) -> None:
        self._replaced = Replacements()

    def install(self, *, stream: bool = False, resize: str = "antialiased") -> None:
        """Make it read with quickdecode, when it is imported; it resizes itself, and takes no stream.

        Raises HostError if it is not installed, or is imported and lacks a seam.
        """
        if self._replaced:
            return
        if importlib.util.find_spec(MODULE.partition(".")[0]) is None:
            raise HostError(f"llamafactory is not installed; {NEEDED}.")
        if MODULE not in sys.modules:
            late.when_imported(MODULE, self._install_late)
            return
        absent = _absent(sys.modules[MODULE])
        if absent:
            raise HostError(f"{MODULE} lacks {', '.join(absent)}; {NEEDED}.")
        self._replace(sys.modules[MODULE])

    def remove(self) -> None:
        """Put back what install() replaced, except where somebody else has replaced it since."""
        late.cancel(MODULE)
        self._replaced.undo()

    def _install_late(self, module: ModuleType) -> None:
        """Somebody else's import must not fail for us."""
        absent = _absent(module)
        if absent:
            logger.warning("%s lacks %s, so it reads videos as before; %s", MODULE, ", ".join(absent), NEEDED)
            return
        self._replace(module)

    def _replace(self, module: Any) -> None:
        self._replaced.attribute(module, "av", _PyAV(module.av))
        self._replaced.attribute(module.MMPluginMixin, SAMPLER, _noting(getattr(module.MMPluginMixin, SAMPLER)))


def _absent(module: Any) -> list[str]:
    plugin = getattr(module, "MMPluginMixin", None)
    return [
        *([] if hasattr(module, "av") else ["av"]),
        *([] if SAMPLER in vars(plugin or object) else [f"MMPluginMixin.{SAMPLER}"]),
    ]


def _noting(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def sample_indices(self: Any, video_stream: Any, *arguments: Any, **options: Any) -> Any:
        indices = original(self, video_stream, *arguments, **options)
        _asked.set((video_stream, [int(index) for index in indices]))
        return indices

    return sample_indices


class _PyAV:
    """The module av with an open() of ours."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def open(self, file: Any, *arguments: Any, **options: Any) -> Any:
        """As av.open()."""
        container = self._module.open(file, *arguments, **options)
        return Container(container, file) if isinstance(file, str | os.PathLike) else container

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class Container:
    """A container of PyAV's, where decode() reads only the frames that were asked for."""

    def __init__(self, container: Any, path: str | os.PathLike[str]) -> None:
        self._container, self._path = container, path

    def decode(self, stream: Any) -> Iterator[Any]:
        """As container.decode(stream), with None for frames that nobody asked for, and none behind the last one."""
        asked = _asked.get()
        moving = [each for each in self._container.streams.video if not each.disposition.value & ATTACHED_PICTURE]
        if asked is None or asked[0] is not stream or stream not in moving:
            return iter(self._container.decode(stream))
        try:
            return pictures(self._path, asked[1], stream=moving.index(stream))
        except _AsBeforeError:
            return iter(self._container.decode(stream))
        finally:
            _asked.set(None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)


class Picture:
    """A frame of which nothing is known but its pixels."""

    def __init__(self, pixels: np.ndarray[Any, Any]) -> None:
        self._pixels = pixels

    def to_image(self) -> Any:
        """The frame as a PIL image."""
        from PIL import Image

        return Image.fromarray(self._pixels)


class _AsBeforeError(Exception):
    """PyAV's own decode is to do it: of a file that is turned for display, or when nothing is wanted of one."""


def pictures(path: str | os.PathLike[str], indices: Iterable[int], *, stream: int = 0) -> Iterator[Picture | None]:
    """For each frame up to the last of `indices` that the file has: its picture if it is one of them, else None."""
    wanted = set(indices)  # the plugin asks whether a number is among them, so none comes twice

    def choose(media: Media) -> Choice:
        there = sorted(index for index in wanted if 0 <= index < media.info.num_frames)
        if media.info.rotation or media.info.mirrored or not there:
            raise _AsBeforeError
        return there, None

    video = read_chosen(path, choose, Options.of(stream=stream), Room.of("NHWC", None))
    frames = dict(zip(video.indices, video.frames.numpy(), strict=True))
    return (Picture(frames[index]) if index in frames else None for index in range(max(frames) + 1))
