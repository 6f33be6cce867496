"""Small key norms, then what is least like them (QuickVideo, arXiv 2505.16175: `key_norms_small_deduplication`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from quickprefill.errors import ConfigError
from quickprefill.policies.base import Scorer
from quickprefill.policies.key_norm import KeyNorm
from quickprefill.policies.seen import GroupKV
from quickprefill.policies.shared.ranking import first_then

__all__ = ["KeyNormDistinct"]


@dataclass(frozen=True)
class KeyNormDistinct(Scorer):
    """One pivot for every 16 kept tokens by small key norm; the rest by lowest mean cosine similarity to the pivots.

    Similarity is that of keys, all heads together.
    """

    name: ClassVar[str] = "key_norm_distinct"

    tokens_per_pivot: int = 16
    """QuickVideo's 16."""

    def __post_init__(self) -> None:
        if isinstance(self.tokens_per_pivot, bool) or self.tokens_per_pivot < 1:
            raise ConfigError(f"tokens_per_pivot must be an integer >= 1, got {self.tokens_per_pivot!r}")

    def rests_on(self, kv: GroupKV, scores: torch.Tensor) -> torch.Tensor:
        """The key norms, without which it is another policy."""
        return KeyNorm().score(kv)

    def score(self, kv: GroupKV) -> torch.Tensor:
        """(B, N)."""
        num_pivots = (kv.num_kept - 1) // self.tokens_per_pivot + 1
        norms = KeyNorm().score(kv)
        keys = F.normalize(kv.keys.float().transpose(1, 2).flatten(2), dim=-1)  # (B, N, K * D)
        order = norms.argsort(dim=-1, descending=True, stable=True)[:, :num_pivots]
        pivots = keys.gather(1, order[..., None].expand(-1, -1, keys.shape[-1]))
        # The mean of the similarities is the similarity to the mean: no (N, pivots) matrix.
        similarity = (keys @ pivots.mean(1)[..., None])[..., 0]
        return first_then(norms, num_pivots, -similarity)
