"""Stage 1 of PruneVid, first half: which slices and places are alike, and how many tokens are left of each set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch

from quickprefill.policies.shared.dealing import deal
from quickprefill.policies.shared.dpc_knn import contiguous, dpc_knn

__all__ = ["BLOCK", "Segment", "count_tokens", "find_segments", "wide"]

BLOCK = 1 << 21
"""Numbers in the largest temporary of either half: slices go through in blocks, but one slice is not divided."""


@dataclass(frozen=True)
class Segment:
    """Contiguous slices, the places in them that stand still, and how many tokens shall be left of each set."""

    start: int
    stop: int
    static: torch.Tensor
    """(P,) on the CPU: which places of a slice are static."""
    num_static: int = 0
    """Tokens to leave of the static set."""
    num_dynamic: tuple[int, ...] = ()
    """Tokens to leave of the dynamic set of each slice."""

    @property
    def length(self) -> int:
        """Slices."""
        return self.stop - self.start

    @property
    def sizes(self) -> list[int]:
        """Tokens of the static set, then of each slice's dynamic set, before clustering."""
        still = int(self.static.sum())
        return [still] + [len(self.static) - still] * self.length

    def leaving(self, counts: Sequence[int]) -> Segment:
        """With how many tokens to leave of each of `sizes`."""
        return replace(self, num_static=counts[0], num_dynamic=tuple(counts[1:]))


def find_segments(
    slices: torch.Tensor, tau: float, clusters_per_slice: float, k: int
) -> tuple[list[Segment], torch.Tensor]:
    """Cut a video, (T, P, C), into segments with their static places, those more similar than `tau`.

    Also returns how similar the tokens at each place of a segment are, (G, P) on the CPU. Waits for the device.
    """
    spans = _spans(slices, clusters_per_slice, k)
    similarity = torch.stack([_similarity(slices[start:stop]) for start, stop in spans]).cpu()
    static = similarity > tau
    return [Segment(*span, inside) for span, inside in zip(spans, static, strict=True)], similarity


def count_tokens(
    segments: Sequence[Segment],
    similarity: torch.Tensor,
    clusters: Callable[[int], int],
    wanted: int | None,
    *,
    at_least: bool,
) -> list[Segment]:
    """The segments with how many tokens are left of each of their sets.

    By one dial at a time: what `clusters` makes of a set's size, unless that isn't wanted; else a share of each set
    that makes `wanted` tokens; and where even whole sets are too few, fewer static places.

    Args:
        similarity: (G, P), which places become dynamic first: the least similar.
        wanted: tokens to leave of the video; None: what `clusters` leaves.
        at_least: or more, if `clusters` leaves more.
    """
    if wanted is not None and sum(sum(segment.sizes) for segment in segments) < wanted:
        segments = _fewer_static(segments, similarity, wanted)
        return [segment.leaving(segment.sizes) for segment in segments]
    sizes = [size for segment in segments for size in segment.sizes]
    counts = [clusters(size) for size in sizes]
    if wanted is not None and (not at_least or sum(counts) < wanted):
        # Every set gets a token, if that is not more than one per slice too many.
        sets, num_slices = sum(size > 0 for size in sizes), segments[-1].stop
        counts = deal(max(wanted, min(sets, wanted + num_slices)), sizes)
    left = iter(counts)
    return [segment.leaving(list(islice(left, 1 + segment.length))) for segment in segments]


def _spans(slices: torch.Tensor, clusters_per_slice: float, k: int) -> list[tuple[int, int]]:
    """Half-open ranges of similar slices, (T, P, C) -> at most T of them. Waits for the device."""
    blocks = torch.split(slices, max(BLOCK // slices[0].numel(), 1))
    descriptors = torch.cat([block.mean(dim=1, dtype=wide(slices)) for block in blocks])
    num_clusters = max(int(len(slices) * clusters_per_slice), 1)
    labels, _ = dpc_knn(descriptors[None], num_clusters, k)
    return contiguous(labels[0].tolist())


def _similarity(segment: torch.Tensor) -> torch.Tensor:
    """Mean cosine over all pairs of different slices, per place, (W, P, C) -> (P,); -inf where there is no pair.

    The sum over all pairs is the squared norm of the sum of the unit vectors: no (W, W) matrix is needed.
    """
    width = segment.shape[0]
    if width == 1:
        return torch.full(segment.shape[1:2], -torch.inf, dtype=wide(segment), device=segment.device)
    total = segment.new_zeros(segment.shape[1:], dtype=wide(segment))
    itself = total.new_zeros(segment.shape[1])  # cosines of tokens with themselves: 1, or 0 for a zero token
    for block in torch.split(segment, max(BLOCK // total.numel(), 1)):
        norms = torch.linalg.vector_norm(block, dim=-1, keepdim=True, dtype=total.dtype)
        total += (block / norms.clamp(min=1e-12)).sum(dim=0)
        itself += (norms > 0).sum(dim=(0, 2))
    return ((total.square_().sum(dim=-1) - itself) / (width * (width - 1))).clamp(max=1)


def _fewer_static(segments: Sequence[Segment], similarity: torch.Tensor, wanted: int) -> list[Segment]:
    """With fewer static places, so that at least `wanted` tokens are left if none are clustered.

    The least similar places become dynamic first (ties: the earlier), just as many as it takes: fewer than `wanted` + T
    tokens are left.
    """
    static = torch.stack([segment.static for segment in segments])
    length = torch.tensor([segment.length for segment in segments])[:, None].expand_as(static)
    missing = wanted - int(torch.where(static, 1, length).sum())
    order = torch.where(static, similarity, torch.inf).flatten().argsort(stable=True)
    gain = (length - 1).flatten()[order].cumsum(0)
    static = static.flatten()
    static[order[: int(torch.searchsorted(gain, missing)) + 1]] = False
    rows = static.view_as(similarity)
    return [replace(segment, static=inside) for segment, inside in zip(segments, rows, strict=True)]


def wide(states: torch.Tensor) -> torch.dtype:
    """float32, or float64 where the states have it."""
    return torch.promote_types(states.dtype, torch.float32)
