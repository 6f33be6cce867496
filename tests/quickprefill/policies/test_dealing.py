"""Dealing by largest remainder, against dealing one token at a time."""

import pytest
import torch

from quickprefill.policies.shared.dealing import deal, deal_best

SIZES = [
    [1],
    [7],
    [3, 3, 3],
    [10, 4, 1],
    [1, 1, 1, 1, 50],
    [0, 5, 0, 2, 9],
    [5, 17, 1, 2, 2, 17, 0, 5],
    [40, 1, 1, 1, 1, 1, 1, 1],
]


def literal(total, sizes):
    """One to each if there are that many, then always to the set furthest below its due, the earlier one in a tie."""
    counts = [int(size > 0 and total >= sum(size > 0 for size in sizes)) for size in sizes]
    while sum(counts) < total:
        room = [index for index, size in enumerate(sizes) if counts[index] < size]
        counts[max(room, key=lambda i: (total * sizes[i] - counts[i] * sum(sizes), -i))] += 1
    return counts


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_one_token_at_a_time(sizes):
    for total in range(1, sum(sizes) + 1):
        assert deal(total, sizes) == literal(total, sizes)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_best_of_each_pool(sizes):
    generator = torch.Generator().manual_seed(len(sizes))
    pools = torch.tensor([3 * index for index, size in enumerate(sizes) for _ in range(size)])
    pools = pools[torch.randperm(len(pools), generator=generator)]
    scores = torch.randint(0, 5, (len(pools),), generator=generator).float()  # ties
    for total in range(1, sum(sizes) + 1):
        expected = []
        for index, count in enumerate(literal(total, sizes)):
            members = [place for place, pool in enumerate(pools.tolist()) if pool == 3 * index]
            expected += sorted(members, key=lambda place: (-float(scores[place]), place))[:count]
        assert deal_best(total, scores, pools).tolist() == sorted(expected)


def test_dealing_waits_for_no_device():
    scores, pools = torch.empty(40, device="meta"), torch.empty(40, dtype=torch.long, device="meta")
    assert deal_best(9, scores, pools).shape == (9,)
