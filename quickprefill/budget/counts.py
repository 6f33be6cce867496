"""Budgets: from the config to a count per layer, and from scores to the indices that stay."""

from __future__ import annotations

import math

import torch

from quickprefill.config import QuickPrefillConfig

__all__ = ["num_kept", "select"]


def num_kept(config: QuickPrefillConfig, num_tokens: int, layer: int = 0, num_layers: int = 1) -> int:
    """How many of a group's `num_tokens` video tokens stay in a layer: at least 1, at most all.

    keep x N rounded half up, at most keep_tokens; then the layer's share of that by `layer_decay` (QuickVideo's rules,
    but a schedule that reaches zero keeps one token where the original kept them all).

    >>> num_kept(QuickPrefillConfig(keep=0.25), 10)
    3
    """
    if layer < config.first_layer:
        return num_tokens
    count = math.floor((config.keep or 1.0) * num_tokens + 0.5)
    if config.keep_tokens is not None:
        count = min(count, config.keep_tokens)
    if config.layer_decay == "linear":
        count -= count * layer // num_layers
    elif config.layer_decay is not None:
        count = int(count * float(config.layer_decay) ** layer)
    return min(max(count, 1), num_tokens)


def select(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Ascending indices of the `count` highest scores, (..., N) -> (..., count). Ties go to the earlier token."""
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    return order[..., :count].sort(dim=-1).values
