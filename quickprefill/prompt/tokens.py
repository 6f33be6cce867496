"""VideoTokens: video tokens between the vision tower and the decoder."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from quickprefill.prompt.spans import Grid

__all__ = ["VideoTokens"]


@dataclass(frozen=True)
class VideoTokens:
    """Embedded tokens of one video, or of one group of it, with the positions that the host gave them."""

    embeds: torch.Tensor
    """(N, C) after the vision tower's merger; rows are wider where features of later layers ride behind `width`."""
    positions: torch.Tensor
    """(P, N): P = 3, the temporal, height and width positions, or P = 1."""
    source: torch.Tensor
    """(N,) where each token stands in the (t, h, w) raster of `grid`, ascending; a merged token has one place too."""
    grid: Grid
    """The raster before anything was dropped: slices, rows and columns of tokens."""
    pools: torch.Tensor | None = None
    """(N,) which pool of tokens each competes in, where a later stage has a budget per pool; None: one pool."""
    num_kept: int | None = None
    """How many of the N tokens compress() is to leave; None: nobody said."""
    width: int | None = None
    """C, where rows are wider than the embedding; None: they are not."""
    question: torch.Tensor | None = None
    """(Q, C) embeddings of the text behind the last video, given where the compressor's `uses_question`."""
    weights: torch.nn.Module | None = field(default=None, repr=False, compare=False)
    """What the compressor's new_weights() made for this model, and training since."""
    training: bool = False
    """Whether a loss follows: then what is learned may draw noise and give a thumbnail; a prefill never does."""
    thumbnail: torch.Tensor | None = field(default=None, repr=False, compare=False)
    """(n, C), or wider, n <= N: what a training forward puts before the video, at the positions of its first tokens."""

    @property
    def num_tokens(self) -> int:
        """N."""
        return int(self.embeds.shape[0])

    @property
    def features(self) -> torch.Tensor:
        """(N, C): what a policy looks at."""
        return self.embeds if self.width is None else self.embeds[:, : self.width]

    def take(self, index: torch.Tensor) -> VideoTokens:
        """The tokens at `index`, (n,) ascending."""
        # On the way to a GPU the copy need not wait for what is queued there; on the way back it must.
        positions = self.positions.to(index.device, non_blocking=index.device.type != "cpu")
        return replace(
            self,
            embeds=self.embeds[index],
            positions=positions[:, index],
            source=self.source[index],
            pools=None if self.pools is None else self.pools[index],
        )

    def cut(self, *stops: int) -> list[VideoTokens]:
        """The tokens of temporal slices [0, stops[0]), [stops[0], stops[1]), ..., renumbered.

        Waits for the device where tokens were dropped, to learn how many are left in each part.
        """
        size = self.grid.slice_tokens
        places = [stop * size for stop in stops]
        ends = places
        if self.num_tokens != self.grid.num_made:
            ends = torch.searchsorted(self.source, torch.tensor(places, device=self.source.device)).tolist()
        parts, begin, start = [], 0, 0
        for stop, end in zip(stops, ends, strict=True):
            own = slice(begin, end)  # tokens stand in order, so a part is a view
            parts.append(
                replace(
                    self,
                    embeds=self.embeds[own],
                    positions=self.positions[:, own],
                    source=self.source[own] - start * size,
                    grid=self.grid.part(start, stop),
                    pools=None if self.pools is None else self.pools[own],
                    num_kept=None,
                    thumbnail=self.thumbnail if start == 0 else None,
                )
            )
            begin, start = end, stop
        return parts

    def __repr__(self) -> str:
        return f"VideoTokens(embeds={tuple(self.embeds.shape)}, grid={self.grid})"
