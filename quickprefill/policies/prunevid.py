"""Merge what stands still, then keep what the question looks at (PruneVid, arXiv 2412.16117)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from quickprefill.errors import ConfigError, InputError
from quickprefill.policies.base import Compressor, Selector
from quickprefill.policies.seen import GroupAttention
from quickprefill.policies.shared.dealing import by_pool, deal_best
from quickprefill.policies.shared.merging import merge_bytes, merge_segments
from quickprefill.policies.shared.segments import count_tokens, find_segments
from quickprefill.prompt.spans import Grid
from quickprefill.prompt.tokens import VideoTokens

__all__ = ["PruneVid"]

_PAPER_CLUSTERS = 0.5


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

    The config's `keep` is met by the last stage where it has no ratio of its own. Stage 2 keeps just that many. Stage 1
    as the last one deals that many clusters over the static and dynamic sets in proportion to their sizes; where even
    whole sets are too few it clusters nothing, and the least similar static places become dynamic until there are
    enough: up to one token per slice more. Before stage 2 it works as in the paper, but leaves no fewer than stage 2
    is to keep.

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
    cluster_ratio: float | None = None
    """Clusters per token of a static or dynamic set, in (0, 1] (the paper's is 0.5); 1 merges nothing over space. None:
    as many as `keep` asks for, if stage 1 is the last; else the paper's, or more where stage 2 is to keep more."""
    k: int = 7
    """Neighbours that make the density in the clustering, >= 1."""
    min_cluster_tokens: int = 14
    """Sets of at most this many tokens are not clustered, >= 0; but they are where `keep` is to be met."""
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
    def whole_slices(self) -> bool:
        """Stage 1 compares them."""
        return self.merge

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
        return cls(cluster_ratio=0.5, select_tokens=False, prune_cache=False)

    def most_tokens(self, grid: Grid, num_kept: int) -> int:
        """What is left where everything moves, or a token per slice more than `num_kept`; the larger where both count.

        Small sets aren't clustered, so that a few static places may add to what moving ones alone would leave.
        """
        size, slices, least = grid.slice_tokens, grid.slices, self._least(num_kept)
        dealt = 0 if least is None else least + slices
        if self.cluster_ratio is None and not self.select_tokens:
            return min(dealt, grid.num_tokens)
        moving = float(self._clusters(size))
        if slices > 1:  # in segments of two slices, which is where a static token counts most
            moving = max(self._clusters(still) / 2 + self._clusters(size - still) for still in range(size + 1))
        return min(max(int(slices * moving), dealt), grid.num_tokens)

    def workspace_bytes(
        self, num_tokens: int, slice_tokens: int, width: int, itemsize: int, num_kept: int | None = None
    ) -> int:
        """That of a video in which everything moves; `shared.merging.merge_bytes` says of what."""
        grid = Grid(num_tokens // slice_tokens, 1, slice_tokens)
        most = self.most_tokens(grid, num_tokens if num_kept is None else num_kept)
        return merge_bytes(grid, most, width, itemsize)

    def compress(self, tokens: VideoTokens) -> VideoTokens:
        """Stage 1: the merged tokens, in raster order.

        `pools` of the result is 2 x the first slice of the segment for a static token and 2 x its slice + 1 for a
        dynamic one. Means are taken in float32 or better; a token that nothing was merged with is unchanged.

        Raises:
            ConfigError: nobody says how much is to be left; or tokens were dropped before, so that slices are no longer
                whole.
        """
        least = self._least(tokens.num_kept)
        if not self.merge or (least or 0) >= tokens.grid.num_tokens == tokens.num_tokens:
            return tokens
        grid = tokens.grid
        if tokens.num_tokens != grid.num_tokens:
            raise ConfigError(
                f"PruneVid must be the first stage: it compares whole slices, {grid.num_tokens} tokens, but got "
                f"{tokens.num_tokens}"
            )
        if self.cluster_ratio is None and not self.select_tokens and tokens.num_kept is None:
            raise ConfigError(
                "PruneVid was not told how much stage 1 leaves; give cluster_ratio, or set num_kept of the tokens"
            )
        slices = tokens.embeds.view(grid.slices, grid.slice_tokens, -1)  # (T, P, W)
        features = tokens.features.view(grid.slices, grid.slice_tokens, -1)
        segments, similarity = find_segments(features, self.tau, self.temporal_segment_ratio, self.k)
        segments = count_tokens(segments, similarity, self._clusters, least, at_least=self.select_tokens)
        embeds, source, pools = merge_segments(slices, features.shape[-1], segments, self.k)
        positions = tokens.positions.to(source.device)[:, source]
        return replace(tokens, embeds=embeds, positions=positions, source=source, pools=pools)

    def _least(self, num_kept: int | None) -> int | None:
        """How many tokens stage 1 leaves for `keep` to be met; None: it has a ratio of its own, or stage 2 has one."""
        own = self.cluster_ratio is not None or (self.select_tokens and self.keep_ratio is not None)
        return None if own else num_kept

    def _clusters(self, size: int) -> int:
        """How many clusters the ratio makes of a set."""
        ratio = _PAPER_CLUSTERS if self.cluster_ratio is None else self.cluster_ratio
        return size if size <= self.min_cluster_tokens else max(int(size * ratio), 1)

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
        if self.keep_ratio is None:
            return deal_best(seen.num_kept, score, pools)
        best, rank, size = by_pool(score, pools)
        count = (size.double() * self.keep_ratio).long().clamp(min=1)
        return best[rank < count].sort().values

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
