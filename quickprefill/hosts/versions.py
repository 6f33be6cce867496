"""What differs between releases of transformers, asked of the installed one: everything else may forget about it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

__all__ = [
    "ENCODES_FIRST",
    "defined",
    "first_tensor",
    "known_arguments",
    "module_of",
    "named_output",
    "new_cache",
    "pooled",
    "stacked_features",
]

ENCODES_FIRST = "_prepare_multimodal_encoder_kwargs_for_generation"
"""Since 5.18 generate() encodes pictures and videos with this method, before the first forward."""


def module_of(name: str) -> Any:
    """A file of transformers by its full name; None where the installed release lacks it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


def new_cache(config: Any) -> Any:
    """An empty DynamicCache of a decoder, with a layer of the right kind for each of its layers."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache(config=config)
    if not cache.layers:  # a release that adds layers as they are updated
        cache.layers = [DynamicLayer() for _ in range(config.num_hidden_layers)]
    return cache


def first_tensor(output: Any) -> torch.Tensor:
    """A decoder layer's hidden states: up to 5.3 they come in a tuple."""
    tensor: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def pooled(output: Any) -> Any:
    """The features in what get_video_features() and get_image_features() return: in 4.x they are all of it."""
    return getattr(output, "pooler_output", output)


def stacked_features(output: Any) -> torch.Tensor:
    """(M, C) features of all items in what get_*_features() returns; those for later layers behind them, wider rows.

    Each level comes item by item, or up to 5.17 with all items in one tensor.
    """
    levels = [pooled(output), *(getattr(output, "deepstack_features", None) or ())]
    whole = [level if isinstance(level, torch.Tensor) else _joined(level) for level in levels]
    return torch.cat(whole, dim=1) if len(whole) > 1 else whole[0]


def _joined(items: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(tuple(items)) if len(items) > 1 else items[0]


def known_arguments(function: Callable[..., Any], call: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a call's arguments that a function of the host takes."""
    return {name: call[name] for name in inspect.signature(function).parameters if name in call}


def named_output(module: Any, name: str, fallback: Any, **values: Any) -> Any:
    """The host's own output class where the release has one (up to 5.22), else the general one without its extras."""
    kind = getattr(module, name, fallback)
    fields = getattr(kind, "__dataclass_fields__", values)
    return kind(**{field: value for field, value in values.items() if field in fields})


def defined(owner: Any, names: tuple[str, ...]) -> list[str]:
    """Those of the names that an object lacks, as "Owner.name"."""
    title = getattr(owner, "__name__", type(owner).__name__)
    return [f"{title}.{name}" for name in names if not hasattr(owner, name)]
