"""Stage 1 of PruneVid, second half: tokens are clustered, and a cluster becomes its mean."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch

from quickprefill.policies.shared.dpc_knn import cluster_means, dpc_knn
from quickprefill.policies.shared.segments import BLOCK, Segment, wide
from quickprefill.prompt.spans import Grid

__all__ = ["merge_bytes", "merge_segments"]


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
            columns = segment.static.nonzero()[:, 0].to(slices.device)
            result.add(_time_mean(own), columns, segment.num_static, segment.start, moves=0)
        columns = (~segment.static).nonzero()[:, 0].to(slices.device)
        step = _slices_per_block(len(columns), slices.shape[2])
        row = 0
        for count, run in groupby(segment.num_dynamic):
            stop = row + len(list(run))
            for at in range(row, stop, step) if count else ():
                result.add(own[at : min(at + step, stop)], columns, count, segment.start + at, moves=1)
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

    def add(self, rows: torch.Tensor, columns: torch.Tensor, count: int, start: int, *, moves: int) -> None:
        """Merge the tokens at `columns` of each row (B, P, W) to `count`; the rows are the slices from `start` on."""
        slices = torch.arange(start, start + len(rows), device=rows.device)[:, None]
        if count == len(columns):
            means = rows.index_select(1, columns)
        else:
            points = rows.index_select(1, columns).double()
            labels, centres = dpc_knn(points[..., : self._width], count, self._k)
            order = centres.argsort(dim=1)  # raster order, and clusters numbered by it
            means = cluster_means(points, order.argsort(dim=1).gather(1, labels), count)
            columns = columns[centres.gather(1, order)]
        stop = self.count + len(rows) * count
        self.embeds[self.count : stop] = means.flatten(0, 1)
        self.places[self.count : stop] = (slices * self._size + columns).flatten()
        self.pools[self.count : stop] = (2 * slices + moves).expand(-1, count).flatten()
        self.count = stop

    def sort(self, start: int, stop: int) -> None:
        """Bring the static and the dynamic tokens of one slice into raster order."""
        order = start + self.places[start:stop].argsort()
        for values in (self.embeds, self.places, self.pools):
            values[start:stop] = values[order]


def _time_mean(segment: torch.Tensor) -> torch.Tensor:
    """Mean over the slices, (T, P, W) -> (1, P, W) in float32 or better."""
    total = segment.new_zeros(segment.shape[1:], dtype=wide(segment))
    for block in torch.split(segment, max(BLOCK // total.numel(), 1)):
        total += block.sum(dim=0, dtype=total.dtype)
    return total.div_(len(segment))[None]


def _slices_per_block(size: int, width: int) -> int:
    """How many slices are clustered at once: their distances and their channels fit a block."""
    return max(BLOCK // max(size * max(size, width), 1), 1)


def merge_bytes(grid: Grid, num_left: int, width: int, itemsize: int) -> int:
    """The most bytes that both halves hold at once beside the video, its `num_left` tokens included. It is one of:

    * Distances between the means of all slices, in float64.
    * Unit vectors of a block of slices, and their sum.
    * The result, and a block of slices that is clustered: as it is and in float64; then with its distances; then with
      who belongs to which cluster, and the means.
    """
    slices, size = grid.slices, grid.slice_tokens
    times = slices * (12 * width + 17 * slices + 64)
    units = 4 * min(max(BLOCK, size * width), grid.num_tokens * width) + 8 * size * width
    block, left = min(slices, _slices_per_block(size, width)), -(-num_left // slices)
    points, merged = 8 * size * width, itemsize * size * width
    if left < size:
        means = points + 9 * size * left + 8 * left * width
        merged = max(points + merged, points + size * (17 * size + 64), means)
    return max(times, units, num_left * (width * itemsize + 16) + max(block * merged, 24 * num_left))
