"""Merge what stands still, then keep what the question looks at (PruneVid, arXiv 2412.16117)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from quickprefill.errors import ConfigError, InputError
from quickprefill.policies.base import Compressor, Selector
from quickprefill.policies.seen import GroupAttention
from quickprefill.policies.shared.dpc_knn import cluster_means, contiguous, dpc_knn
from quickprefill.prompt.tokens import VideoTokens

__all__ = ["PruneVid"]

_BLOCK = 1 << 21
"""Numbers in the largest temporary: slices are compared and clustered in blocks."""


@dataclass(frozen=True)
class PruneVid(Compressor, Selector):
    """Three stages: merge tokens before the decoder, select at one layer by the question, prune the cache below it.

    Stage 1, `compress`. Similar temporal slices are grouped into contiguous segments. In a segment, a place (row,
    column) whose tokens stay similar is static, and its tokens are averaged over time; the others are dynamic and stay
    apart. Then the segment's static tokens are clustered over space, and so are each slice's dynamic ones; every
    cluster becomes its mean. O(T^2 x C + T x P^2 x C) work for T slices of P tokens: the one method here whose cost
    is not linear in the video.

    Stage 2, `select`. At `layer`, the tokens with the most attention from the question stay.

    Stage 3. The layers up to `layer` keep only those tokens in their caches too.

    Where this differs from the authors' program:

    * A merged token stands at the place of its cluster's centre, in the first slice of the segment if static, else in
      its own slice, and takes the 3-D position there; no two tokens share a place. The original numbers the merged
      tokens 0, 1, 2, ..., which would tell an M-RoPE model nothing about where they were.
    * Tokens come out in raster order. In the original the static ones of a segment come first, then the dynamic ones
      slice by slice, each set with the densest cluster first.
    * Ties go to the lower index, not to noise. Videos of fewer than k or 1 / temporal_segment_ratio slices, where the
      original stops, are clustered with the neighbours there are, into one cluster at least; a lone slice is dynamic.
    * Every pool keeps at least one token in stage 2. The original's int(n x keep_ratio) is 0 for pools smaller than
      1 / keep_ratio, which erases a small object that moves through a still scene.
    """

    name: ClassVar[str] = "prunevid"

    tau: float = 0.8
    """A place is static if the mean cosine over all pairs of slices is above this, -1 <= tau <= 1; at 1 none is."""
    temporal_segment_ratio: float = 0.25
    """Clusters of slices per slice, in (0, 1]; segments are what is contiguous of them."""
    cluster_ratio: float = 0.5
    """Clusters per token of a static or dynamic set, in (0, 1]; 1 merges nothing over space."""
    k: int = 7
    """Neighbours that make the density in the clustering, >= 1."""
    min_cluster_tokens: int = 14
    """Sets of at most this many tokens are not clustered, >= 0."""
    keep_ratio: float | None = None
    """Share of the merged tokens that stage 2 keeps (the paper's alpha is 0.4), in (0, 1]; None: the config's `keep`,
    taken of what the vision tower made."""
    layer: int = 10
    """Decoder layer, from 0, after which stage 2 drops tokens (the paper's M)."""
    merge: bool = True
    """Run stage 1."""
    select_tokens: bool = True
    """Run stage 2."""
    prune_cache: bool = True
    """Run stage 3; nothing to do without stage 2."""
    attention: Literal["position_free", "causal"] = "position_free"
    """Attention that stage 2 reads. "position_free": the authors' map, queries and keys before rotary embedding and no
    mask. "causal": the attention that the layer computes."""
    budget: Literal["segment", "global"] = "segment"
    """What stage 2's share is taken of. "segment": of each pool, which is the static set of a segment or the dynamic
    set of a slice. "global": of all tokens together."""
    scope: Literal["video", "group"] = "video"
    """What stage 1 cuts into segments. "video" needs every token first; "group" is for unbounded video, where a
    segment ends with its group."""

    def __post_init__(self) -> None:
        if not -1 <= self.tau <= 1:
            raise ConfigError(f"tau must be in [-1, 1], got {self.tau}")
        for field in ("temporal_segment_ratio", "cluster_ratio", "keep_ratio"):
            value = getattr(self, field)
            if value is not None and not 0 < value <= 1:
                raise ConfigError(f"{field} must be in (0, 1], got {getattr(self, field)}")
        for field, least in (("k", 1), ("min_cluster_tokens", 0), ("layer", 0)):
            if getattr(self, field) < least:
                raise ConfigError(f"{field} must be >= {least}, got {getattr(self, field)}")
        for field, first, second in (
            ("attention", "position_free", "causal"),
            ("budget", "segment", "global"),
            ("scope", "video", "group"),
        ):
            if getattr(self, field) not in (first, second):
                raise ConfigError(f"{field} must be {first!r} or {second!r}, got {getattr(self, field)!r}")

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage 1 is compress, stages 2 and 3 are select."""
        return ("compress",) * self.merge + ("select",) * self.select_tokens

    @property
    def compress_ratio(self) -> float | None:
        """`cluster_ratio`: stage 1's own dial."""
        return self.cluster_ratio

    @property
    def select_ratio(self) -> float | None:
        """`keep_ratio`: stage 2's own dial."""
        return self.keep_ratio

    @property
    def uses_question(self) -> bool:
        """Stage 2 does."""
        return self.select_tokens

    @classmethod
    def paper(cls) -> PruneVid:
        """The values of the paper: tau 0.8, cluster_ratio 0.5, keep_ratio 0.4, layer 10."""
        return cls(cluster_ratio=0.5, keep_ratio=0.4)

    @classmethod
    def light(cls) -> PruneVid:
        """Prunes less than the paper: tau 0.9, cluster_ratio 0.75, keep_ratio 0.6. These values are ours."""
        return cls(tau=0.9, cluster_ratio=0.75, keep_ratio=0.6)

    @classmethod
    def strong(cls) -> PruneVid:
        """Prunes more than the paper: tau 0.7, cluster_ratio 0.3, keep_ratio 0.25. These values are ours."""
        return cls(tau=0.7, cluster_ratio=0.3, keep_ratio=0.25)

    @classmethod
    def merge_only(cls) -> PruneVid:
        """Stage 1 alone, with the paper's values: tau 0.8, cluster_ratio 0.5."""
        return cls(select_tokens=False, prune_cache=False)

    def compress(self, tokens: VideoTokens) -> VideoTokens:
        """Stage 1: the merged tokens, in raster order.

        `pools` of the result is 2 x the first slice of the segment for a static token and 2 x its slice + 1 for a
        dynamic one. Means are taken in float32 or better; a token that nothing was merged with is unchanged.

        Raises:
            ConfigError: tokens were dropped before; the slices are no longer whole.
        """
        if not self.merge:
            return tokens
        grid = tokens.grid
        if tokens.num_tokens != grid.num_tokens:
            raise ConfigError(
                f"PruneVid must be the first stage: it compares whole slices, {grid.num_tokens} tokens, but got "
                f"{tokens.num_tokens}"
            )
        slices = tokens.embeds.reshape(grid.slices, grid.slice_tokens, -1)  # (T, P, C)
        sets = [merged for start, stop in self._segments(slices) for merged in self._merge(slices, start, stop)]
        source = torch.cat([places.flatten() for _, places, _ in sets])
        order = source.argsort()
        return replace(
            tokens.take(source[order]),
            embeds=torch.cat([embeds.flatten(0, 1) for embeds, _, _ in sets])[order].to(tokens.embeds.dtype),
            pools=torch.cat([pools.expand_as(places).flatten() for _, places, pools in sets])[order],
        )

    def select(self, seen: GroupAttention) -> torch.Tensor:
        """Stage 2: ascending indices of the tokens that stay.

        A token's score is its largest probability over heads and rows; those with the highest scores of each pool stay
        (ties: the earlier). With `keep_ratio` they are max(1, int(n x keep_ratio)) of a pool of n; else `seen.num_kept`
        are dealt over the pools in proportion to their sizes, by largest remainder, one to each pool first.

        Raises:
            InputError: there is no row.
        """
        if seen.attention.shape[1] == 0:
            raise InputError("PruneVid selects tokens by the question, but no text follows the video")
        score = seen.attention.amax(dim=(0, 1))
        pools = None if self.budget == "global" else seen.pools
        pools = torch.zeros_like(score, dtype=torch.long) if pools is None else pools.to(score.device)
        best = score.argsort(descending=True, stable=True)
        best = best[pools[best].argsort(stable=True)]  # pool by pool, the best of each first
        rank, size = _ranks(pools[best])
        if self.keep_ratio is not None:
            count = (size.double() * self.keep_ratio).long().clamp(min=1)
            return best[rank < count].sort().values
        # Largest remainder, one at a time: next comes the pool furthest below its due, num_kept x size / N. Times N, so
        # in integers; and nothing waits for the device to count pools.
        due = seen.num_kept * size - rank * seen.num_tokens
        first = rank == 0
        due = torch.where(first & (first.sum() <= seen.num_kept), torch.iinfo(due.dtype).max, due)
        return best[due.argsort(descending=True, stable=True)[: seen.num_kept]].sort().values

    @staticmethod
    def stats(before: VideoTokens, after: VideoTokens) -> dict[str, float]:
        """What stage 1 did: tokens before and after, per cent saved, share of `after` that stands for static places."""
        static = 0.0 if after.pools is None else float((after.pools % 2 == 0).double().mean())
        return {
            "original_tokens": before.num_tokens,
            "compressed_tokens": after.num_tokens,
            "reduction_percentage": 100 * (1 - after.num_tokens / before.num_tokens),
            "static_ratio": static,
        }

    def _segments(self, slices: torch.Tensor) -> list[tuple[int, int]]:
        """Half-open ranges of similar slices, (T, P, C) -> at most T of them."""
        descriptors = slices.mean(dim=1, dtype=_wide(slices))
        num_clusters = max(int(len(slices) * self.temporal_segment_ratio), 1)
        labels, _ = dpc_knn(descriptors[None], num_clusters, self.k)
        return contiguous(labels[0].tolist())

    def _merge(self, slices: torch.Tensor, start: int, stop: int) -> list[tuple[torch.Tensor, ...]]:
        """The static set and the dynamic sets of segment [start, stop): embeds (B, n, C), places (B, n), pools (B, 1).

        The static set has one row, for the first slice; the dynamic sets have a row per slice.
        """
        segment = slices[start:stop]
        static = _similarity(segment) > self.tau
        sets: list[tuple[torch.Tensor, ...]] = []
        for moves, inside in enumerate((static, ~static)):
            columns = inside.nonzero()[:, 0]
            if columns.shape[0] == 0:
                continue
            rows = torch.arange(start, stop if moves else start + 1, device=slices.device)[:, None]
            points = segment[:, columns] if moves else segment.mean(dim=0, dtype=_wide(segment))[columns][None]
            embeds, centres = self._cluster(points)
            sets.append((embeds, rows * slices.shape[1] + columns[centres], 2 * rows + moves))
        return sets

    def _cluster(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means of the clusters of each set and the indices of their centres, (B, n, C) -> (B, m, C) and (B, m)."""
        sets, size, channels = points.shape
        count = max(int(size * self.cluster_ratio), 1)
        if size <= self.min_cluster_tokens or count == size:
            return points.to(_wide(points)), torch.arange(size, device=points.device).expand(sets, size)
        means, centres = [], []
        for block in torch.split(points, max(_BLOCK // (size * max(size, channels)), 1)):
            block = block.double()  # once for both
            labels, peaks = dpc_knn(block, count, self.k)
            means.append(cluster_means(block, labels, count).to(_wide(points)))
            centres.append(peaks)
        return torch.cat(means), torch.cat(centres)


def _wide(states: torch.Tensor) -> torch.dtype:
    """float32, or float64 where the states have it."""
    return torch.promote_types(states.dtype, torch.float32)


def _ranks(pools: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of (N,) ascending pool numbers, its rank within its pool and the pool's size."""
    start = torch.searchsorted(pools, pools)
    rank = torch.arange(pools.shape[0], device=pools.device) - start
    return rank, torch.searchsorted(pools, pools, right=True) - start


def _similarity(segment: torch.Tensor) -> torch.Tensor:
    """Mean cosine over all pairs of different slices, per place, (W, P, C) -> (P,); -inf where there is no pair.

    The sum over all pairs is the squared norm of the sum of the unit vectors: no (W, W) matrix is needed.
    """
    width = segment.shape[0]
    if width == 1:
        return torch.full(segment.shape[1:2], -torch.inf, device=segment.device)
    total = segment.new_zeros(segment.shape[1:], dtype=_wide(segment))
    itself = total.new_zeros(segment.shape[1])  # cosines of tokens with themselves: 1, or 0 for a zero token
    for block in torch.split(segment, max(_BLOCK // total.numel(), 1)):
        norms = torch.linalg.vector_norm(block, dim=-1, keepdim=True, dtype=total.dtype)
        total += (block / norms.clamp(min=1e-12)).sum(dim=0)
        itself += (norms > 0).sum(dim=(0, 2))
    return ((total.square().sum(dim=-1) - itself) / (width * (width - 1))).clamp(max=1)
