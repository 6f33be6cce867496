"""Keep the tokens with the smallest keys (QuickVideo, arXiv 2505.16175: QuickPrefill's default)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from quickprefill.policies.base import Scorer
from quickprefill.policies.seen import GroupKV
from quickprefill.policies.shared.norms import l2_norms

__all__ = ["KeyNorm"]


@dataclass(frozen=True)
class KeyNorm(Scorer):
    """L2 norm of a token's key over all heads together, one score for all heads; the small ones stay.

    Rotary embedding preserves the norm, so positions play no part. Norms are taken in float32: bf16 has too few digits
    to order them.
    """

    name: ClassVar[str] = "key_norm"

    largest: bool = False
    """Keep the largest norms instead."""
    per_head: bool = False
    """Each key-value head keeps tokens of its own, by its own norm."""

    def score(self, kv: GroupKV) -> torch.Tensor:
        """Signed norm, (B, N), or (B, K, N) per head."""
        dim = 3 if self.per_head else (1, 3)
        norms = l2_norms(kv.keys, dim)
        return norms if self.largest else -norms
