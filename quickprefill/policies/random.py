"""Keep random tokens: a baseline that every method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from quickprefill.errors import ConfigError
from quickprefill.policies.base import Scorer
from quickprefill.policies.seen import GroupKV

__all__ = ["Random"]

_MAX_LAYERS = 1 << 10
_MAX_GROUPS = 1 << 20


@dataclass(frozen=True)
class Random(Scorer):
    """Uniform random scores, drawn anew for each layer and group but the same in every run."""

    name: ClassVar[str] = "random"

    seed: int = 0
    """Any integer >= 0."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed must be >= 0, got {self.seed}")

    def score(self, kv: GroupKV) -> torch.Tensor:
        """(B, N) in [0, 1). Drawn on the CPU so that every device gets the same numbers."""
        stream = (self.seed * _MAX_GROUPS + kv.group) * _MAX_LAYERS + kv.layer
        generator = torch.Generator().manual_seed(stream % (1 << 63))
        scores = torch.rand(kv.keys.shape[0], kv.num_tokens, generator=generator)
        return scores.to(kv.keys.device, non_blocking=True)
