"""Value norms weighted by key norms (QuickVideo, arXiv 2505.16175: `key_weighted_vector_norms`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from quickprefill.policies.base import Scorer
from quickprefill.policies.key_norm import KeyNorm
from quickprefill.policies.seen import GroupKV
from quickprefill.policies.value_norm import ValueNorm

__all__ = ["KeyWeightedValueNorm"]


@dataclass(frozen=True)
class KeyWeightedValueNorm(Scorer):
    """softmax over the group of the key norms, times the value norms, in float32; the large products stay."""

    name: ClassVar[str] = "key_weighted_value_norm"

    def rests_on(self, kv: GroupKV, scores: torch.Tensor) -> torch.Tensor:
        """The key norms, without which it is another policy."""
        return KeyNorm().score(kv)

    def score(self, kv: GroupKV) -> torch.Tensor:
        """(B, N)."""
        weights = KeyNorm(largest=True).score(kv).softmax(-1)
        return weights * ValueNorm().score(kv)
