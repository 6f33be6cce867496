"""Attention of a group to the stored prefix and, causally, to itself, without a (queries, keys) mask in memory.

Bottom-right causal, drawn for 2 new tokens after 3 stored ones:

    x x x x .
    x x x x x

flash-attn aligns its causal mask this way by itself. For hosts on "sdpa" the function below takes its place while a
group passes; key-value heads are never repeated over the prefix. The host's eager attention gets the triangle as a
mask: the readable reference.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from quickprefill.attention.interface import in_place_of_sdpa

__all__ = ["SUPPORTED", "group_mask", "lower_right_attention", "mask_free", "question_attention"]

SUPPORTED = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4")
"""Attention implementations of a host that can pass a group."""

_NAME = "quickprefill"


def lower_right_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention (B, H, q, D) of the last q positions over keys and values (B, K, n, D), n >= q."""
    flash_cpu = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    if query.device.type == "cpu" and flash_cpu is not None:
        return _prefix_and_group(flash_cpu, query, key, value, scale)
    # On CUDA this runs the flash kernel, which takes key-value heads as they are.
    bias = causal_lower_right(query.shape[2], key.shape[2])
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale, enable_gqa=True)


def _prefix_and_group(
    flash_cpu: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """PyTorch's CPU flash kernel knows no lower-right mask: prefix and group apart, merged by log-sum-exp.

    For the prefix the query heads that share a key-value head are laid behind each other as more queries of that head.
    """
    batch, heads, new, dim = query.shape
    kv_heads, prefix = key.shape[1], key.shape[2] - new
    share = heads // kv_heads
    own_key = key[:, :, prefix:].repeat_interleave(share, dim=1)
    own_value = value[:, :, prefix:].repeat_interleave(share, dim=1)
    own: torch.Tensor
    own, own_lse = flash_cpu(query, own_key, own_value, 0.0, True, scale=scale)
    if prefix == 0:
        return own
    folded = query.reshape(batch, kv_heads, share * new, dim)
    past, past_lse = flash_cpu(folded, key[:, :, :prefix], value[:, :, :prefix], 0.0, False, scale=scale)
    weight = torch.sigmoid(own_lse.reshape(batch, heads, new) - past_lse.reshape(batch, heads, new))
    merged: torch.Tensor = torch.lerp(past.reshape(batch, heads, new, dim), own, weight[..., None].to(own.dtype))
    return merged


def _host_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """The host's sdpa, but lower-right where it would be called without a mask on a stored prefix."""
    if attention_mask is not None or query.shape[2] in (1, key.shape[2]):
        result: tuple[torch.Tensor, None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, attention_mask, **kwargs
        )
        return result
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    return lower_right_attention(query, key, value, scale).transpose(1, 2), None


def mask_free(config: Any) -> contextlib.AbstractContextManager[None]:
    """While a group passes, a host on "sdpa" uses the function above."""
    return in_place_of_sdpa(config, _NAME, _host_attention)


def group_mask(config: Any, new: int, stored: int, like: torch.Tensor) -> torch.Tensor | None:
    """The mask, (1, 1, new, stored + new), of `new` tokens after `stored` ones where the host is eager; else None."""
    if config._attn_implementation != "eager":
        return None
    hidden = torch.full((new, stored + new), torch.finfo(like.dtype).min, dtype=like.dtype, device=like.device)
    return hidden.triu(stored + 1)[None, None]


def question_attention(queries: torch.Tensor, keys: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """Attention probabilities of the question's queries (B, H, Q, D) over keys (B, K, n, D), float32 (B, H, Q, n).

    causal: the last Q keys are the question's own, and a row sees them only up to itself.
    """
    batch, heads, rows, dim = queries.shape
    kv_heads, length = keys.shape[1], keys.shape[2]
    folded = queries.reshape(batch, kv_heads, -1, dim).float()
    scores = (folded @ keys.float().transpose(-1, -2)).view(batch, heads, rows, length) * dim**-0.5
    if causal:
        future = torch.ones(rows, length, dtype=torch.bool, device=scores.device).triu(length - rows + 1)
        scores = scores.masked_fill(future, float("-inf"))
    probabilities: torch.Tensor = scores.softmax(-1)
    return probabilities
