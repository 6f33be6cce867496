"""The two baselines: uniform and random."""

import pytest
import torch

from quickprefill import ConfigError
from quickprefill.budget.counts import select
from quickprefill.policies import GroupKV, Random, Uniform


def kept(policy, num_tokens, num_kept, *, layer=0, group=0):
    states = torch.zeros(1, 1, num_tokens, 2)
    kv = GroupKV(states, states, layer=layer, group=group, num_kept=num_kept)
    return select(policy.score(kv), num_kept)[0].tolist()


@pytest.mark.parametrize(
    ("num_tokens", "num_kept", "expected"),
    [
        (10, 5, [1, 3, 5, 7, 9]),
        (10, 1, [5]),
        (10, 3, [1, 5, 8]),
        (4, 4, [0, 1, 2, 3]),
        (7, 2, [1, 5]),
        (1, 1, [0]),
    ],
)
def test_uniform_takes_the_middle_of_equal_stretches(num_tokens, num_kept, expected):
    assert kept(Uniform(), num_tokens, num_kept) == expected


@pytest.mark.parametrize("num_tokens", [5, 64, 1001])
def test_uniform_gaps_differ_by_at_most_one(num_tokens):
    for num_kept in range(2, num_tokens + 1, max(num_tokens // 17, 1)):
        chosen = kept(Uniform(), num_tokens, num_kept)
        gaps = {b - a for a, b in zip(chosen, chosen[1:], strict=False)}
        assert max(gaps) - min(gaps) <= 1


def test_random_is_seeded_and_differs_by_layer_and_group():
    first = kept(Random(), 100, 10)
    assert first == kept(Random(), 100, 10)
    others = [kept(Random(seed=1), 100, 10), kept(Random(), 100, 10, layer=1), kept(Random(), 100, 10, group=1)]
    assert all(other != first for other in others)


def test_random_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    kept(Random(), 100, 10)
    assert torch.equal(torch.rand(1), expected)


def test_random_is_spread_evenly():
    """Each token is kept 200 times of 1000 on average; a deviation of 60 is 4.7 sigma."""
    counts = torch.zeros(20)
    for group in range(1000):
        counts[kept(Random(), 20, 4, group=group)] += 1
    assert ((counts - 200).abs() < 60).all()


def test_random_seed_below_zero():
    with pytest.raises(ConfigError, match="seed must be >= 0"):
        Random(seed=-1)
