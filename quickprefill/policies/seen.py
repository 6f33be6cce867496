"""What a policy gets to see of one group behind a decoder layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quickprefill.prompt.spans import Grid

__all__ = ["GroupAttention", "GroupKV"]


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
    grid: Grid | None = None
    """The group's raster of tokens before anything was dropped; None for text."""
    places: torch.Tensor | None = None
    """(N,) where each token stands in the (t, h, w) raster of `grid`, ascending; None for text."""

    @property
    def num_tokens(self) -> int:
        """N, the group's video tokens."""
        return int(self.keys.shape[-2])

    def __repr__(self) -> str:
        shape = tuple(self.keys.shape)
        return f"GroupKV(keys={shape}, layer={self.layer}, group={self.group}, num_kept={self.num_kept})"


@dataclass(frozen=True)
class GroupAttention:
    """What the question attends to among the video tokens of one group, in one decoder layer."""

    attention: torch.Tensor
    """(H, Q, N) float32 probabilities, from the text behind the last video to the group's tokens."""
    num_kept: int
    """How many of the N tokens should go on."""
    pools: torch.Tensor | None
    """(N,) which pool each token competes in, as compress() gave them; None: one pool."""
    grid: Grid
    """The group's raster of tokens before anything was dropped."""
    places: torch.Tensor
    """(N,) where each token stands in the (t, h, w) raster of `grid`, ascending."""
    layer: int
    """Index of the decoder layer."""
    group: int
    """Index of the group within its prompt, counted over all of the prompt's videos."""

    @property
    def num_tokens(self) -> int:
        """N, the group's video tokens."""
        return int(self.attention.shape[-1])

    def __repr__(self) -> str:
        shape = tuple(self.attention.shape)
        return f"GroupAttention(attention={shape}, layer={self.layer}, group={self.group}, num_kept={self.num_kept})"
