"""register() makes other libraries read videos with quickdecode, unregister() undoes it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Protocol

from ..errors import HostError
from ..opening import check_resize
from .llamafactory import LlamaFactory
from .qwen_vl_utils import QwenUtils
from .transformers import Transformers
from .video_processor import VideoProcessor


class Host(Protocol):
    """A library whose video reading can be taken over."""

    @property
    def streams(self) -> bool:
        """Whether it has been taken over by a reader that streams."""

    def install(self, *, stream: bool, resize: str) -> None:
        """Take over, if it is not so already. Raises HostError, before any change, if a seam is absent."""

    def remove(self) -> None:
        """Undo install(); without effect if there is nothing to undo."""


HOSTS: dict[str, Host] = {
    "llamafactory": LlamaFactory(),
    "qwen_omni_utils": QwenUtils("qwen_omni_utils", "qwen_omni_utils.v2_5.vision_process"),
    "qwen_vl_utils": QwenUtils("qwen_vl_utils", "qwen_vl_utils.vision_process"),
    "transformers": Transformers(),
}


VIDEO_PROCESSOR = VideoProcessor()
"""Between the readers and the model; taken over while anything streams."""


def register(*hosts: str, stream: bool = False, resize: str = "antialiased") -> list[str]:
    """Make these libraries (by default all supported ones that are installed) read videos with quickdecode.

    With `stream`, videos are returned at once, as tensors whose frames are still being decoded. transformers' video
    processors pass them on as such, and a model that prefills by groups takes frames as they come; whatever else
    touches such a tensor waits for the whole video. Which processors: examples/guides/reading.md.

    Frames are resized on the threads that decode them, to the size that the library would resize them to. `resize`
    says how: "antialiased", which is bit for bit what transformers makes of full-size frames and 0.1 to 0.5 grey
    levels from what qwen-vl-utils makes of them; "exact", bit for bit what either makes of them; or "fast", as in
    read_video. What each costs: examples/guides/reading.md.

    Calling again with another `stream` or `resize` switches. Returns the names of the libraries served. Raises
    RequestError if there is no such `resize`; HostError if a library is unknown, missing, or lacks what has to be
    replaced; nothing is changed in it then.
    """
    _check(hosts)
    check_resize(resize)
    chosen = list(hosts) or [name for name in HOSTS if find_spec(name) is not None]
    if not chosen:
        raise HostError(f"none of {', '.join(HOSTS)} is installed; install one of them, or call read_video directly.")
    for name in chosen:
        HOSTS[name].install(stream=stream, resize=resize)
    _follow(stream=stream)
    return chosen


def unregister(*hosts: str) -> None:
    """Give these libraries (by default all) back what register() replaced; otherwise without effect."""
    _check(hosts)
    for name in hosts or HOSTS:
        HOSTS[name].remove()
    _follow(stream=False)


def _follow(*, stream: bool) -> None:
    if stream and find_spec("transformers") is not None:
        VIDEO_PROCESSOR.install()
    elif not any(host.streams for host in HOSTS.values()):
        VIDEO_PROCESSOR.remove()


def _check(hosts: tuple[str, ...]) -> None:
    for name in hosts:
        if name not in HOSTS:
            raise HostError(f"unknown library {name!r}; quickdecode can serve {', '.join(HOSTS)}.")
