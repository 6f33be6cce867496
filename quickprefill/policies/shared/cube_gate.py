"""A gate that learns where cubes begin, starting from the momentum rule (Quicksviewer, arXiv 2504.15270).

Unlike the paper's it sees each place of a slice before it takes their mean, and knows how large the change was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import gelu, layer_norm, linear

__all__ = ["Chosen", "Gate", "gate_bytes", "highest", "straight_through"]

_PRIOR = 2.0
"""Weight of the momentum in an untrained gate's logits."""
_MOST_SEEN = 256


class Gate(nn.Module):
    """One logit a slice: how much sooner than another it opens a cube.

    The paper's gate has two logits, whose difference is this one. At first it is _PRIOR x log of the mean norm of the
    momentum: cubes begin where the rule without training says.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = min(width, _MOST_SEEN)
        self.look = _FloatLinear(width, inner)
        self.norm = _FloatNorm(inner)
        self.hidden = _FloatLinear(inner, inner)
        self.score = _FloatLinear(inner, 1, bias=False)
        self.log_prior = nn.Parameter(torch.zeros(1))  # not a scalar, which FSDP cannot spread
        nn.init.zeros_(self.score.weight)

    def forward(self, seen: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        """(T - 1,) float64 logits, whatever type the weights have.

        Args:
            seen: (T - 1, inner), what `glance` made of each slice but the first.
            norms: (T - 1,) mean norms of their momentum.
        """
        learned = cast(torch.Tensor, self.score(gelu(self.hidden(self.norm(seen)))))[:, 0]
        prior = _PRIOR * self.log_prior.double().exp() * (norms.double() + 1e-6).log()
        return prior + learned

    def glance(self, momentum: torch.Tensor) -> torch.Tensor:
        """(P, C) float32 -> (inner,): each place by itself, then their mean."""
        return gelu(self.look(momentum)).mean(dim=0)


class _FloatLinear(nn.Linear):
    """Computes in float32, whatever type its weights have."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return linear(rows, self.weight.float(), None if self.bias is None else self.bias.float())


class _FloatNorm(nn.LayerNorm):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return layer_norm(rows, self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


def gate_bytes(slices: int, slice_tokens: int, width: int) -> int:
    """The most bytes alive at once in a Gate, all of it in float32: weights, one slice seen, what was seen of all."""
    inner = min(width, _MOST_SEEN)
    return 4 * inner * (width + inner + 2 * slice_tokens + 5 * slices)


@dataclass(frozen=True)
class Chosen:
    """Where cubes begin, and what a gradient may say about it."""

    starts: list[int]
    """Ascending, K of them, 0 among them."""
    straight: torch.Tensor | None = None
    """(T,) zeros with a gradient: by how much more each slice should have been chosen; None where nothing trains."""


def highest(logits: torch.Tensor, number: int) -> list[int]:
    """Slice 0 and the `number` - 1 others of highest logit, ascending; ties: the earlier.

    Args:
        logits: (T - 1,) of slices 1 .. T-1, number < T.
    """
    chosen = logits.argsort(descending=True, stable=True)[: number - 1].sort().values
    return [0, *(chosen + 1).tolist()]


def straight_through(
    logits: torch.Tensor, number: int, noise: float = 0.0, temperature: float = 0.5, penalty: float = 0.0
) -> Chosen:
    """highest() with noise, and with what a gradient may say about it.

    Args:
        noise: weight of the logistic noise beside them, which is what Gumbel noise on two logits amounts to. 0: none.
        penalty: weight in the loss of the mean norm of the paper's two logits, here from the threshold on; it enters
            in the backward pass, since the loss is not ours to add to.
    """
    if noise:
        uniform = torch.rand(len(logits), device=logits.device).clamp(1e-7, 1 - 1e-7)
        logits = logits + noise * uniform.double().logit()
    order = logits.argsort(descending=True, stable=True)
    # Only differences of logits matter, so probabilities are taken from the threshold between chosen and not chosen.
    threshold = logits[order[max(number - 2, 0) : number]].detach().mean()
    probability = (_Penalised.apply(logits - threshold, penalty) / temperature).sigmoid()
    return Chosen(highest(logits, number), torch.cat([probability.new_zeros(1), probability - probability.detach()]))


class _Penalised(torch.autograd.Function):
    """The logits; the backward pass adds the gradient of the penalty."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, weight: float) -> torch.Tensor:
        ctx.save_for_backward(logits)
        ctx.weight = weight
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (logits,) = ctx.saved_tensors
        # The norm of (-x / 2, x / 2) is |x| / sqrt(2).
        return gradient + ctx.weight / (math.sqrt(2) * len(logits)) * logits.sign(), None
