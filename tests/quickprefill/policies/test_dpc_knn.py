"""DPC-KNN and contiguous segments against their definitions, written out in loops and float64."""

import itertools
import math

import pytest
import torch

from quickprefill.policies.shared.dpc_knn import cluster_means, contiguous, dpc_knn


def literal_dpc_knn(points, num_clusters, k):
    """Labels and centres of one list of points."""
    points = [[float(value) for value in point] for point in points]
    everyone = range(len(points))
    squared = [
        [sum((a - b) ** 2 for a, b in zip(points[i], points[j], strict=True)) / len(points[i]) for j in everyone]
        for i in everyone
    ]
    nearest = [sorted(row)[:k] for row in squared]
    density = [math.exp(-sum(near) / len(near)) for near in nearest]
    scores = []
    for i in everyone:
        denser = [j for j in everyone if density[j] > density[i] or (density[j] == density[i] and j < i)]
        gap = min(squared[i][j] for j in denser) if denser else max(map(max, squared))
        scores.append(density[i] * math.sqrt(gap))
    centres = sorted(everyone, key=lambda i: (-scores[i], i))[:num_clusters]
    labels = [min(range(num_clusters), key=lambda c: (squared[i][centres[c]], c)) for i in everyone]
    for label, centre in enumerate(centres):
        labels[centre] = label
    return labels, centres


def literal_contiguous(labels):
    """Slice by slice: mark what each label holds, fill the gaps, cut where the label changes."""
    size = len(labels)
    held = [None] * size
    for label in set(labels):
        runs = [
            (start, stop)
            for start in range(size)
            for stop in range(start + 1, size + 1)
            if all(other == label for other in labels[start:stop])
            and (start == 0 or labels[start - 1] != label)
            and (stop == size or labels[stop] != label)
        ]
        longest = max(stop - start for start, stop in runs)
        for start, stop in runs:
            if stop - start == longest > 1:
                held[start:stop] = [label] * longest
    while None in held:
        start = stop = held.index(None)
        while stop < size and held[stop] is None:
            stop += 1
        left = right = 0
        while start - left > 0 and held[start - left - 1] == held[start - 1]:
            left += 1
        while stop + right < size and held[stop + right] == held[stop]:
            right += 1
        label = 0 if left == right == 0 else held[start - 1] if left >= right else held[stop]
        held[start:stop] = [label] * (stop - start)
    cuts = [0] + [t for t in range(1, size) if held[t] != held[t - 1]] + [size]
    return list(itertools.pairwise(cuts))


@pytest.mark.parametrize("k", [1, 5, 7])
@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 8, 14, 15, 30])
def test_random_points(size, k):
    points = torch.randn(3, size, 4, generator=torch.Generator().manual_seed(size))
    for num_clusters in {1, max(size // 4, 1), max(size // 2, 1), size}:
        labels, centres = dpc_knn(points, num_clusters, k)
        for row in range(3):
            expected = literal_dpc_knn(points[row], num_clusters, k)
            assert (labels[row].tolist(), centres[row].tolist()) == expected
        assert all(set(row) == set(range(num_clusters)) for row in labels.tolist())


@pytest.mark.parametrize("seed", range(12))
def test_ties(seed):
    """Points on a small lattice: copies, and equal distances everywhere."""
    points = torch.randint(0, 3, (1, 16, 2), generator=torch.Generator().manual_seed(seed)).float()
    for num_clusters in (1, 4, 8, 16):
        labels, centres = dpc_knn(points, num_clusters, 7)
        assert (labels[0].tolist(), centres[0].tolist()) == literal_dpc_knn(points[0], num_clusters, 7)


def test_points_that_are_all_the_same():
    labels, centres = dpc_knn(torch.full((1, 9, 5), 0.3), 3, 7)
    assert centres.tolist() == [[0, 1, 2]]
    assert labels.tolist() == [[0, 1, 2, 0, 0, 0, 0, 0, 0]]


def test_by_hand():
    """A clump around 0, another around 10, a stray point between: two clusters, the tighter clump first."""
    points = torch.tensor([10.2, 0.0, 0.1, 10.0, 4.0, -0.1, 9.8]).view(1, 7, 1)
    labels, centres = dpc_knn(points, 2, 3)
    assert centres.tolist() == [[1, 3]]
    assert labels.tolist() == [[1, 0, 0, 1, 0, 0, 1]]


def test_points_too_far_apart_for_a_density():
    """Their densities underflow to 0 in float64 too, and the original would pick centres by noise."""
    points = torch.tensor([0.0, 40.0, 5000.0, 5040.0]).view(1, 4, 1)
    assert math.exp(-(40**2) / 2) == 0
    labels, centres = dpc_knn(points, 2, 2)
    assert centres.tolist() == [[0, 2]]
    assert labels.tolist() == [[0, 0, 1, 1]]


def test_copies_far_from_the_origin_are_one_point():
    """With distances taken in float32, the first two would be 0.1 apart."""
    points = torch.tensor([[1000.1, 2000.3], [1000.1, 2000.3], [1000.2, 2000.3]])[None]
    assert dpc_knn(points, 2, 3)[0].tolist() == [[0, 0, 1]]


def test_means():
    points = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels, _ = dpc_knn(points, 4, 7)
    means = cluster_means(points, labels, 4)
    for row, label in itertools.product(range(2), range(4)):
        members = points[row][labels[row] == label].double()
        torch.testing.assert_close(means[row, label], members.mean(dim=0))


def test_every_labelling_of_a_short_video():
    for size in range(1, 7):
        for labels in itertools.product(range(3), repeat=size):
            assert contiguous(labels) == literal_contiguous(labels), labels


@pytest.mark.parametrize(
    ("labels", "segments"),
    [
        ([0], [(0, 1)]),
        ([0, 1, 2, 3], [(0, 4)]),  # nothing is held
        ([1, 1, 0, 1, 1], [(0, 5)]),  # both longest runs are held, and meet
        ([2, 2, 0, 1, 1, 1], [(0, 2), (2, 6)]),  # the gap joins the longer run
        ([2, 2, 0, 1, 1], [(0, 3), (3, 5)]),  # in a tie the left one
        ([4, 4, 4, 1, 2, 2, 4], [(0, 4), (4, 7)]),  # a shorter run of a label that is held elsewhere is a gap
        ([1, 1, 0, 2, 0, 3, 3, 3], [(0, 2), (2, 8)]),  # one gap of three slices
    ],
)
def test_segments_by_hand(labels, segments):
    assert contiguous(labels) == segments
