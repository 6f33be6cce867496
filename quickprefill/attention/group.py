"""Attention of new tokens to a stored prefix and, causally, to themselves, without a (queries, keys) mask in memory.

Bottom-right causal, drawn for 2 new tokens after 3 stored ones:

    x x x x .
    x x x x x

flash-attn aligns its causal mask this way by itself. Where a kernel of PyTorch does not, the new tokens' own block and
the prefix are attended to apart and merged by log-sum-exp; key-value heads are never repeated over the prefix.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

__all__ = ["lower_right_attention", "lower_right_mask", "question_attention"]

_WIDENED_TOKENS = 4096
"""Keys and values of a prefix that are made float32 at a time."""

Attend = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""(query, key, value, causal, scale) -> attention (B, H, q, D) and its log-sum-exp (B, H, q)."""


def lower_right_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention (B, H, q, D) of the last q positions over keys and values (B, K, n, D), n >= q."""
    # Under autocast projections are narrow, but what went through the rotary embedding is not.
    query, key = query.to(value.dtype), key.to(value.dtype)
    graded = torch.is_grad_enabled() and any(part.requires_grad for part in (query, key, value))
    attend = None if graded else _kernel(query)  # a log-sum-exp has no gradient
    if attend is not None:
        return _prefix_and_own(attend, query, key, value, scale)
    bias = causal_lower_right(query.shape[2], key.shape[2])
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale, enable_gqa=True)


def _kernel(query: torch.Tensor) -> Attend | None:
    """What attends to a block and says its log-sum-exp, on devices where SDPA's lower-right mask costs memory.

    On CUDA the flash kernel knows that mask; it takes half precision, on cards of compute capability 8.0 and later.
    Elsewhere PyTorch would build the mask and every score: 16.8 GB a layer for a group of 7B behind an hour of video.
    """
    if query.device.type == "cpu":
        return _flash_on_cpu if hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu") else None
    if query.device.type != "cuda" or query.dtype == torch.float64:
        return None
    flash = query.dtype in (torch.float16, torch.bfloat16) and _compute_capability(query.device) >= (8, 0)
    return None if flash and query.shape[-1] <= 256 else _efficient_on_cuda


@functools.cache
def _compute_capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _flash_on_cpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    output, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, scale=scale
    )
    return output, log_sum


def _efficient_on_cuda(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    output, log_sum, _, _ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, None, True, 0.0, causal, scale=scale
    )
    return output, log_sum[..., : query.shape[2]]  # the kernel rounds its rows up


def _prefix_and_own(
    attend: Attend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """Both parts, merged in float32.

    For the prefix the query heads that share a key-value head are laid behind each other as more queries of that head.
    On a CPU narrow states are widened block by block: the kernel would round each part, where one call rounds once.
    """
    batch, heads, new, dim = query.shape
    kv_heads, prefix = key.shape[1], key.shape[2] - new
    share, narrow = heads // kv_heads, query.dtype
    if query.device.type == "cpu":
        query = query.to(torch.promote_types(narrow, torch.float32))
    own_key, own_value = (part[:, :, prefix:].to(query.dtype) for part in (key, value))
    if share > 1:
        own_key, own_value = (part.repeat_interleave(share, dim=1) for part in (own_key, own_value))
    merged, log_sum = attend(query, own_key, own_value, causal=True, scale=scale)
    del own_key, own_value
    query = query.reshape(batch, kv_heads, share * new, dim)
    step = prefix if query.dtype == narrow else _WIDENED_TOKENS
    for start in range(0, prefix, max(step, 1)):
        block = (part[:, :, start : min(start + step, prefix)].to(query.dtype) for part in (key, value))
        past, past_sum = attend(query, *block, causal=False, scale=scale)
        past, past_sum = past.reshape(batch, heads, new, dim), past_sum.reshape(batch, heads, new)
        weight = torch.sigmoid(past_sum - log_sum)[..., None]
        wide = torch.promote_types(past.dtype, torch.float32)
        merged = merged.to(wide).lerp_(past.to(wide), weight.to(wide))
        log_sum = torch.logaddexp(log_sum, past_sum) if start + step < prefix else log_sum
    return merged.to(narrow)


def lower_right_mask(new: int, length: int, device: torch.device, window: int | None = None) -> torch.Tensor:
    """Which of `length` keys each of the last `new` positions sees, (new, length) bool; at most `window` of them."""
    visible = torch.ones(new, length, dtype=torch.bool, device=device).tril(length - new)
    return visible if window is None else visible.triu(length - new - window + 1)


def question_attention(queries: torch.Tensor, keys: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """Attention probabilities of the question's queries (B, H, Q, D) over keys (B, K, n, D), float32 (B, H, Q, n).

    causal: the last Q keys are the question's own, and a row sees them only up to itself.
    """
    batch, heads, rows, dim = queries.shape
    kv_heads, length = keys.shape[1], keys.shape[2]
    folded = queries.reshape(batch, kv_heads, -1, dim).float()
    scores = (folded @ keys.float().transpose(-1, -2)).view(batch, heads, rows, length) * dim**-0.5
    if causal:
        scores = scores.masked_fill(~lower_right_mask(rows, length, scores.device), float("-inf"))
    probabilities: torch.Tensor = scores.softmax(-1)
    return probabilities
