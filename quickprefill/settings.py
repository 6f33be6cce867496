"""What a launcher, an environment or a plugin flag asks for, before torch is loaded: read, written, never judged here.

Values are judged by QuickPrefillConfig and quickdecode.register() once the program needs them.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from quickprefill.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

__all__ = ["FIELDS", "Settings"]

FIELDS = {
    "keep": "share of the video tokens that stays, 0 < keep <= 1",
    "keep_tokens": "at most this many of each group's video tokens stay",
    "group_frames": 'frames prefilled at a time, an even number or "auto"',
    "policy": "which tokens stay: a name, or JSON as in QuickPrefillConfig.to_json()",
    "progress": "show a progress bar over groups",
    "first_layer": "the first decoder layer whose cache is pruned",
    "layer_decay": 'a smaller budget for deeper layers: "linear", or a factor per layer',
    "progressive_from": "from this layer on dropped tokens leave the hidden states too",
    "see_past": "a group sees what came before it",
    "prune_text": "also prune the text behind the last video",
    "trace": "the report says which places stayed, and when each stage ran",
}
"""The fields of QuickPrefillConfig, told briefly."""

_PREFILL, _DECODE = "QUICKPREFILL", "QUICKDECODE"
_STREAM, _RESIZE = "QUICKDECODE_STREAM", "QUICKDECODE_RESIZE"
_OFF = "off"
_FLAGS = {"1": True, "true": True, "on": True, "0": False, "false": False, _OFF: False, "": False}


@dataclass(frozen=True)
class Settings:
    """What to patch and how.

    Raises:
        ConfigError: no such field of QuickPrefillConfig.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    """Fields of QuickPrefillConfig that differ from its defaults."""
    prefill: bool = True
    """Whether models are patched at all."""
    decode: bool = True
    """Whether quickdecode reads the videos."""
    stream: bool = False
    """quickdecode.register(stream=...)."""
    resize: str | None = None
    """quickdecode.register(resize=...); None: its default."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.fields) - set(FIELDS))
        if unknown:
            raise ConfigError(f"unknown field {', '.join(map(repr, unknown))}; the fields are {list(FIELDS)}")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """What the variables ask for; without any, the defaults.

        QUICKPREFILL          a JSON object of config fields, '{"keep": 0.25}'; "off": patch no model
        QUICKDECODE           "off": leave reading as it is
        QUICKDECODE_STREAM    1: frames are still being decoded while the model prefills
        QUICKDECODE_RESIZE    how frames are resized

        Raises:
            ConfigError: a value that is none of these, or an unknown field.
        """
        asked = environment.get(_PREFILL, "")
        return cls(
            fields={} if asked in ("", _OFF) else _fields(asked),
            prefill=asked != _OFF,
            decode=_flag(environment, _DECODE, default="on"),
            stream=_flag(environment, _STREAM, default=""),
            resize=environment.get(_RESIZE) or None,
        )

    def into_environment(self, environment: MutableMapping[str, str] = os.environ) -> None:
        """Inverse of `from_environment`: processes started from here on can find them there."""
        environment[_PREFILL] = json.dumps(self.fields) if self.prefill else _OFF
        environment[_DECODE] = "on" if self.decode else _OFF
        environment[_STREAM] = "1" if self.stream else "0"
        environment[_RESIZE] = self.resize or ""


def _fields(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise ConfigError(
            f"{_PREFILL} must be a JSON object of fields, such as '{{\"keep\": 0.25}}', or {_OFF!r}; got {text!r}"
        )
    return fields


def _flag(environment: Mapping[str, str], name: str, default: str) -> bool:
    text = environment.get(name, default)
    if text.lower() not in _FLAGS:
        raise ConfigError(f"{name} must be one of {sorted(filter(None, _FLAGS))}, got {text!r}")
    return _FLAGS[text.lower()]
