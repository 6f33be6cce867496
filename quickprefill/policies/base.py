"""What a policy is: a frozen dataclass with one or more of three stages.

    compress(tokens)            after the vision tower: fewer or merged tokens enter the decoder
    select(attention, pools)    once, behind one decoder layer: which tokens go on, by the question's attention to them
    score(kv)                   in every layer's cache: how much each token is worth keeping

A stage is a method of that name; `stages` says which ones a policy object really uses.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from quickprefill.errors import ConfigError

__all__ = ["STAGES", "GroupKV", "Policy"]

STAGES = ("compress", "select", "score")


@dataclass(frozen=True)
class GroupKV:
    """What one decoder layer cached for the video tokens of one group, before pruning."""

    keys: torch.Tensor
    """(B, K, N, D), after rotary embedding."""
    values: torch.Tensor
    """(B, K, N, D)."""
    layer: int
    """Index of the decoder layer."""
    group: int
    """Index of the group within its prompt, counted over all of the prompt's videos."""
    num_kept: int
    """How many of the N tokens will stay."""
    queries: torch.Tensor | None = None
    """(B, H, Q, D) of the text behind the video, after rotary embedding; given where `uses_question`."""
    residual: torch.Tensor | None = None
    """(B, N, C) hidden states after attention and residual, before the MLP; given where `uses_residual`."""

    @property
    def num_tokens(self) -> int:
        """N, the group's video tokens."""
        return int(self.keys.shape[-2])

    def __repr__(self) -> str:
        shape = tuple(self.keys.shape)
        return f"GroupKV(keys={shape}, layer={self.layer}, group={self.group}, num_kept={self.num_kept})"


@dataclass(frozen=True)
class Policy:
    """Base of every policy. A subclass is a frozen dataclass whose fields are its hyper-parameters.

    A scorer defines `score(self, kv: GroupKV) -> Tensor`: float32, (B, N), or (B, K, N) where `per_head`. The highest
    stay; ties go to the earlier token.
    """

    name: ClassVar[str]
    """Key in POLICIES; equal to the name of the policy's file."""

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that this object takes part in."""
        return tuple(stage for stage in STAGES if hasattr(self, stage))

    @property
    def uses_question(self) -> bool:
        """Whether score() or select() needs the text behind the video."""
        return False

    @property
    def uses_residual(self) -> bool:
        """Whether score() needs hidden states."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """Name and hyper-parameters, in types that JSON can hold."""
        return {"name": self.name, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Policy:
        """Inverse of `to_dict`, given without the name."""
        allowed = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(allowed))
        if unknown:
            raise ConfigError(f"policy {cls.name!r} has no option {', '.join(unknown)}; its options: {allowed}")
        return cls(**values)
