"""Functions of ours in the place of a host's attention function, while a forward that is ours runs.

AttentionInterface is transformers' own place for attention functions; a config names the one that its layers use. The
swap is counted, so several threads may run forwards of ours on one model, and in a thread that runs none the function
does what the host's own does; a stock forward that reads the config twice may still see both names if a thread beside
it begins or ends one of ours in between. After the last use no name of ours is left in transformers' tables.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from quickprefill import versions
from quickprefill.errors import UnsupportedModelError

__all__ = ["flash_is_requested", "host_attention", "host_implementation", "host_mask", "in_place_of_hosts"]

_OURS = "quickprefill"
_lock = threading.Lock()
_users: dict[str, int] = {}
"""Forwards of ours that use a registered name."""
_swapped: dict[int, int] = {}
"""Forwards of ours that have swapped a config, by its id."""


def host_implementation(config: Any) -> str:
    """The attention implementation that a config asks for, whether or not it is swapped at the moment."""
    name = str(config._attn_implementation)
    return name.rpartition("|")[2] if name.startswith(_OURS) else name


def flash_is_requested(config: Any) -> bool:
    """Whether a config asks for some flash kernel, a hub's under its own name too: hosts look for the word as well."""
    return "flash" in host_implementation(config)


def host_attention(implementation: str, module: Any) -> Callable[..., Any]:
    """The host's attention function for a module of its; "eager" is the one in the module's own file."""
    files = (sys.modules.get(kind.__module__) for kind in type(module).__mro__)
    own = next((found for file in files if (found := getattr(file, "eager_attention_forward", None)) is not None), None)
    function: Callable[..., Any] | None = own if implementation == "eager" else ALL_ATTENTION_FUNCTIONS[implementation]
    if function is None:
        raise UnsupportedModelError(f"{type(module).__name__} has no eager attention in its file; use sdpa")
    return function


def host_mask(implementation: str) -> Callable[..., Any]:
    """The host's function that makes masks for an implementation."""
    function: Callable[..., Any] = ALL_MASK_ATTENTION_FUNCTIONS[implementation]
    return function


@contextlib.contextmanager
def in_place_of_hosts(
    config: Any, kind: str, attention: Callable[..., Any], mask: Callable[..., Any] | None = None
) -> Iterator[None]:
    """While the context lasts, layers of `config` call `attention`, and masks are made by `mask`.

    Args:
        kind: which of our functions it is; part of the name that stands in the config meanwhile.
        mask: None: the host's own.
    """
    host = host_implementation(config)
    name = versions.swapped_name(f"{_OURS}|{kind}|{host}")  # the host's name stays in it: hosts look for "flash"
    with _lock:
        if name not in _users:
            AttentionInterface.register(name, attention)
            AttentionMaskInterface.register(name, mask or host_mask(host))
        _users[name] = _users.get(name, 0) + 1
        _swapped[id(config)] = _swapped.get(id(config), 0) + 1
        config._attn_implementation = name
    try:
        yield
    finally:
        with _lock:
            _release(_swapped, id(config), lambda: setattr(config, "_attn_implementation", host))
            _release(_users, name, lambda: _unregister(name))


def _release(counts: dict[Any, int], key: Any, last: Callable[[], None]) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
        last()


def _unregister(name: str) -> None:
    # Neither table has an inverse of register().
    for table in (AttentionInterface, AttentionMaskInterface):
        table._global_mapping.pop(name, None)
