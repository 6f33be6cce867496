"""Keep the tokens that the question attends to (QuickVideo, arXiv 2505.16175: its "attention scores")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from quickprefill.policies.base import Scorer
from quickprefill.policies.seen import GroupKV
from quickprefill.policies.shared.norms import l2_norms

__all__ = ["QueryAttention"]


@dataclass(frozen=True)
class QueryAttention(Scorer):
    """Attention of the text behind the video to each token of the group, averaged over heads and summed over the text.

    Probabilities are a softmax over the group's keys. The text rides along behind each group, at its own positions and
    seeing the group as a later token does. (The original gave it the positions of the next group, and shifted the
    group's causal mask by the text's length.) Only the text's rows of the attention map are built, group by group.
    """

    name: ClassVar[str] = "query_attention"

    by_value_norm: bool = False
    """Multiply by the L2 norm of the token's value over all heads."""
    per_head: bool = False
    """Each key-value head keeps tokens of its own, averaged over the query heads that share it."""

    @property
    def uses_question(self) -> bool:
        """Always."""
        return True

    def score(self, kv: GroupKV) -> torch.Tensor:
        """Attention received, (B, N), or (B, K, N) per head."""
        if kv.queries is None:
            raise TypeError("QueryAttention.score() needs kv.queries")
        batch, kv_heads, num_tokens, dim = kv.keys.shape
        folded = kv.queries.float().reshape(batch, kv_heads, -1, dim)  # query heads that share a key-value head
        attention = (folded @ kv.keys.float().transpose(-1, -2) * dim**-0.5).softmax(-1)
        share = kv.queries.shape[1] // kv_heads
        received: torch.Tensor = attention.sum(2) / share  # (B, K, N)
        if not self.per_head:
            received = received.mean(1)
        if self.by_value_norm:
            dims = 3 if self.per_head else (1, 3)
            received = received * l2_norms(kv.values, dims)
        return received
