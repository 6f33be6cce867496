"""Text after a prefill whose layers store different numbers of tokens.

The host builds one mask per forward, from its first layer. Where `first_layer`, `layer_decay` or a selection gave every
layer its own length, decode steps and later turns come here instead, and each layer gets a mask of its own.
"""

from __future__ import annotations

from typing import Any

import torch

from quickprefill.attention.group import mask_free
from quickprefill.cache.layer import PrunedLayer
from quickprefill.cache.padding import stored_attention_mask
from quickprefill.errors import CacheError
from quickprefill.hosts.base import Family

__all__ = ["needs_own_masks", "text_forward"]


def needs_own_masks(cache: Any) -> bool:
    """Whether a cache's layers store different numbers of tokens."""
    layers = getattr(cache, "layers", ())
    return any(isinstance(layer, PrunedLayer) for layer in layers) and len({_length(layer) for layer in layers}) > 1


def _length(layer: Any) -> int:
    return layer.stored_length if isinstance(layer, PrunedLayer) else int(layer.get_seq_length())


def text_forward(model: Any, family: Family, call: dict[str, Any]) -> Any:
    """The host's forward() for text (B, q) behind such a cache.

    Raises:
        CacheError: the call asks for what this path cannot give.
    """
    ids, cache, caller_mask = call.get("input_ids"), call["past_key_values"], call.get("attention_mask")
    asked = [name for name in ("output_attentions", "output_hidden_states", "labels") if call.get(name)]
    if ids is None or asked or (caller_mask is not None and caller_mask.ndim != 2):
        raise CacheError(
            "the layers of this cache store different numbers of tokens, so it takes input_ids with a 2-D "
            f"attention_mask and gives logits only; got {asked or 'inputs_embeds or another mask'}"
        )
    positions = family.position_ids(model, call)
    hidden = family.embed(model, ids.flatten(), None).view(*ids.shape, -1)
    rotary = family.rotary(model, hidden, positions)
    config = family.attention_config(model)
    with mask_free(config):
        for index, layer in enumerate(cache.layers):
            padding = stored_attention_mask(layer, caller_mask, ids.shape[1])
            mask = _mask(config, layer, padding, hidden)
            hidden = family.layer(model, index, hidden, rotary, mask, cache)
    keep = call.get("logits_to_keep", 0)
    hidden = family.norm(model, hidden)[:, slice(-keep, None) if isinstance(keep, int) else keep]
    return family.output(model, hidden, cache, call.get("return_dict"))


def _mask(config: Any, layer: PrunedLayer, padding: torch.Tensor | None, hidden: torch.Tensor) -> torch.Tensor | None:
    """The mask of one layer for the host's attention, from which of its keys are padding."""
    new, stored = hidden.shape[1], layer.stored_length
    if config._attn_implementation.startswith("flash"):
        return None if padding is None else padding[:, -(stored + new) :]
    if padding is None and config._attn_implementation != "eager":
        return None
    device = hidden.device
    visible = torch.ones(new, stored + new, dtype=torch.bool, device=device).tril(stored)[None, None]
    if padding is not None:
        visible = visible & padding[:, None, None, -(stored + new) :].to(device).bool()
    if config._attn_implementation != "eager":
        return visible
    return torch.zeros_like(visible, dtype=hidden.dtype).masked_fill(~visible, torch.finfo(hidden.dtype).min)
