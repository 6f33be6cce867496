"""DPC-KNN: clustering around density peaks, with the density taken from the k nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise

import torch

__all__ = ["cluster_means", "contiguous", "dpc_knn"]

_SAME = 1e-12
"""Points whose squared distance is below this share of their squared norms are one point."""


def dpc_knn(points: torch.Tensor, num_clusters: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cluster each set of points, (B, n, C) -> labels (B, n) and the indices of the centres (B, num_clusters).

    The density of a point falls with the mean squared distance (per channel) of its k nearest points, itself included;
    fewer than k points all count. A centre is dense and far from every denser point: the centres are the points with
    the largest product of density and that distance, and cluster 0 is the largest. Every other point joins the nearest
    centre. Ties go to the lower index, where the original draws noise; so the same points give the same clusters.

    O(n^2 x C) work, O(n^2) memory. Distances are taken in float64, which also keeps TF32 and autocast out, and rounded
    to float32, so that copies of a point lie at equal distances from any other.
    """
    squared = _squared_distances(points)  # (B, n, n)
    num_points = squared.shape[-1]
    spread = squared.topk(min(k, num_points), largest=False).values.mean(dim=-1)  # minus the log of the density
    rank = spread.argsort(dim=-1, stable=True).argsort(dim=-1)  # 0 is the densest
    sparser = rank[:, None, :] >= rank[:, :, None]
    gap = squared.masked_fill(sparser, torch.inf).amin(dim=-1)  # to the nearest denser point
    gap = torch.where(rank == 0, squared.amax(dim=(1, 2))[:, None], gap)
    peak = gap.log() / 2 - spread  # log of density x distance: no underflow where points are far apart
    centres = peak.argsort(dim=-1, descending=True, stable=True)[:, :num_clusters]
    to_centres = squared.gather(2, centres[:, None, :].expand(-1, num_points, -1))
    labels = to_centres.argmin(dim=-1)
    own = torch.arange(num_clusters, device=labels.device).expand_as(centres)
    return labels.scatter(1, centres, own), centres


def cluster_means(points: torch.Tensor, labels: torch.Tensor, num_clusters: int) -> torch.Tensor:
    """Mean of the members of each cluster, (B, n, C) and (B, n) -> (B, num_clusters, C) in float64.

    A product with the membership matrix: adding by index would round differently from run to run on a GPU.
    """
    clusters = torch.arange(num_clusters, device=labels.device)[:, None]
    member = (labels[:, None, :] == clusters).double()
    return (member @ points.double()).div_(member.sum(dim=-1, keepdim=True))


def contiguous(labels: Sequence[int]) -> list[tuple[int, int]]:
    """Cut a labelled sequence into half-open ranges, one for each of the longest runs of a label.

    A label holds its longest runs if they are of two or more. A stretch that no label holds joins the longer of the
    runs beside it, from left to right and in a tie the left one. If no label holds any, there is one range.

    >>> contiguous([4, 4, 4, 1, 2, 2, 4])
    [(0, 4), (4, 7)]
    """
    runs = _runs(labels)
    longest: dict[int | None, int] = {}
    for label, length in runs:
        longest[label] = max(longest.get(label, 0), length)
    stretches = _runs(
        [label if longest[label] == length > 1 else None for label, length in runs for _ in range(length)]
    )
    merged: list[tuple[int | None, int]] = []
    for index, (label, length) in enumerate(stretches):
        if label is None:
            beside = merged[-1:] + stretches[index + 1 : index + 2]
            label = max(beside, key=lambda run: run[1], default=(0, 0))[0]
        if merged and merged[-1][0] == label:
            length += merged.pop()[1]
        merged.append((label, length))
    return list(pairwise(accumulate((length for _, length in merged), initial=0)))


def _runs(labels: Sequence[int | None]) -> list[tuple[int | None, int]]:
    """Label and length of each run of equal labels."""
    return [(label, len(list(run))) for label, run in groupby(labels)]


def _squared_distances(points: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distances divided by the number of channels, (B, n, C) -> (B, n, n) in float32."""
    points = points.double()
    products = points @ points.transpose(1, 2)
    norms = products.diagonal(dim1=1, dim2=2).clone()
    same = norms[:, :, None] + norms[:, None, :]
    squared = products.mul_(-2).add_(same)  # in place: n^2 numbers of 8 bytes are what limits n
    same.mul_(_SAME)
    squared.masked_fill_(squared <= same, 0).div_(points.shape[-1])
    del same
    return squared.float()
