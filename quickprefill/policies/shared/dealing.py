"""Whole numbers that share out a total in proportion to sizes."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch

__all__ = ["by_pool", "deal", "deal_best"]


def deal(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` dealt over sets of these sizes, total x size / N to each, by largest remainder (ties: the earlier set).

    Every set that isn't empty gets one first, if there are that many; none gets more than its size.

    >>> deal(6, [10, 4, 1]), deal(2, [10, 4, 1])
    ([4, 1, 1], [1, 1, 0])
    """
    num_tokens = sum(sizes)
    least = int(total >= sum(size > 0 for size in sizes))
    counts = [max(total * size // num_tokens, min(least, size)) for size in sizes]

    def below(index: int) -> int:
        """How far a set is below its due, times N."""
        return total * sizes[index] - counts[index] * num_tokens

    spare = total - sum(counts)
    if spare > 0:
        for index in sorted(range(len(sizes)), key=lambda index: (-below(index), index))[:spare]:
            counts[index] += 1
        return counts
    # Sets that are due less than one token got one: others give theirs back, first who is furthest above its due.
    above = [(below(index), -index) for index in range(len(sizes)) if counts[index] > 1]
    heapq.heapify(above)
    for _ in range(-spare):
        _, index = heapq.heappop(above)
        counts[-index] -= 1
        if counts[-index] > 1:
            heapq.heappush(above, (below(-index), index))
    return counts


def deal_best(total: int, scores: torch.Tensor, pools: torch.Tensor) -> torch.Tensor:
    """Ascending indices of `total` tokens: of each pool the highest scores (ties: the earlier), as many as `deal` says.

    Args:
        scores: (N,).
        pools: (N,) numbers that name the pool of each token; pools are dealt to in the order of their numbers.

    Nothing waits for the device, on which the pools are not even counted.
    """
    best, rank, size = by_pool(scores, pools)
    # One token at a time, always for the pool that is furthest below its due; times N, so in integers.
    due = total * size - rank * scores.shape[0]
    first = rank == 0
    due = torch.where(first & (first.sum() <= total), torch.iinfo(due.dtype).max, due)
    return best[due.argsort(descending=True, stable=True)[:total]].sort().values


def by_pool(scores: torch.Tensor, pools: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens pool by pool, the best of each first, (N,) and (N,) -> their indices, ranks in the pool, pool's sizes."""
    best = scores.argsort(descending=True, stable=True)
    best = best[pools[best].argsort(stable=True)]
    pools = pools[best]
    start = torch.searchsorted(pools, pools)
    rank = torch.arange(pools.shape[0], device=pools.device) - start
    return best, rank, torch.searchsorted(pools, pools, right=True) - start
