"""Keep the tokens with the largest attention output (QuickVideo, arXiv 2505.16175: `output_norms`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from quickprefill.policies.base import Scorer
from quickprefill.policies.seen import GroupKV
from quickprefill.policies.shared.norms import l2_norms

__all__ = ["OutputNorm"]


@dataclass(frozen=True)
class OutputNorm(Scorer):
    """L2 norm, in float32, of a token's hidden state after attention and residual, before the MLP; the large stay."""

    name: ClassVar[str] = "output_norm"

    @property
    def uses_residual(self) -> bool:
        """Always."""
        return True

    def score(self, kv: GroupKV) -> torch.Tensor:
        """(B, N)."""
        if kv.residual is None:
            raise TypeError("OutputNorm.score() needs kv.residual")
        return l2_norms(kv.residual, -1)
