"""PruneVid under the config's keep: its last stage meets it, whatever the video shows."""

import dataclasses

import pytest
import torch

from quickprefill import ConfigError, QuickPrefillConfig
from quickprefill.budget.counts import compressed_count, round_share, selected_count
from quickprefill.policies import GroupAttention, PruneVid, VideoTokens
from quickprefill.policies.shared.segments import find_segments
from quickprefill.prompt.spans import Grid
from tests.quickprefill.policies.test_prunevid import video

MERGE = PruneVid(select_tokens=False)
KEEPS = [0.05, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9]
GRIDS = [(1, 4, 5), (2, 2, 2), (3, 4, 5), (8, 2, 2), (8, 5, 8), (17, 4, 5), (32, 3, 3), (20, 1, 40)]
KINDS = ["random", "static", "constant", "mixed", "mostly static", "scenes"]


def tokens_of(kind, shape, num_kept):
    grid = Grid(*shape)
    if kind in ("mixed", "mostly static"):
        tokens = video(*shape, moving=0.5 if kind == "mixed" else 0.05)
    else:
        generator = torch.Generator().manual_seed(grid.num_tokens)
        scene = {"scenes": 5}.get(kind, 1 if kind == "random" else grid.slices)
        still = torch.randn(grid.slices // scene + 1, grid.slice_tokens, 6, generator=generator)
        embeds = still.repeat_interleave(scene, dim=0)[: grid.slices].flatten(0, 1)
        if kind != "constant":
            embeds = embeds + 0.05 * torch.randn(embeds.shape, generator=generator)
        tokens = VideoTokens(embeds, torch.zeros(3, grid.num_tokens), torch.arange(grid.num_tokens), grid)
    return dataclasses.replace(tokens, num_kept=num_kept)


def sets_of(tokens, policy):
    """Sizes of the static and dynamic sets before any dial moves."""
    slices = tokens.embeds.view(tokens.grid.slices, tokens.grid.slice_tokens, -1)
    segments, _ = find_segments(slices, policy.tau, policy.temporal_segment_ratio, policy.k)
    return [size for segment in segments for size in segment.sizes if size]


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("shape", GRIDS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_stage_1_alone_meets_keep_within_a_token_per_slice(kind, shape, keep):
    config = QuickPrefillConfig(keep=keep, policy=MERGE)
    tokens = tokens_of(kind, shape, compressed_count(config, Grid(*shape)))
    result = MERGE.compress(tokens)
    assert abs(result.num_tokens - tokens.num_kept) <= shape[0]
    assert result.num_tokens <= MERGE.most_tokens(tokens.grid, tokens.num_kept)
    assert (result.source.diff() > 0).all()
    assert result.source[-1] < tokens.num_tokens
    assert result.pools.shape == result.source.shape
    moves = result.pools % 2 == 1
    assert torch.equal(result.pools[moves] // 2, result.source[moves] // tokens.grid.slice_tokens)
    sets = sets_of(tokens, MERGE)
    if len(sets) <= tokens.num_kept <= sum(sets):
        assert result.num_tokens == tokens.num_kept, "clusters alone meet it, so exactly"
    elif tokens.num_kept > sum(sets):
        assert tokens.num_kept <= result.num_tokens < tokens.num_kept + max(shape[0] - 1, 1)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("shape", GRIDS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", ["segment", "global"])
def test_both_stages_meet_keep_group_by_group(kind, shape, keep, budget):
    """What the group loop does: the whole video is compressed, then cut into groups of 4 slices to select from."""
    policy = PruneVid(budget=budget)
    config, grid = QuickPrefillConfig(keep=keep, policy=policy), Grid(*shape)
    tokens = tokens_of(kind, shape, compressed_count(config, grid, -(-grid.slices // 4)))
    whole = policy.compress(tokens)
    assert tokens.num_kept <= whole.num_tokens <= policy.most_tokens(grid, tokens.num_kept)
    stops = [*range(4, grid.slices, 4), grid.slices]
    parts = [part for part in whole.cut(*stops) if part.num_tokens]
    total = 0
    for index, part in enumerate(parts):
        count = selected_count(config, part.num_tokens, grid.num_tokens, whole.num_tokens)
        attention = torch.rand(2, 3, part.num_tokens, generator=torch.Generator().manual_seed(index))
        kept = policy.select(
            GroupAttention(attention, count, part.pools, part.grid, part.source, layer=10, group=index)
        )
        assert len(kept) == count
        assert (kept.diff() > 0).all()
        if budget == "segment" and part.pools is not None and count >= len(part.pools.unique()):
            assert torch.equal(part.pools[kept].unique(), part.pools.unique()), "every pool keeps one"
        total += count
    assert abs(total - keep * grid.num_tokens) <= len(parts), "each group's count is rounded"


@pytest.mark.parametrize("shape", [(8, 5, 8), (17, 4, 5)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_before_stage_2_the_papers_share_holds_as_long_as_it_is_enough(kind, shape):
    tokens = tokens_of(kind, shape, None)
    paper = PruneVid.paper().compress(tokens)
    for num_kept in (None, 1, paper.num_tokens):
        assert torch.equal(PruneVid().compress(dataclasses.replace(tokens, num_kept=num_kept)).source, paper.source)
    more = PruneVid().compress(dataclasses.replace(tokens, num_kept=paper.num_tokens + 1))
    assert paper.num_tokens < more.num_tokens <= paper.num_tokens + shape[0]
    own = PruneVid(keep_ratio=0.4).compress(dataclasses.replace(tokens, num_kept=tokens.num_tokens - 1))
    assert torch.equal(own.source, paper.source), "stage 2 has a budget of its own, so stage 1 has none to meet"


def test_clusters_are_dealt_in_proportion_to_the_sets():
    """Two slices of ten places, of which six stand still: sets of 6, 4 and 4."""
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(2, 10, 8, generator=generator)
    embeds[1, :6] = embeds[0, :6]
    tokens = VideoTokens(embeds.flatten(0, 1), torch.zeros(3, 20), torch.arange(20), Grid(2, 1, 10))

    def left(num_kept):
        result = MERGE.compress(dataclasses.replace(tokens, num_kept=num_kept))
        return [int((result.pools == pool).sum()) for pool in (0, 1, 3)]

    assert left(14) == [6, 4, 4]
    assert left(7) == [3, 2, 2]
    assert left(3) == left(2) == left(1) == [1, 1, 1], "every set gets one, up to a token per slice too many"
    assert left(8) == [4, 2, 2], "3.4, 2.3 and 2.3: the largest remainder"


def test_where_whole_sets_are_too_few_the_least_similar_places_move():
    """Four slices of three places that differ in how much they shake."""
    still = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    shake = torch.tensor([0.10, 0.30, 0.20])[:, None] * torch.randn(
        4, 3, 16, generator=torch.Generator().manual_seed(1)
    )
    embeds = (still + shake).flatten(0, 1)
    tokens = VideoTokens(embeds, torch.zeros(3, 12), torch.arange(12), Grid(4, 1, 3))
    policy = dataclasses.replace(MERGE, tau=0.5)

    def moving(num_kept):
        result = policy.compress(dataclasses.replace(tokens, num_kept=num_kept))
        places = result.source[result.pools % 2 == 1]
        assert torch.equal(result.embeds[result.pools % 2 == 1], embeds[places]), "nothing is clustered"
        return sorted({place % 3 for place in places.tolist()})

    assert [moving(3), moving(4), moving(6)] == [[], [1], [1]]
    assert [moving(7), moving(9), moving(10)] == [[1, 2], [1, 2], [0, 1, 2]]


def test_a_keep_of_everything_is_the_identity():
    tokens = tokens_of("static", (8, 2, 2), 32)
    assert MERGE.compress(tokens) is tokens
    assert PruneVid().compress(tokens) is tokens
    assert PruneVid.paper().compress(tokens).num_tokens < 32, "a ratio of its own"


def test_small_sets_are_clustered_too_where_keep_asks_for_it():
    tokens = tokens_of("static", (8, 2, 4), 3)
    assert MERGE.min_cluster_tokens > tokens.grid.slice_tokens
    assert MERGE.compress(tokens).num_tokens == 3


def test_nobody_says_how_much():
    with pytest.raises(ConfigError, match="give cluster_ratio, or set num_kept of the tokens"):
        MERGE.compress(tokens_of("mixed", (4, 2, 2), None))


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_what_rides_behind_the_features_is_merged_but_decides_nothing(keep):
    tokens = tokens_of("mixed", (8, 5, 8), round_share(keep, 320))
    behind = 100 * torch.randn(320, 3, generator=torch.Generator().manual_seed(0))
    wide = dataclasses.replace(tokens, embeds=torch.cat([tokens.embeds, behind], dim=1), width=6)
    expected, result = MERGE.compress(tokens), MERGE.compress(wide)
    assert torch.equal(result.source, expected.source)
    torch.testing.assert_close(result.features, expected.embeds)
    assert result.embeds.shape == (expected.num_tokens, 9)
    doubled = dataclasses.replace(tokens, embeds=torch.cat([tokens.embeds, 2 * tokens.embeds], dim=1), width=6)
    result = MERGE.compress(doubled)
    torch.testing.assert_close(result.embeds[:, 6:], 2 * result.embeds[:, :6])


@pytest.mark.parametrize("policy", [PruneVid.paper(), PruneVid.light(), PruneVid.strong(), PruneVid(cluster_ratio=0.9)])
@pytest.mark.parametrize("shape", GRIDS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_no_video_leaves_more_than_most_tokens(kind, shape, policy):
    tokens = tokens_of(kind, shape, None)
    most = policy.most_tokens(tokens.grid, tokens.num_tokens)
    assert policy.compress(tokens).num_tokens <= most <= tokens.num_tokens
