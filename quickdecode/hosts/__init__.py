"""register() makes other libraries read videos with quickdecode, unregister() undoes it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Protocol

from ..errors import HostError
from .qwen_vl_utils import QwenUtils
from .transformers import Transformers


class Host(Protocol):
    """A library whose video reading can be taken over."""

    def install(self) -> None:
        """Take over; without effect the second time. Raises HostError, before any change, if a seam is absent."""

    def remove(self) -> None:
        """Undo install(); without effect if there is nothing to undo."""


HOSTS: dict[str, Host] = {
    "qwen_omni_utils": QwenUtils("qwen_omni_utils", "qwen_omni_utils.v2_5.vision_process"),
    "qwen_vl_utils": QwenUtils("qwen_vl_utils", "qwen_vl_utils.vision_process"),
    "transformers": Transformers(),
}


def register(*hosts: str) -> list[str]:
    """Make these libraries (by default all supported ones that are installed) read videos with quickdecode.

    Returns the names of the libraries served. Raises HostError if one is unknown, missing, or lacks what has
    to be replaced; nothing is changed in it then.
    """
    _check(hosts)
    chosen = list(hosts) or [name for name in HOSTS if find_spec(name) is not None]
    if not chosen:
        raise HostError(f"none of {', '.join(HOSTS)} is installed; install one of them, or call read_video directly.")
    for name in chosen:
        HOSTS[name].install()
    return chosen


def unregister(*hosts: str) -> None:
    """Give these libraries (by default all) back what register() replaced; otherwise without effect."""
    _check(hosts)
    for name in hosts or HOSTS:
        HOSTS[name].remove()


def _check(hosts: tuple[str, ...]) -> None:
    for name in hosts:
        if name not in HOSTS:
            raise HostError(f"unknown library {name!r}; quickdecode can serve {', '.join(HOSTS)}.")
