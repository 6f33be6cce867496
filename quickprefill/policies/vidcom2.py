"""Keep the tokens least like their video and their frame (VidCom2, arXiv 2505.14454)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from quickprefill.errors import ConfigError
from quickprefill.policies.base import Compressor
from quickprefill.policies.shared.rounding import round_share
from quickprefill.prompt.spans import Grid
from quickprefill.prompt.tokens import VideoTokens

__all__ = ["VidCom2"]

_TEMPERATURE = 0.01
_BLOCK = 1 << 24
"""Numbers in one block of the passes over all channels, which make a float32 copy of each; a slice is not divided."""


@dataclass(frozen=True)
class VidCom2(Compressor):
    """Between the vision tower and the decoder, each temporal slice keeps its outliers; a unique slice keeps more.

    Tokens are compared in the quieter half of their channels, after L2 normalisation. V is a token's similarity to the
    mean of the video and F to the mean of its slice. A slice whose mean V is lowest is the most unique, and gets up to
    twice the share of the others; inside a slice the tokens with the smallest V + F stay (ties: the earlier). Kept
    tokens are unchanged and keep their 3-D positions. O(N x C) work, no attention map. With the paper's rounding how
    many stay must be read from the device once.

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
    def whole_slices(self) -> bool:
        """It compares them."""
        return True

    @property
    def exact(self) -> bool:
        """Unless the paper's rounding decides."""
        return self.exact_total or self.retention_ratio is None

    def most_tokens(self, grid: Grid, num_kept: int) -> int:
        """`num_kept`, or the most that the paper's rounding can make of the ratio."""
        if self.exact:
            return num_kept
        return _most_rounded(self.retention_ratio or 1.0, grid.slices, grid.slice_tokens)

    def workspace_bytes(
        self, num_tokens: int, slice_tokens: int, width: int, itemsize: int, num_kept: int | None = None
    ) -> int:
        """The largest of what a block's copy takes, a block's unit vectors, sorting all scores, and the result.

        Unit vectors are made of the quieter half of the channels, as they are and then in float32.
        """
        if num_kept is None and self.retention_ratio is not None:
            num_kept = round_share(self.retention_ratio, num_tokens)
        kept = self.most_tokens(Grid(num_tokens // slice_tokens, 1, slice_tokens), num_kept or num_tokens)
        result = kept * (width * itemsize + 32)  # with positions and places
        copied = min(num_tokens, max(_BLOCK // width, 1)) * width * 4 + 12 * width
        slices, half = min(num_tokens // slice_tokens, _slices_per_block(slice_tokens, width)), max(width // 2, 1)
        units = slices * slice_tokens * max(half * 4 + 32, half * (4 + itemsize) if itemsize != 4 else 0)
        units += (4 * slices + 16) * half  # the slices' means, the sum of all, and which channels
        return max(copied, units + 8 * num_tokens, 37 * num_tokens, result + 8 * num_tokens)

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
        if ratio == 1 or (total or 0) >= tokens.num_tokens:
            return tokens
        slices = tokens.features.view(grid.slices, grid.slice_tokens, -1)
        return tokens.take(_lowest(*_similarities(slices), ratio, total))

    def _budget(self, tokens: VideoTokens) -> tuple[float, int | None]:
        """The ratio, and the exact total or None for the paper's rounding."""
        ratio, total = self.retention_ratio, tokens.num_kept
        if ratio is None and total is None:
            raise ConfigError(
                "VidCom2 was not told how many tokens stay; give retention_ratio, or set num_kept of the tokens"
            )
        if ratio is None:
            return (total or 1) / tokens.num_tokens, total
        if self.exact_total:
            return ratio, round_share(ratio, tokens.num_tokens) if total is None else total
        return ratio, None


def _similarities(slices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarity of each token to the mean of all and to that of its slice, (T, P, C) -> two of (T, P).

    Unit vectors are made twice, block by block, so that those of the whole video never exist at once.
    """
    num_slices, size, width = slices.shape
    quiet = _quiet_channels(slices.flatten(0, 1))
    blocks = torch.split(slices, _slices_per_block(size, width))
    total, to_slice = torch.zeros(len(quiet), device=slices.device), []
    for block in blocks:
        units = _units(block, quiet)
        total += units.sum(dim=(0, 1))
        to_slice.append(_similarity(units, units.mean(dim=1, keepdim=True)))
        del units
    centre = total / (num_slices * size)
    to_video = torch.cat([_similarity(_units(block, quiet), centre) for block in blocks])
    return to_video, torch.cat(to_slice)


def _slices_per_block(size: int, width: int) -> int:
    return max(_BLOCK // (size * width), 1)


def _quiet_channels(embeds: torch.Tensor) -> torch.Tensor:
    """The half of the channels that vary least, ascending, (N, C) -> (C // 2,)."""
    blocks = torch.split(embeds, max(_BLOCK // embeds.shape[1], 1))
    mean = sum((block.float().sum(dim=0) for block in blocks), torch.zeros((), device=embeds.device)) / len(embeds)
    scatter = torch.zeros_like(mean)
    for block in blocks:
        scatter += block.to(torch.float32, copy=True).sub_(mean).square_().sum(dim=0)
    return scatter.argsort(stable=True)[: max(embeds.shape[1] // 2, 1)].sort().values


def _units(block: torch.Tensor, quiet: torch.Tensor) -> torch.Tensor:
    """New float32 unit vectors over the `quiet` channels."""
    units = block.index_select(-1, quiet).float()
    return units.div_(torch.linalg.vector_norm(units, dim=-1, keepdim=True).clamp_(min=1e-12))


def _similarity(units: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Gaussian similarity to `centre`, summed over the bandwidths, (T, P, C) -> (T, P) in (0, 5]. Uses up `units`."""
    squared = units.sub_(centre).square_().sum(dim=-1)
    halves = torch.arange(2, -3, -1, device=units.device).exp2()  # 1 / (2 x bandwidth), of 1/8, 1/4, 1/2, 1 and 2
    return (squared[..., None] * -halves).exp_().sum(dim=-1)


def _lowest(to_video: torch.Tensor, to_slice: torch.Tensor, ratio: float, total: int | None) -> torch.Tensor:
    """Ascending indices of the tokens that stay, (T, P) and (T, P) -> (n,); n = `total` where that is given."""
    slices, size = to_video.shape
    unique = (-to_video.mean(dim=1) / _TEMPERATURE).softmax(dim=0)
    share = (ratio * (1 + unique - 1 / slices)).clamp(max=1) * size
    count = share.round().clamp(min=1) if total is None else _deal(share, size, total)  # round() is half to even
    rank = (to_video + to_slice).argsort(dim=1, stable=True).argsort(dim=1)
    stays = (rank < count[:, None]).flatten()
    if total is None:
        return stays.nonzero()[:, 0]
    return stays.logical_not().argsort(stable=True)[:total]  # how many is known: nothing waits for the device


def _deal(share: torch.Tensor, size: int, total: int) -> torch.Tensor:
    """Whole numbers in [0, size] that add up to `total`, as close to `share` as can be, (T,) -> (T,)."""
    missing = share[:, None] - torch.arange(size, device=share.device)  # of a slice that was dealt 0, 1, ... tokens
    if total >= share.shape[0]:
        missing[:, 0] = torch.inf
    dealt = torch.zeros_like(missing, dtype=torch.bool).flatten()
    dealt[missing.flatten().argsort(descending=True, stable=True)[:total]] = True
    return dealt.view_as(missing).sum(dim=1)


def _most_rounded(ratio: float, slices: int, size: int) -> int:
    """The most that max(1, round(share)) over the slices can add up to, whatever the video shows.

    Each slice is due `least`, and `extra` is spread over them somehow. A slice's count grows by one where its share
    reaches the next half, which takes `step` the first time and 1 from then on.
    """
    slack = 1e-6 * size  # shares are float32
    least, extra = ratio * size * (1 - 1 / slices), ratio * size + slack
    count = max(math.floor(least + 0.5 + slack), 1)
    room = size - count
    if room <= 0:
        return slices * size
    step = count + 0.5 - slack - least
    if step < 1:  # a first token is cheaper than a second one: every slice gets its first
        first = min(slices, int(extra / step))
        more = int(extra - slices * step) if first == slices else 0
    else:  # only where max(1, ...) decides: filling one slice after the other is cheapest
        whole = step + room - 1
        full = min(slices, int(extra / whole))
        first = full * room
        more = min(max(int(extra - full * whole - step + 1), 0), room)
    return min(slices * count + first + more, slices * size)
