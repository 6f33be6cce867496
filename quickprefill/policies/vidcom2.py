"""Keep the tokens least like their video and their frame (VidCom2, arXiv 2505.14454)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from quickprefill.budget.counts import round_share
from quickprefill.errors import ConfigError
from quickprefill.policies.base import Compressor
from quickprefill.prompt.tokens import VideoTokens

__all__ = ["VidCom2"]

_BANDWIDTHS = (1 / 8, 1 / 4, 1 / 2, 1, 2)
_TEMPERATURE = 0.01
_BLOCK = 1 << 21
"""Numbers in one block of the pass over all channels, which makes a float32 copy of each."""


@dataclass(frozen=True)
class VidCom2(Compressor):
    """Between the vision tower and the decoder, each temporal slice keeps its outliers; a unique slice keeps more.

    Tokens are compared in the quieter half of their channels, after L2 normalisation. V is a token's similarity to the
    mean of the video and F to the mean of its slice. A slice whose mean V is lowest is the most unique, and gets up to
    twice the share of the others; inside a slice the tokens with the smallest V + F stay (ties: the earlier). Kept
    tokens are unchanged and keep their 3-D positions. O(N x C) work, no attention map. How many stay must be read
    from the device once, but not with `exact_total` and scope "group".

    Scores are float32: in the bf16 of the original, the temperature of 0.01 magnifies rounding into other budgets.
    """

    name: ClassVar[str] = "vidcom2"

    retention_ratio: float | None = None
    """Share of the tokens that stays, 0 < retention_ratio <= 1 (the paper's is 0.25); 1 changes nothing (the original
    drops 1 in T). None: the config's `keep`, as an exact total."""
    exact_total: bool = False
    """Keep exactly retention_ratio x N tokens, rounded half up.

    The paper rounds each slice for itself, keeps at least one token in each, and loses what a slice cannot hold above
    a ratio of 0.5. Here the total is dealt out one token at a time instead: one to each slice (if there are that many),
    then always to the slice furthest below its share, the earlier one in a tie.
    """
    scope: Literal["video", "group"] = "video"
    """What channels, centres and budgets are taken over. "video", the paper, needs every token before the first is
    dropped. "group" is for unbounded video: each group is a video of its own, so a slice is unique within its group,
    and no group can win tokens from another."""

    def __post_init__(self) -> None:
        if self.retention_ratio is not None and not 0 < self.retention_ratio <= 1:
            raise ConfigError(f"retention_ratio must be in (0, 1], got {self.retention_ratio}")
        if self.scope not in ("video", "group"):
            raise ConfigError(f"scope must be 'video' or 'group', got {self.scope!r}")

    @property
    def compress_ratio(self) -> float | None:
        """`retention_ratio`."""
        return self.retention_ratio

    @property
    def exact(self) -> bool:
        """Unless the paper's rounding decides."""
        return self.exact_total or self.retention_ratio is None

    def compress(self, tokens: VideoTokens) -> VideoTokens:
        """The tokens that stay, unchanged and in order.

        Raises:
            ConfigError: nobody says how many stay; or tokens were dropped before, so that slices are no longer whole.
        """
        grid = tokens.grid
        if tokens.num_tokens != grid.num_tokens:
            raise ConfigError(
                f"VidCom2 must be the first stage: it compares whole slices, {grid.num_tokens} tokens, but got "
                f"{tokens.num_tokens}"
            )
        ratio, total = self._budget(tokens)
        if ratio == 1:
            return tokens
        features = _quiet_directions(tokens.features).view(grid.slices, grid.slice_tokens, -1)
        to_video = _similarity(features, features.mean(dim=(0, 1)))  # (T, P)
        to_slice = _similarity(features, features.mean(dim=1, keepdim=True))
        share = _share(to_video, ratio)
        # half to even
        count = share.round().clamp(min=1) if total is None else _deal(share, grid.slice_tokens, total)
        rank = (to_video + to_slice).argsort(dim=1, stable=True).argsort(dim=1)
        stays = (rank < count[:, None]).flatten()
        if total is None:
            return tokens.take(stays.nonzero()[:, 0])
        # How many is known, so nothing waits for the device.
        return tokens.take(stays.logical_not().argsort(stable=True)[:total])

    def _budget(self, tokens: VideoTokens) -> tuple[float, int | None]:
        """The ratio, and the exact total or None for the paper's rounding."""
        num_tokens, total, ratio = tokens.num_tokens, tokens.num_kept, self.retention_ratio
        if ratio is None and total is None:
            raise ConfigError(
                "VidCom2 was not told how many tokens stay; give retention_ratio, or set num_kept of the tokens"
            )
        if not self.exact:
            return ratio or 1.0, None
        if total is None:
            total = round_share(ratio or 1.0, num_tokens)
        return (total / num_tokens if ratio is None else ratio), total


def _share(to_video: torch.Tensor, ratio: float) -> torch.Tensor:
    """How many tokens each slice is due, not yet whole numbers, (T, P) -> (T,)."""
    slices, size = to_video.shape
    extra = (-to_video.mean(dim=1) / _TEMPERATURE).softmax(dim=0) - 1 / slices
    return (ratio * (1 + extra)).clamp(max=1) * size


def _quiet_directions(embeds: torch.Tensor) -> torch.Tensor:
    """Unit vectors over the half of the channels that vary least, (N, C) -> (N, C // 2)."""
    mean = embeds.mean(dim=0, dtype=torch.float32)
    blocks = torch.split(embeds, max(_BLOCK // embeds.shape[1], 1))
    scatter = torch.stack([(block.float() - mean).square_().sum(dim=0) for block in blocks]).sum(dim=0)
    quiet = scatter.argsort(stable=True)[: max(embeds.shape[1] // 2, 1)].sort().values
    return torch.nn.functional.normalize(embeds.index_select(1, quiet).float(), dim=1)


def _similarity(features: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Gaussian similarity of each token to `centre`, summed over the bandwidths, (T, P, C) -> (T, P) in (0, 5]."""
    squared = (features - centre).square_().sum(dim=-1)
    return torch.stack([torch.exp(-squared / (2 * bandwidth)) for bandwidth in _BANDWIDTHS]).sum(dim=0)


def _deal(share: torch.Tensor, size: int, total: int) -> torch.Tensor:
    """Whole numbers in [0, size] that add up to `total`, as close to `share` as can be, (T,) -> (T,)."""
    missing = share[:, None] - torch.arange(size, device=share.device)  # of a slice that was dealt 0, 1, ... tokens
    if total >= share.shape[0]:
        missing[:, 0] = torch.inf
    dealt = torch.zeros_like(missing, dtype=torch.bool).flatten()
    dealt[missing.flatten().argsort(descending=True, stable=True)[:total]] = True
    return dealt.view_as(missing).sum(dim=1)
