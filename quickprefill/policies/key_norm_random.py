"""Half small key norms, half random (QuickVideo, arXiv 2505.16175: `key_norms_small_random`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from quickprefill.policies.base import Scorer
from quickprefill.policies.key_norm import KeyNorm
from quickprefill.policies.random import Random
from quickprefill.policies.seen import GroupKV
from quickprefill.policies.shared.ranking import first_then

__all__ = ["KeyNormRandom"]


@dataclass(frozen=True)
class KeyNormRandom(Scorer):
    """Half of the budget, rounded down, by small key norm; the rest at random among the others.

    The original lost a token for an odd budget and failed; here the count is exact.
    """

    name: ClassVar[str] = "key_norm_random"

    seed: int = 0
    """Any integer >= 0."""

    def __post_init__(self) -> None:
        Random(self.seed)

    def rests_on(self, kv: GroupKV, scores: torch.Tensor) -> torch.Tensor:
        """The key norms, without which it is another policy."""
        return KeyNorm().score(kv)

    def score(self, kv: GroupKV) -> torch.Tensor:
        """(B, N)."""
        return first_then(KeyNorm().score(kv), kv.num_kept // 2, Random(self.seed).score(kv))
