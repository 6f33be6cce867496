"""Why a call with video is left to the stock model: what its cache, its mask or its layers rule out."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from quickprefill import versions
from quickprefill.config import QuickPrefillConfig
from quickprefill.fits import check_layers
from quickprefill.hosts.base import Host

__all__ = ["cache_reason", "layers_reason", "machinery_reason", "output_reason"]


def layers_reason(host: Host, core: Any, config: QuickPrefillConfig, call: dict[str, Any]) -> str | None:
    """Why the model's layers, or what this call's cache holds, cannot take a group.

    Raises:
        ConfigError: the config names a layer that the model does not have.
    """
    ids, mask = call["input_ids"], call.get("attention_mask")
    layers = host.new_layers(core)  # a caller's cache may hold plain layers where the host has a window
    check_layers(config, layers)
    if mask is not None and not bool(mask[:, : mask.shape[1] - ids.shape[1]].all()):
        return "the cache holds padding of an earlier turn"
    if not any(getattr(layer, "is_sliding", False) for layer in layers):
        return None
    selector = config.selector
    if selector is not None and selector.attention == "causal" and getattr(layers[selector.layer], "is_sliding", False):
        return f"{selector.name} reads the attention of layer {selector.layer}, which sees a sliding window only"
    if not config.see_past:
        return "see_past=False has no meaning for layers with a sliding window"
    if ids.shape[0] > 1 and not bool((ids == ids[:1]).all()):
        return "layers with a sliding window take different prompts one at a time, not as a batch"
    return None


def machinery_reason(core: Any, call: dict[str, Any]) -> str | None:
    """Why the host's generation machinery asks for something that a pruned prefill cannot give."""
    mask = call.get("attention_mask")
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.ndim != 2):
        return "attention_mask is not a 2-D padding mask (a static cache or a custom mask)"
    reason = output_reason(core, call)
    if reason is not None:
        return reason
    return cache_reason(versions.cache_of(call), call.get("input_ids"))


def output_reason(core: Any, call: dict[str, Any]) -> str | None:
    """Why a call cannot be given all that it asks for, where tokens are dropped."""
    for name in ("output_attentions", "output_hidden_states", "output_router_logits"):
        configs = (core.config, core.config.get_text_config())
        wanted = call.get(name)
        if wanted if wanted is not None else any(getattr(config, name, False) for config in configs):
            return f"{name}=True asks for what the pruned tokens would have given"
    return None


def cache_reason(cache: Any, ids: torch.Tensor | None) -> str | None:
    """Why a caller's cache cannot be filled by groups."""
    if cache is None:
        return None
    if not isinstance(cache, DynamicCache):
        return f"the cache is a {type(cache).__name__}; only a DynamicCache can be pruned"
    if cache.offloading:
        return "the cache is offloaded; only a DynamicCache that stays on its device can be pruned"
    if ids is None or ids.shape[0] == 1:
        return None
    if cache.get_seq_length() > 0:
        return "the cache already holds tokens of a batch of several rows; a later turn's video needs batch size 1"
    return None
