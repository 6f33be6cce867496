"""An attention function of ours in the place of a host's "sdpa" while we call the host's layers.

AttentionInterface is transformers' own place for attention functions; a config names the one that its layers use. For
any call that is not ours such a function does what "sdpa" does, and users are counted, so threads may share a model.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

__all__ = ["in_place_of_sdpa"]

_lock = threading.Lock()
_users: dict[int, int] = {}


@contextlib.contextmanager
def in_place_of_sdpa(config: Any, name: str, attention: Callable[..., Any]) -> Iterator[None]:
    """While the context lasts, layers of a `config` on "sdpa" call `attention`, registered under `name`."""
    if config._attn_implementation not in ("sdpa", name):
        yield
        return
    with _lock:
        if name not in ALL_ATTENTION_FUNCTIONS:
            AttentionInterface.register(name, attention)
            AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
        _users[id(config)] = _users.get(id(config), 0) + 1
        config._attn_implementation = name
    try:
        yield
    finally:
        with _lock:
            _users[id(config)] -= 1
            if _users[id(config)] == 0:
                del _users[id(config)]
                config._attn_implementation = "sdpa"
