"""Scores made of two rankings: some tokens first, then the best of the others."""

from __future__ import annotations

import torch

__all__ = ["first_then"]


def first_then(first: torch.Tensor, num_first: int, then: torch.Tensor) -> torch.Tensor:
    """Scores, (B, N), whose highest are the `num_first` highest of `first`, followed by the highest of `then`."""
    num_tokens = first.shape[-1]
    chosen = first.argsort(dim=-1, descending=True, stable=True)[:, :num_first]
    # Descending argsort twice gives ranks with ties to the earlier token; float32 holds them up to 16 million tokens.
    rank = then.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return (num_tokens - rank).float().scatter(-1, chosen, num_tokens + 1.0)
