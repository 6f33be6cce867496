"""Keep the tokens with the largest values (QuickVideo, arXiv 2505.16175: its "value norms")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from quickprefill.policies.base import Scorer
from quickprefill.policies.seen import GroupKV
from quickprefill.policies.shared.norms import l2_norms

__all__ = ["ValueNorm"]


@dataclass(frozen=True)
class ValueNorm(Scorer):
    """L2 norm of a token's value over all heads together, in float32, one score for all heads; the large ones stay."""

    name: ClassVar[str] = "value_norm"

    largest: bool = True
    """Keep the largest norms; False keeps the smallest."""
    per_head: bool = False
    """Each key-value head keeps tokens of its own, by its own norm."""

    def score(self, kv: GroupKV) -> torch.Tensor:
        """Signed norm, (B, N), or (B, K, N) per head."""
        dim = 3 if self.per_head else (1, 3)
        norms = l2_norms(kv.values, dim)
        return norms if self.largest else -norms
