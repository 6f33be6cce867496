"""What every registered policy must do, whatever its idea."""

import dataclasses

import pytest
import torch

from quickprefill import POLICIES, ConfigError, QuickPrefillConfig
from quickprefill.budget.counts import select
from quickprefill.policies import GroupAttention, GroupKV, Policy
from quickprefill.prompt.spans import Grid
from quickprefill.prompt.tokens import VideoTokens

SIZES = [(1, 1), (2, 1), (7, 3), (16, 8), (33, 32), (50, 50)]


def group(num_tokens, num_kept, *, dtype=torch.float32, layer=0, index=0):
    generator = torch.Generator().manual_seed(num_tokens)
    keys, values = torch.randn(2, 1, 2, num_tokens, 8, generator=generator).to(dtype)
    queries = torch.randn(1, 6, 3, 8, generator=generator).to(dtype)
    residual = torch.randn(1, num_tokens, 12, generator=generator).to(dtype)
    return GroupKV(keys, values, layer, index, num_kept, queries, residual)


def tokens(slices, rows, columns, dtype=torch.float32):
    """A video's tokens before any stage."""
    grid = Grid(slices, rows, columns)
    generator = torch.Generator().manual_seed(grid.num_tokens)
    embeds = torch.randn(grid.num_tokens, 16, generator=generator).to(dtype)
    positions = torch.stack(torch.meshgrid(*map(torch.arange, (slices, rows, columns)), indexing="ij")).flatten(1)
    return VideoTokens(embeds, positions, torch.arange(grid.num_tokens), grid, num_kept=-(-grid.num_tokens // 3))


SCORERS = sorted(name for name in POLICIES if "score" in POLICIES[name]().stages)
COMPRESSORS = sorted(name for name in POLICIES if "compress" in POLICIES[name]().stages)
GRIDS = [(1, 1, 1), (1, 4, 4), (2, 3, 5), (7, 2, 2), (12, 4, 6)]


@pytest.fixture(params=sorted(POLICIES))
def policy(request):
    return POLICIES[request.param]()


@pytest.fixture(params=SCORERS)
def scorer(request):
    return POLICIES[request.param]()


@pytest.fixture(params=COMPRESSORS)
def compressor(request):
    return POLICIES[request.param]()


def test_name_is_key_is_file(policy):
    assert POLICIES[policy.name] is type(policy)
    assert type(policy).__module__ == f"quickprefill.policies.{policy.name}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_tokens", "num_kept"), SIZES)
def test_scores_select_exactly_the_budget(scorer, num_tokens, num_kept, dtype):
    kv = group(num_tokens, num_kept, dtype=dtype)
    keys, values = kv.keys.clone(), kv.values.clone()
    scores = scorer.score(kv)
    assert scores.shape == (1, num_tokens)
    assert scores.dtype == torch.float32
    assert scores.device == kv.keys.device
    assert torch.isfinite(scores).all()
    assert torch.equal(kv.keys, keys)
    assert torch.equal(kv.values, values)
    kept = select(scores, num_kept)[0].tolist()
    assert len(set(kept)) == num_kept
    assert kept == sorted(kept)
    assert all(0 <= token < num_tokens for token in kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grid", GRIDS)
def test_compressed_tokens_stand_in_order_at_places_of_their_own(compressor, grid, dtype):
    before = tokens(*grid, dtype)
    embeds = before.embeds.clone()
    after = compressor.compress(before)
    assert 1 <= after.num_tokens <= before.num_tokens
    assert (after.source.diff() > 0).all()
    assert after.source.min() >= 0
    assert after.source.max() < before.num_tokens
    assert torch.equal(after.positions, before.positions[:, after.source])
    assert after.embeds.dtype == dtype
    assert after.embeds.shape == (after.num_tokens, 16)
    assert after.grid == before.grid
    assert after.pools is None or after.pools.shape == (after.num_tokens,)
    assert torch.equal(before.embeds, embeds)


def test_the_same_answer_twice(policy):
    if "score" in policy.stages:
        assert torch.equal(policy.score(group(40, 9)), policy.score(group(40, 9)))
    if "compress" in policy.stages:
        first, second = policy.compress(tokens(7, 4, 4)), policy.compress(tokens(7, 4, 4))
        assert torch.equal(first.embeds, second.embeds)
        assert torch.equal(first.source, second.source)
    if "select" in policy.stages:
        attention = torch.rand(4, 3, 50, generator=torch.Generator().manual_seed(0))
        seen = GroupAttention(attention, 9, None, Grid(2, 5, 5), torch.arange(50), layer=0, group=0)
        assert torch.equal(policy.select(seen), policy.select(seen))


def test_a_frozen_dataclass_that_round_trips(policy):
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.name = "other"
    values = policy.to_dict()
    assert POLICIES[values.pop("name")].from_dict(values) == policy


def test_a_policy_without_a_stage_says_so():
    @dataclasses.dataclass(frozen=True)
    class Empty(Policy):
        name = "empty"

    with pytest.raises(ConfigError, match=r"defines none of compress\(\), select\(\) and score\(\)"):
        QuickPrefillConfig(policy=Empty())
