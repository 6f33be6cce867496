"""What Cubes can learn, as one module of the model."""

from __future__ import annotations

from typing import Any

from torch import nn

from quickprefill.policies.shared.cube_gate import Gate
from quickprefill.policies.shared.cube_resampler import Resampler

__all__ = ["CubesWeights"]

NOISE = 0.1
"""Weight of the noise in training where no callback anneals it."""


class CubesWeights(nn.Module):
    """The parameters of a `Cubes` policy; `noise` is the weight of the noise in a gate that trains."""

    def __init__(self, width: int, gate: bool, resampler: bool) -> None:
        super().__init__()
        self.gate = Gate(width) if gate else None
        self.resampler = Resampler(width) if resampler else None
        self.noise = NOISE

    def forward(self, compress: Any, *args: Any) -> Any:
        """compress(self, *args): whoever wraps modules (FSDP, PEFT) sees their parameters used inside a call."""
        return compress(self, *args)
