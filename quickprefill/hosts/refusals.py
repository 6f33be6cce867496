"""Why a model cannot be prefilled by groups, whichever family it is of."""

from __future__ import annotations

from typing import Any

__all__ = ["odd_layers", "tensor_parallel"]

_PASSABLE = ("DynamicLayer", "DynamicSlidingWindowLayer", "LinearAttentionLayer")
"""Kinds of cache layers that a prefill can work with; the first are pruned, the others stay the host's."""


def tensor_parallel(model: Any) -> str | None:
    """Why a model that is split over devices within its layers cannot be pruned."""
    devices = getattr(model, "_tp_size", None) or getattr(model.config, "_tp_size", None) or 1
    if devices == 1:
        return None
    return (
        f"it is split over {devices} devices by tensor parallelism, where each would keep other tokens; load it with "
        'device_map="auto" or on one device'
    )


def odd_layers(layers: list[Any]) -> str | None:
    """Why a cache of such layers cannot be worked with."""
    odd = sorted({type(layer).__name__ for layer in layers} - set(_PASSABLE))
    if not odd:
        return None
    return f"its cache has {', '.join(odd)}; layers that a prefill can pass are {' and '.join(_PASSABLE)}"
