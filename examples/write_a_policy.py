"""Policies of your own, outside the package: one for each stage at which video tokens can be dropped.

python examples/write_a_policy.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

import quickprefill
from quickprefill.policies import Compressor, GroupAttention, GroupKV, Scorer, Selector, VideoTokens


@dataclass(frozen=True)
class Unusual(Scorer):
    """In every layer's cache: the tokens whose values differ most from the group's mean."""

    power: float = 2.0

    def score(self, kv: GroupKV) -> torch.Tensor:
        values = kv.values.float()
        mean = values.mean(dim=2, keepdim=True)
        return (values - mean).abs().pow(self.power).sum(dim=(1, 3))  # (B, N): the highest stay


@dataclass(frozen=True)
class Changing(Compressor):
    """Before the decoder: the first slice, then the tokens that differ most from the same place one slice earlier."""

    scope: Literal["video", "group"] = "video"
    exact = True  # it leaves num_kept tokens, so that nobody has to count them

    def compress(self, tokens: VideoTokens) -> VideoTokens:
        slices = tokens.features.float().view(tokens.grid.slices, tokens.grid.slice_tokens, -1)
        change = torch.full(slices.shape[:2], torch.inf, device=slices.device)
        change[1:] = (slices[1:] - slices[:-1]).norm(dim=-1)
        best = change.flatten().argsort(descending=True, stable=True)[: tokens.num_kept]
        return tokens.take(best.sort().values)


@dataclass(frozen=True)
class Noticed(Selector):
    """Behind one decoder layer: the tokens that the question attends to most, on average over its heads."""

    layer: int = 1

    def select(self, seen: GroupAttention) -> torch.Tensor:
        received = seen.attention.mean(dim=0).sum(dim=0)  # (H, Q, N) -> (N,)
        return received.topk(seen.num_kept).indices.sort().values


for policy in (Unusual, Changing, Noticed):
    quickprefill.POLICIES[policy.name] = policy  # so that JSON and policy="unusual" find it


def main() -> quickprefill.QuickPrefillConfig:
    for policy in ("changing", Noticed(layer=2)):
        print(quickprefill.QuickPrefillConfig(keep=0.25, policy=policy).to_json())
    config = quickprefill.QuickPrefillConfig(keep=0.25, policy=Unusual(power=1.0))
    print(config.to_json())
    return config


if __name__ == "__main__":
    main()
