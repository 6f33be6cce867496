"""VideoTokens: video tokens between the vision tower and the decoder."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from quickprefill.prompt.spans import Grid

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
            positions=self.positions.to(index.device)[:, index],
            source=self.source[index],
            pools=None if self.pools is None else self.pools[index],
        )

    def cut(self, *stops: int) -> list[VideoTokens]:
        """The tokens of temporal slices [0, stops[0]), [stops[0], stops[1]), ..., renumbered. Waits for the device."""
        size = self.grid.slice_tokens
        places = torch.tensor([stop * size for stop in stops], device=self.source.device)
        parts, begin, start = [], 0, 0
        for stop, end in zip(stops, torch.searchsorted(self.source, places).tolist(), strict=True):
            part = self.take(torch.arange(begin, end, device=self.source.device))
            grid = replace(self.grid, slices=stop - start)
            parts.append(replace(part, source=part.source - start * size, grid=grid))
            begin, start = end, stop
        return parts

    def __repr__(self) -> str:
        return f"VideoTokens(embeds={tuple(self.embeds.shape)}, grid={self.grid})"
