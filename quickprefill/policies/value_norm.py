"""Keep the tokens with the largest values (QuickVideo, arXiv 2505.16175: its "value norms")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from quickprefill.policies.base import GroupKV, Policy

__all__ = ["ValueNorm"]


@dataclass(frozen=True)
class ValueNorm(Policy):
    """L2 norm of a token's value over all heads together, in float32, one score for all heads; the large ones stay."""

    name: ClassVar[str] = "value_norm"

    largest: bool = True
    """Keep the largest norms; False keeps the smallest."""
    per_head: bool = False
    """Each key-value head keeps tokens of its own, by its own norm."""

    def score(self, kv: GroupKV) -> torch.Tensor:
        """Signed norm, (B, N), or (B, K, N) per head."""
        dim = 3 if self.per_head else (1, 3)
        norms: torch.Tensor = torch.linalg.vector_norm(kv.values, dim=dim, dtype=torch.float32)
        return norms if self.largest else -norms
