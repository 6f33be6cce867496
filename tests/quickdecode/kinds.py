"""Kinds of clips: short ways to say how one is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.quickdecode.edits import Edit

SMALL: dict[str, Any] = {"size": (48, 64), "frames": 30, "gop": 10}


@dataclass(frozen=True)
class Kind:
    """How a clip is made, and what a reader has to do about it."""

    options: dict[str, Any] = field(default_factory=dict)
    """Of write_clip."""
    turns: int = 0
    """Quarter turns counter-clockwise that its metadata ask for."""
    mirrored: bool = False
    """Whether they then ask to mirror it, left to right."""
    base: str = "plain.mp4"
    """Where `edit` is given: the clip that it is made from."""
    edit: Edit | None = None
    joined: str | None = None
    """The clip whose bytes follow those of `base`."""
    write: Callable[[Path], object] | None = None
    """Makes it from nothing, where write_clip cannot."""


def h264(parameters: str = "", **options: Any) -> Kind:
    """H.264, with parameters of x264."""
    return Kind({"options": {"x264-params": parameters}, **options} if parameters else options)


def hevc(parameters: str = "", **options: Any) -> Kind:
    """HEVC, with parameters of x265."""
    given = {"options": {"x265-params": f"log-level=none:pools=1:frame-threads=1:{parameters}"}} if parameters else {}
    return Kind({"codec": "libx265", **given, **options})


def of(codec: str, **options: Any) -> Kind:
    """Any codec."""
    return Kind({"codec": codec, **options})


def tiny(codec: str = "libx264", pix_fmt: str = "yuv420p", parameters: str = "", **options: Any) -> Kind:
    """A smaller clip of any codec, with parameters of the encoder's library."""
    name = {"libx264": "x264-params", "libx265": "x265-params", "libsvtav1": "svtav1-params"}.get(codec, "")
    quiet = {"libx265": "log-level=none:pools=1:frame-threads=1:", "libsvtav1": "lp=1:"}.get(codec, "")
    given = {"options": {name: quiet + parameters}} if parameters else {}
    return Kind({"codec": codec, "pix_fmt": pix_fmt, **SMALL, **given, **options})


def made_from(base: str, edit: Edit) -> Kind:
    """Another clip of the corpus, edited."""
    return Kind(base=base, edit=edit)


def delayed(number: int, packet: Any) -> None:
    """Pictures from 20 on are shown a step later, and picture 40 at the time of the one before it."""
    packet.pts += 1024 + 512 * (number >= 20) - 512 * (number == 40)


def muddled(number: int, packet: Any) -> None:
    """Times in the order of decoding."""
    packet.pts = packet.dts = number * 640
