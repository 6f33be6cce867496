"""QuickVideo's mixed scores against definitions written out with loops."""

import math

import pytest
import torch

from quickprefill import ConfigError
from quickprefill.budget.counts import select
from quickprefill.policies import (
    GroupKV,
    KeyNormDistinct,
    KeyNormRandom,
    KeyWeightedValueNorm,
    OutputNorm,
    QueryAttention,
    Random,
)

SIZES = [(1, 1), (5, 3), (20, 7), (40, 17), (40, 33), (64, 64)]


def group(num_tokens, num_kept, heads=2, dim=4, queries=None, residual=None, layer=0, index=0):
    generator = torch.Generator().manual_seed(num_tokens)
    keys, values = torch.randn(2, 1, heads, num_tokens, dim, generator=generator)
    return GroupKV(keys, values, layer, index, num_kept, queries, residual)


def flat(states):
    """One vector per token, all heads together."""
    return [states[0, :, token].flatten().double().tolist() for token in range(states.shape[2])]


def norm(vector):
    return math.sqrt(sum(x * x for x in vector))


def smallest(values, count):
    return sorted(range(len(values)), key=lambda index: (values[index], index))[:count]


def kept(policy, kv):
    return select(policy.score(kv), kv.num_kept)[0].tolist()


@pytest.mark.parametrize(("num_tokens", "num_kept"), SIZES)
def test_key_norm_random(num_tokens, num_kept):
    kv = group(num_tokens, num_kept)
    first = smallest([norm(key) for key in flat(kv.keys)], num_kept // 2)
    draw = Random(3).score(kv)[0].tolist()
    others = sorted((token for token in range(num_tokens) if token not in first), key=lambda token: -draw[token])
    assert kept(KeyNormRandom(seed=3), kv) == sorted(first + others[: num_kept - len(first)])


@pytest.mark.parametrize("tokens_per_pivot", [1, 4, 16])
@pytest.mark.parametrize(("num_tokens", "num_kept"), SIZES)
def test_key_norm_distinct(num_tokens, num_kept, tokens_per_pivot):
    kv = group(num_tokens, num_kept)
    keys = flat(kv.keys)
    pivots = smallest([norm(key) for key in keys], (num_kept - 1) // tokens_per_pivot + 1)

    def similarity(token):
        cosines = [
            sum(a * b for a, b in zip(keys[token], keys[pivot], strict=True)) / norm(keys[token]) / norm(keys[pivot])
            for pivot in pivots
        ]
        return sum(cosines) / len(cosines)

    others = sorted((token for token in range(num_tokens) if token not in pivots), key=similarity)
    expected = sorted(pivots + others[: num_kept - len(pivots)])
    assert kept(KeyNormDistinct(tokens_per_pivot), kv) == expected


@pytest.mark.parametrize(("num_tokens", "num_kept"), SIZES)
def test_key_weighted_value_norm(num_tokens, num_kept):
    kv = group(num_tokens, num_kept)
    weights = [math.exp(norm(key)) for key in flat(kv.keys)]
    scores = [weight / sum(weights) * norm(value) for weight, value in zip(weights, flat(kv.values), strict=True)]
    torch.testing.assert_close(KeyWeightedValueNorm().score(kv)[0], torch.tensor(scores), rtol=1e-5, atol=1e-6)


def test_output_norm():
    residual = torch.tensor([[[3.0, 4.0], [0.0, 1.0]]])
    assert OutputNorm().score(group(2, 1, residual=residual)).tolist() == [[5.0, 1.0]]


@pytest.mark.parametrize("by_value_norm", [False, True])
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize(("num_tokens", "rows"), [(1, 1), (9, 1), (9, 4)])
def test_query_attention(num_tokens, rows, per_head, by_value_norm):
    queries = torch.randn(1, 6, rows, 4, generator=torch.Generator().manual_seed(rows))
    kv = group(num_tokens, 1, queries=queries)
    expected = torch.zeros(2, num_tokens, dtype=torch.float64)
    for head in range(6):
        for row in range(rows):
            products = [
                sum(
                    a * b
                    for a, b in zip(queries[0, head, row].tolist(), kv.keys[0, head // 3, token].tolist(), strict=True)
                )
                for token in range(num_tokens)
            ]
            weights = [math.exp(product / math.sqrt(4)) for product in products]
            for token in range(num_tokens):
                expected[head // 3, token] += weights[token] / sum(weights) / 3
    for token in range(num_tokens):
        if by_value_norm and per_head:
            expected[:, token] *= torch.tensor([norm(kv.values[0, head, token].tolist()) for head in range(2)]).double()
    if not per_head:
        expected = expected.mean(0)
        if by_value_norm:
            expected *= torch.tensor([norm(value) for value in flat(kv.values)]).double()
    scores = QueryAttention(by_value_norm=by_value_norm, per_head=per_head).score(kv)
    torch.testing.assert_close(scores[0].double(), expected)


def test_bad_parameters():
    with pytest.raises(ConfigError, match="tokens_per_pivot must be an integer >= 1, got 0"):
        KeyNormDistinct(0)
    with pytest.raises(ConfigError, match="seed must be >= 0"):
        KeyNormRandom(-1)
