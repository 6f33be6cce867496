"""One forward of a host's layers over a cache of ours: what their attention function does meanwhile.

A host makes one mask for all its layers. Layers that store different numbers of tokens, or rows of a batch with padding
of their own, need one each; most need none at all. So masks are made here, layer by layer, and only where there is
something to hide. The stock forward runs unchanged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from quickprefill.attention.group import lower_right_attention, lower_right_mask
from quickprefill.attention.interface import host_attention, host_implementation, host_mask, in_place_of_hosts
from quickprefill.cache.layer import PrunedLayer
from quickprefill.cache.padding import visible_slots

__all__ = ["Running", "Stored", "running"]


class Stored(Exception):
    """Stops a layer whose keys and values are in the cache, where nobody reads its output."""


@dataclass
class Running:
    """What a forward wants of the attention function, and what that saw."""

    layers: list[Any]
    """The cache's layers."""
    attention_mask: torch.Tensor | None = None
    """The caller's (B, logical length), which marks padding."""
    watched_queries: int = 0
    """How many of the last rows' queries to note."""
    stop: bool = False
    """Raise Stored instead of attending."""
    queries: torch.Tensor | None = None
    """(B, H, watched_queries, D), as the layer attended with them."""
    keys: torch.Tensor | None = None
    """(B, K, n, D), all that it attended to."""
    _masks: dict[tuple[int, int], torch.Tensor | None] = field(default_factory=dict)

    def padding(self, index: int, num_keys: int) -> torch.Tensor | None:
        """Which of a layer's keys each row sees, (B, num_keys) bool; None: all."""
        layer = self.layers[index]
        pruned = isinstance(layer, PrunedLayer)
        if not pruned and self.attention_mask is None:
            return None
        key = (num_keys, layer.prefill_logical_length if pruned else -1)
        if key not in self._masks:
            mask = self.attention_mask  # of a layer that is the host's, the last columns, as there
            slots = visible_slots(layer, mask) if pruned or mask is None else mask[:, -num_keys:].bool()
            self._masks[key] = None if slots is None or bool(slots.all()) else slots
        return self._masks[key]


_running: ContextVar[Running | None] = ContextVar("quickprefill_running", default=None)


@contextlib.contextmanager
def running(config: Any, forward: Running) -> Iterator[Running]:
    """While the context lasts, layers of `config` in this thread attend as `forward` says."""
    implementation = host_implementation(config)
    attend, mask = _FUNCTIONS.get(implementation) or _functions(implementation)
    token = _running.set(forward)
    try:
        with in_place_of_hosts(config, "group", attend, mask):
            yield forward
    finally:
        _running.reset(token)


_FUNCTIONS: dict[str, tuple[Any, Any]] = {}


def _functions(implementation: str) -> tuple[Any, Any]:
    """Attention and mask function in the place of those of a host's implementation, made once."""

    def attend(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **kwargs: Any
    ) -> Any:
        host, forward = host_attention(implementation, module), _running.get()
        if forward is None or attention_mask is not None:  # another thread's, or a mask of the caller's own
            return host(module, query, key, value, attention_mask, **kwargs)
        if forward.watched_queries:
            forward.queries = query[:, :, -forward.watched_queries :].clone()  # a view would keep the group's alive
            forward.keys = key
        if forward.stop:
            raise Stored
        padding = forward.padding(module.layer_idx, key.shape[2])
        if "flash" in implementation:
            return host(module, query, key, value, padding, **kwargs)
        window = kwargs.get("sliding_window")
        visible = _visible(query, key, padding, window, always=implementation == "eager")
        if visible is None and query.shape[2] not in (1, key.shape[2]):
            scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
            return lower_right_attention(query, key, value, scale).transpose(1, 2), None
        if visible is not None and implementation == "eager":
            hidden = torch.finfo(query.dtype).min
            visible = torch.zeros_like(visible, dtype=query.dtype).masked_fill(~visible, hidden)
        return host(module, query, key, value, visible, **kwargs)

    def mask(*args: Any, **kwargs: Any) -> Any:
        return host_mask(implementation)(*args, **kwargs) if _running.get() is None else None

    return _FUNCTIONS.setdefault(implementation, (attend, mask))


def _visible(
    query: torch.Tensor, key: torch.Tensor, padding: torch.Tensor | None, window: int | None, *, always: bool
) -> torch.Tensor | None:
    """The mask, (1 or B, 1, q, n) bool, where a causal one aligned on the right does not say it all."""
    new, length = query.shape[2], key.shape[2]
    narrow = window is not None and length > window
    if padding is None and not narrow and not (always and new > 1):
        return None
    visible = lower_right_mask(new, length, key.device, window)[None, None]
    return visible if padding is None else visible & padding[:, None, None].to(key.device)
