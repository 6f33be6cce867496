"""Stage 1 of PruneVid, second half: tokens are clustered, and a cluster becomes its mean."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch

from quickprefill.policies.shared.dpc_knn import cluster_means, dpc_knn
from quickprefill.policies.shared.segments import BLOCK, Segment, wide
from quickprefill.prompt.spans import Grid

__all__ = ["merge_bytes", "merge_segments"]

_SLICES = 4
"""Most slices that are averaged or clustered at once; at the width of a 7B model no more fit a block anyway."""
_PARTS = 4
"""How many parts of the channels means are taken of."""


def merge_segments(
    slices: torch.Tensor, width: int, segments: Sequence[Segment], k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The means of the clusters, their places and their pools, in raster order.

    A static set is averaged over time first. A mean stands at its cluster's centre, in the first slice of the segment
    if static. Pools are 2 x the first slice of the segment for a static token, and 2 x its slice + 1 for a dynamic one.

    Args:
        slices: (T, P, W): whole rows are averaged,
        width: but only the first channels of them decide what goes together.
        segments: all of the video.

    Returns:
        (N, W), (N,), (N,).
    """
    result = _Result(slices, width, k, sum(segment.num_static + sum(segment.num_dynamic) for segment in segments))
    for segment in segments:
        own, first = slices[segment.start : segment.stop], result.count
        if segment.num_static:
            columns = segment.static.nonzero()[:, 0].to(slices.device, non_blocking=True)
            result.add(own, columns, segment.num_static, segment.start, moves=False)
        columns = (~segment.static).nonzero()[:, 0].to(slices.device, non_blocking=True)
        step = _slices_per_block(len(columns), slices.shape[2])
        row = 0
        for count, run in groupby(segment.num_dynamic):
            stop = row + len(list(run))
            for at in range(row, stop, step) if count else ():
                result.add(own[at : min(at + step, stop)], columns, count, segment.start + at, moves=True)
            row = stop
        if segment.num_static and segment.num_dynamic[0]:
            result.sort(first, first + segment.num_static + segment.num_dynamic[0])
    return result.embeds, result.places, result.pools


class _Result:
    """Merged tokens, written where they will stay: no second copy of the video."""

    def __init__(self, slices: torch.Tensor, width: int, k: int, num_tokens: int) -> None:
        self._size, self._width, self._k = slices.shape[1], width, k
        self.count = 0
        self.embeds = slices.new_empty(num_tokens, slices.shape[2])
        self.places = torch.empty(num_tokens, dtype=torch.long, device=slices.device)
        self.pools = torch.empty_like(self.places)

    def add(self, slices: torch.Tensor, columns: torch.Tensor, count: int, start: int, *, moves: bool) -> None:
        """Merge the tokens at `columns` of each of the slices (B, P, W), or of their mean, to `count` of them.

        Args:
            start: number of the first slice.
            moves: these are dynamic sets; else their mean is the static set of a segment.
        """
        points = slices.index_select(1, columns) if moves else _time_mean(slices, columns)
        rows = torch.arange(start, start + len(points), device=points.device)[:, None]
        stop = self.count + len(points) * count
        embeds = self.embeds[self.count : stop]
        if count == len(columns):
            embeds.copy_(points.flatten(0, 1))
        else:
            points = points.double()
            labels, centres = dpc_knn(points[..., : self._width], count, self._k)
            order = centres.argsort(dim=1)  # raster order, and clusters numbered by it
            columns = columns[centres.gather(1, order)]
            labels = order.argsort(dim=1).gather(1, labels)
            # Some channels at a time, so that there need not be room for means in float64 beside the tokens.
            for part, whole in zip(points.tensor_split(_PARTS, -1), embeds.tensor_split(_PARTS, -1), strict=True):
                whole.copy_(cluster_means(part, labels, count).flatten(0, 1))
        self.places[self.count : stop] = (rows * self._size + columns).flatten()
        self.pools[self.count : stop] = (2 * rows + moves).expand(-1, count).flatten()
        self.count = stop

    def sort(self, start: int, stop: int) -> None:
        """Bring the static and the dynamic tokens of one slice into raster order."""
        order = start + self.places[start:stop].argsort()
        for values in (self.embeds, self.places, self.pools):
            values[start:stop] = values[order]


def _time_mean(slices: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Mean over the slices of the tokens at `columns`, (T, P, W) -> (1, n, W) in float32 or better."""
    total = slices.new_zeros(len(columns), slices.shape[2], dtype=wide(slices))
    for block in torch.split(slices, _slices_per_block(1, slices[0].numel())):
        total += block.index_select(1, columns).sum(dim=0, dtype=total.dtype)
    return total.div_(len(slices))[None]


def _slices_per_block(size: int, width: int) -> int:
    """How many slices are averaged or clustered at once: their channels fit a block, and so do their distances."""
    return min(max(BLOCK // max(size * max(size, width), 1), 1), _SLICES)


def merge_bytes(grid: Grid, num_left: int, width: int, itemsize: int) -> int:
    """The most bytes that both halves hold at once beside the video, its `num_left` tokens included. It is one of:

    * Distances between the means of all slices, in float64.
    * Unit vectors of a block of slices, and their sum.
    * The result, and the slices that are averaged or clustered: as they are and in float64; with their distances; or
      with who belongs to which cluster and a part of the means.
    """
    slices, size, row = grid.slices, grid.slice_tokens, grid.slice_tokens * width
    precise = max(itemsize, 4)
    times = slices * (12 * width + 17 * slices + 64)
    units = precise * (min(max(BLOCK, row), slices * row) + 2 * row)
    averaged = 2 * precise * row + itemsize * min(slices, _slices_per_block(1, row)) * row
    clustered = 8 * row + max(itemsize * row, 17 * size**2, 9 * size**2 + 8 * row // _PARTS) + 64 * size
    step = min(slices, _slices_per_block(size, width))
    beside = max(step * clustered, averaged if slices > 1 else 0, 24 * num_left)
    return max(times, units, num_left * (width * itemsize + 16) + beside)
