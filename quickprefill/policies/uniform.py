"""Keep every n-th token: a baseline that every method must beat, and a strong one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from quickprefill.policies.base import Scorer
from quickprefill.policies.seen import GroupKV

__all__ = ["Uniform"]


@dataclass(frozen=True)
class Uniform(Scorer):
    """Evenly spaced tokens: the middle of each of `num_kept` equal stretches of the group's raster order."""

    name: ClassVar[str] = "uniform"

    def score(self, kv: GroupKV) -> torch.Tensor:
        """1 for a token that stays, else 0, (B, N)."""
        # Integer arithmetic: token floor((2i + 1) * N / 2k) is the middle of stretch i of k.
        stretch = torch.arange(kv.num_kept, device=kv.keys.device)
        chosen = (2 * stretch + 1) * kv.num_tokens // (2 * kv.num_kept)
        scores = torch.zeros(kv.keys.shape[0], kv.num_tokens, device=kv.keys.device)
        scores[:, chosen] = 1.0
        return scores
