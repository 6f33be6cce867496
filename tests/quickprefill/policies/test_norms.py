"""key_norm and value_norm against norms written out in float64."""

import math

import pytest
import torch

from quickprefill.policies import GroupKV, KeyNorm, ValueNorm


def literal_norms(states):
    """One L2 norm per token over all heads together."""
    _, heads, tokens, dim = states.shape
    return [
        math.sqrt(sum(float(states[0, head, token, d]) ** 2 for head in range(heads) for d in range(dim)))
        for token in range(tokens)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 2, 9])
def test_scores(num_tokens, dtype):
    torch.manual_seed(num_tokens)
    keys, values = torch.randn(2, 1, 3, num_tokens, 5).to(dtype)
    kv = GroupKV(keys, values, layer=0, group=0, num_kept=1)
    expected = {KeyNorm: literal_norms(keys), ValueNorm: literal_norms(values)}
    for policy, norms in expected.items():
        torch.testing.assert_close(policy(largest=True).score(kv)[0].double(), torch.tensor(norms).double())
        torch.testing.assert_close(policy(largest=False).score(kv)[0].double(), -torch.tensor(norms).double())


def test_defaults_keep_small_keys_and_large_values():
    states = torch.tensor([1.0, 3.0, 2.0]).view(1, 1, 3, 1)
    kv = GroupKV(states, states, layer=0, group=0, num_kept=1)
    assert KeyNorm().score(kv).argmax() == 0
    assert ValueNorm().score(kv).argmax() == 1


def test_norms_are_taken_in_float32():
    """In bfloat16 these two norms are equal, and the order would be lost."""
    keys = torch.tensor([[4.0, 0.25], [4.0, 0.0]], dtype=torch.bfloat16).view(1, 1, 2, 2)
    assert torch.linalg.vector_norm(keys, dim=3).unique().numel() == 1
    scores = KeyNorm().score(GroupKV(keys, keys, layer=0, group=0, num_kept=1))
    assert scores[0, 1] > scores[0, 0]
