"""A policy of your own, outside the package: keep the tokens whose values differ most from the group's mean.

python examples/write_a_policy.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

import quickprefill
from quickprefill.policies import GroupKV, Policy


@dataclass(frozen=True)
class Unusual(Policy):
    name: ClassVar[str] = "unusual"

    power: float = 2.0

    def score(self, kv: GroupKV) -> torch.Tensor:
        mean = kv.values.float().mean(dim=2, keepdim=True)
        return (kv.values.float() - mean).abs().pow(self.power).sum(dim=(1, 3))  # (B, N): the highest stay


quickprefill.POLICIES["unusual"] = Unusual  # so that JSON and policy="unusual" find it


def main() -> quickprefill.QuickPrefillConfig:
    config = quickprefill.QuickPrefillConfig(keep=0.25, policy=Unusual(power=1.0))
    print(config.to_json())
    return config


if __name__ == "__main__":
    main()
