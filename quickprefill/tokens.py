"""VideoTokens: video tokens between the vision tower and the decoder."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from quickprefill.groups import Grid

__all__ = ["VideoTokens"]


@dataclass(frozen=True)
class VideoTokens:
    """Embedded tokens of one video, or of one group of it, with the positions that the host gave them."""

    embeds: torch.Tensor
    """(N, C), after the vision tower's merger."""
    positions: torch.Tensor
    """(3, N) temporal, height and width positions."""
    source: torch.Tensor
    """(N,) where each token stands in the (t, h, w) raster of `grid`, ascending; a merged token has one place too."""
    grid: Grid
    """The raster before anything was dropped: slices, rows and columns of tokens."""
    pools: torch.Tensor | None = None
    """(N,) which pool of tokens each competes in, where a later stage has a budget per pool; None: one pool."""

    @property
    def num_tokens(self) -> int:
        """N."""
        return int(self.embeds.shape[0])

    def take(self, index: torch.Tensor) -> VideoTokens:
        """The tokens at `index`, (n,) ascending."""
        return replace(
            self,
            embeds=self.embeds[index],
            positions=self.positions[:, index.to(self.positions.device)],
            source=self.source[index],
            pools=None if self.pools is None else self.pools[index],
        )

    def slices(self, start: int, stop: int) -> VideoTokens:
        """The tokens that stand in temporal slices [start, stop), renumbered from `start`."""
        size = self.grid.slice_tokens
        inside = (self.source >= start * size) & (self.source < stop * size)
        part = self.take(inside.nonzero()[:, 0])
        return replace(part, source=part.source - start * size, grid=replace(self.grid, slices=stop - start))

    def __repr__(self) -> str:
        return f"VideoTokens(embeds={tuple(self.embeds.shape)}, grid={self.grid})"
