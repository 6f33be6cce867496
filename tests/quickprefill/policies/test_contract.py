"""What every registered policy must do, whatever its idea."""

import dataclasses

import pytest
import torch

from quickprefill import POLICIES, ConfigError, QuickPrefillConfig
from quickprefill.budget.counts import compressed_count, num_kept, select, selected_count
from quickprefill.policies import Compressor, GroupAttention, GroupKV, Policy, Scorer, Selector
from quickprefill.prompt.spans import Grid
from quickprefill.prompt.tokens import VideoTokens

SIZES = [(1, 1), (2, 1), (7, 3), (16, 8), (33, 32), (50, 50)]


DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def group(num_tokens, num_kept, *, dtype=torch.float32, layer=0, index=0):
    generator = torch.Generator().manual_seed(num_tokens)
    keys, values = torch.randn(2, 1, 2, num_tokens, 8, generator=generator).to(dtype)
    queries = torch.randn(1, 6, 3, 8, generator=generator).to(dtype)
    residual = torch.randn(1, num_tokens, 12, generator=generator).to(dtype)
    grid, places = Grid(num_tokens, 1, 2), 2 * torch.arange(num_tokens)  # as if half of them had been dropped before
    return GroupKV(keys, values, layer, index, num_kept, queries, residual, grid, places)


def tokens(slices, rows, columns, dtype=torch.float32):
    """A video's tokens before any stage."""
    grid = Grid(slices, rows, columns)
    generator = torch.Generator().manual_seed(grid.num_tokens)
    embeds = torch.randn(grid.num_tokens, 16, generator=generator).to(dtype)
    positions = torch.stack(torch.meshgrid(*map(torch.arange, (slices, rows, columns)), indexing="ij")).flatten(1)
    return VideoTokens(embeds, positions, torch.arange(grid.num_tokens), grid, num_kept=-(-grid.num_tokens // 3))


def attention(num_tokens, num_kept, pools=None):
    """What a selector sees."""
    received = torch.rand(4, 3, num_tokens, generator=torch.Generator().manual_seed(num_tokens))
    grid = Grid(1, 1, num_tokens)
    return GroupAttention(received, num_kept, pools, grid, torch.arange(num_tokens), layer=0, group=0)


SCORERS = sorted(name for name in POLICIES if "score" in POLICIES[name]().stages)
COMPRESSORS = sorted(name for name in POLICIES if "compress" in POLICIES[name]().stages)
SELECTORS = sorted(name for name in POLICIES if "select" in POLICIES[name]().stages)
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


@pytest.mark.parametrize("dtype", DTYPES)
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


@pytest.mark.parametrize("dtype", DTYPES)
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
        assert torch.equal(policy.select(attention(50, 9)), policy.select(attention(50, 9)))


def test_text_is_scored_without_a_grid(scorer):
    """The loop hands text over with prune_text, as group -1; not to scorers that ask for the question."""
    kv = group(40, 9, index=-1)
    scores = scorer.score(dataclasses.replace(kv, grid=None, places=None))
    assert torch.equal(scores, scorer.score(kv))


def test_the_precision_of_a_cache_does_not_matter_to_what_stays(scorer):
    kept = {dtype: select(scorer.score(group(33, 8, dtype=dtype)), 8) for dtype in (torch.float32, torch.float64)}
    assert torch.equal(kept[torch.float32], kept[torch.float64])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grid", GRIDS)
def test_compressors_look_at_the_features_and_leave_whole_rows(compressor, grid, dtype):
    before = tokens(*grid, dtype)
    behind = torch.randn(before.num_tokens, 7, generator=torch.Generator().manual_seed(0)).to(dtype) * 100
    wide = dataclasses.replace(before, embeds=torch.cat([before.embeds, behind], dim=1), width=16)
    expected, after = compressor.compress(before), compressor.compress(wide)
    assert torch.equal(after.source, expected.source)
    torch.testing.assert_close(after.features, expected.embeds)
    assert after.embeds.shape == (after.num_tokens, 23)
    assert (after.width, after.embeds.dtype) == (16, dtype)


@pytest.mark.parametrize("keep", [0.05, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("grid", GRIDS)
def test_keep_is_met_by_the_last_stage(policy, grid, keep):
    """Within one token per temporal slice, where a compressor says that it isn't exact."""
    config, before = QuickPrefillConfig(keep=keep, policy=policy), tokens(*grid)
    count = compressed_count(config, before.grid)
    assert count == num_kept(config, before.num_tokens)
    left = before
    if config.compressor is not None:
        left = config.compressor.compress(dataclasses.replace(before, num_kept=count))
        assert left.num_tokens <= config.compressor.most_tokens(before.grid, count)
        if config.compressor.exact:
            assert left.num_tokens == count
    if config.selector is not None:
        wanted = selected_count(config, left.num_tokens, before.num_tokens, left.num_tokens)
        left = left.take(config.selector.select(attention(left.num_tokens, wanted, left.pools)))
        assert left.num_tokens == wanted == count
    if config.scorer is None:
        assert abs(left.num_tokens - count) <= grid[0]


@pytest.mark.parametrize("name", COMPRESSORS)
def test_what_the_loop_asks_of_a_compressor(name):
    policy, grid = POLICIES[name](), Grid(12, 4, 6)
    assert isinstance(policy, Compressor)
    assert policy.scope in ("video", "group")
    assert policy.compress_ratio is None, "keep is the dial where nothing else is said"
    assert 40 <= policy.most_tokens(grid, 40) <= grid.num_tokens
    assert 0 < policy.workspace_bytes(288, 24, 16, 2, 40) <= policy.workspace_bytes(288, 24, 16, 2)
    assert policy.workspace_bytes(288, 24, 16, 2, 40) <= policy.workspace_bytes(288, 24, 64, 4, 40)


@pytest.mark.parametrize("name", SELECTORS)
def test_what_the_loop_asks_of_a_selector(name):
    policy = POLICIES[name]()
    assert isinstance(policy, Selector)
    assert policy.attention in ("position_free", "causal")
    assert (policy.select_ratio, policy.uses_question, policy.prune_cache) == (None, True, True)
    assert policy.layer >= 0


def test_what_the_loop_asks_of_a_scorer(scorer):
    assert isinstance(scorer, Scorer)
    assert not scorer.per_head
    assert scorer.uses_question == (scorer.name == "query_attention")
    assert scorer.uses_residual == (scorer.name == "output_norm")


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
