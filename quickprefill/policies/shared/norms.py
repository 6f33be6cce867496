"""Norms of states of any precision."""

from __future__ import annotations

import torch

__all__ = ["l2_norms"]


def l2_norms(states: torch.Tensor, dim: int | tuple[int, ...]) -> torch.Tensor:
    """L2 norms over `dim` in float32; taken in float32 or better, because bf16 has too few digits to order them."""
    wide = torch.promote_types(states.dtype, torch.float32)
    norms: torch.Tensor = torch.linalg.vector_norm(states, dim=dim, dtype=wide)
    return norms.float()
