"""Keep the tokens with the largest attention output (QuickVideo, arXiv 2505.16175: `output_norms`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from quickprefill.policies.base import GroupKV, Policy

__all__ = ["OutputNorm"]


@dataclass(frozen=True)
class OutputNorm(Policy):
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
        norms: torch.Tensor = torch.linalg.vector_norm(kv.residual, dim=-1, dtype=torch.float32)
        return norms
