"""Patch a program that says nothing of us, as soon as it imports what there is to patch."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from quickprefill import late
from quickprefill.errors import ConfigError

if TYPE_CHECKING:
    from quickprefill.settings import Settings

__all__ = ["activate", "is_waiting", "say"]

ROOTS = ("transformers", "qwen_vl_utils", "qwen_omni_utils")
"""What the import of is the sign that there will be something to patch; the import itself is over by then."""


def activate(settings: Settings) -> None:
    """Patch all host classes and register the reader, now if one of ROOTS is imported, else with the first of them.

    Says so in one line on stderr. A second call replaces the first. What cannot be patched is left to the stock
    program with one warning; a value out of range ends the program, since a client may swallow other exceptions.
    """
    if any(root in sys.modules for root in ROOTS):
        _patch(settings)
        return
    for root in ROOTS:
        late.when_imported(root, lambda _: _patch(settings))


def is_waiting() -> bool:
    """Whether none of ROOTS has been imported since activate()."""
    return any(root in late.waiting for root in ROOTS)


def _patch(settings: Settings) -> None:
    for root in ROOTS:
        late.cancel(root)
    done = []
    try:
        if settings.prefill:
            done.append(_prefill(settings.fields))
        if settings.decode:
            done.append(_decode(settings))
    except ConfigError as error:
        raise SystemExit(f"quickprefill: {error}") from error
    say(f"active: {'; '.join(done) or 'nothing was asked for'}")


def _prefill(fields: dict[str, Any]) -> str:
    import transformers

    from quickprefill.applying import apply
    from quickprefill.config import QuickPrefillConfig

    apply(None, QuickPrefillConfig.from_dict(fields))
    shown = ", ".join(f"{name}={value!r}" for name, value in fields.items()) or "defaults"
    return f"video models of transformers {transformers.__version__} are prefilled by groups ({shown})"


def _decode(settings: Settings) -> str:
    import quickdecode

    options = {} if settings.resize is None else {"resize": settings.resize}
    try:
        served = quickdecode.register(stream=settings.stream, **options)
    except quickdecode.RequestError as error:
        raise ConfigError(str(error)) from error
    except quickdecode.HostError as error:
        return f"videos are read as before: {error}"
    return f"quickdecode reads for {', '.join(served)}{' and streams' if settings.stream else ''}"


def say(text: str) -> None:
    """A line of ours on stderr."""
    print(f"quickprefill: {text}", file=sys.stderr, flush=True)  # noqa: T201 (stdout is the program's)
