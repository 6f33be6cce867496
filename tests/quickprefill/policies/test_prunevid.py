"""PruneVid against its definition, written out in loops and float64."""

import dataclasses
import itertools
import math

import pytest
import torch

from quickprefill import ConfigError, InputError
from quickprefill.policies import GroupAttention
from quickprefill.policies.prunevid import PruneVid
from quickprefill.prompt.spans import Grid
from quickprefill.prompt.tokens import VideoTokens
from tests.quickprefill.policies.test_dpc_knn import literal_contiguous, literal_dpc_knn

SHAPES = [(1, 4, 5), (2, 2, 2), (3, 4, 5), (4, 7, 2), (6, 3, 5), (7, 4, 8), (8, 5, 8), (17, 4, 5)]


def video(slices, height, width, *, moving=0.5, channels=6, dtype=torch.float32):
    """Scenes of four slices; `moving` of the places are drawn anew in every slice, the others shake a little."""
    generator = torch.Generator().manual_seed(slices)
    grid = Grid(slices, height, width)
    size = grid.slice_tokens
    scenes = torch.randn(-(-slices // 4), size, channels, generator=generator) + 1
    still = scenes.repeat_interleave(4, dim=0)[:slices]
    still = still + 0.05 * torch.randn(still.shape, generator=generator)
    moves = torch.rand(size, generator=generator) < moving
    embeds = torch.where(moves[:, None], torch.randn(still.shape, generator=generator), still).flatten(0, 1)
    positions = torch.arange(3 * grid.num_tokens).view(3, -1)
    return VideoTokens(embeds.to(dtype), positions, torch.arange(grid.num_tokens), grid)


def mean(vectors):
    return [sum(values) / len(vectors) for values in zip(*vectors, strict=True)]


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def literal_clusters(points, policy):
    """(mean, index of the centre) of each cluster of one set."""
    count = max(1, int(len(points) * (policy.cluster_ratio or 0.5)))
    if len(points) <= policy.min_cluster_tokens:
        return [(point, index) for index, point in enumerate(points)]
    labels, centres = literal_dpc_knn(points, count, policy.k)
    return [
        (mean([point for point, other in zip(points, labels, strict=True) if other == label]), centre)
        for label, centre in enumerate(centres)
    ]


def literal_compress(tokens, policy):
    """source -> (pool, embedding)."""
    slices, size = tokens.grid.slices, tokens.grid.slice_tokens
    x = tokens.embeds.double().view(slices, size, -1).tolist()
    descriptors = [mean(row) for row in x]
    labels, _ = literal_dpc_knn(descriptors, max(1, int(slices * policy.temporal_segment_ratio)), policy.k)
    merged = {}
    for start, stop in literal_contiguous(labels):
        pairs = list(itertools.permutations(range(start, stop), 2))
        similar = [sum(cosine(x[a][p], x[b][p]) for a, b in pairs) / len(pairs) if pairs else -1 for p in range(size)]
        static = [p for p in range(size) if pairs and similar[p] > policy.tau]
        dynamic = [p for p in range(size) if p not in static]
        still = [mean([x[t][p] for t in range(start, stop)]) for p in static]
        for embed, centre in literal_clusters(still, policy) if static else []:
            merged[start * size + static[centre]] = (("static", start), embed)
        for t in range(start, stop) if dynamic else []:
            for embed, centre in literal_clusters([x[t][p] for p in dynamic], policy):
                merged[t * size + dynamic[centre]] = (("dynamic", t), embed)
    return merged


def check(tokens, policy):
    expected = literal_compress(tokens, policy)
    result = policy.compress(tokens)
    assert result.source.tolist() == sorted(expected)
    pools = [(("static", "dynamic")[pool % 2], pool // 2) for pool in result.pools.tolist()]
    assert pools == [expected[place][0] for place in sorted(expected)]
    embeds = torch.tensor([expected[place][1] for place in sorted(expected)]).to(result.embeds.dtype)
    torch.testing.assert_close(result.embeds, embeds)
    assert torch.equal(result.positions, tokens.positions[:, result.source])
    return result


@pytest.mark.parametrize(
    "policy",
    [PruneVid(), PruneVid.light(), PruneVid.strong(), PruneVid(min_cluster_tokens=2, k=3, temporal_segment_ratio=0.5)],
    ids=["paper", "light", "strong", "small"],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_merging(shape, policy):
    check(video(*shape), policy)


@pytest.mark.parametrize("slices", [1, 2, 3, 4, 6, 7, 9])
@pytest.mark.parametrize("tau", [-1.0, 1.0])
def test_all_static_and_all_dynamic(slices, tau):
    result = check(video(slices, 4, 4), PruneVid(tau=tau))
    assert set((result.pools % 2).tolist()) == ({0} if tau == -1 and slices > 1 else {1})


@pytest.mark.parametrize(("size", "left"), [(13, 13), (14, 14), (15, 7), (16, 8), (17, 8)])
def test_sets_of_more_than_14_are_clustered(size, left):
    tokens = video(3, 1, size, moving=0)
    assert check(tokens, PruneVid()).num_tokens == left


def test_by_hand():
    """Two slices of two tokens: the first place stays, the second turns around."""
    embeds = torch.tensor([[1.0, 0], [0, 1], [3, 0], [0, -1]])
    tokens = VideoTokens(embeds, torch.arange(12).view(3, 4), torch.arange(4), Grid(2, 1, 2))
    result = PruneVid().compress(tokens)
    assert result.embeds.tolist() == [[2, 0], [0, 1], [0, -1]]
    assert result.source.tolist() == [0, 1, 3]
    assert result.positions.tolist() == [[0, 1, 3], [4, 5, 7], [8, 9, 11]]
    assert result.pools.tolist() == [0, 1, 3]
    assert result.grid == tokens.grid


def test_a_static_token_stands_in_the_first_slice_of_its_segment():
    """Two scenes of eight slices, nothing moves: one set of tokens per scene, at the slice where the scene starts."""
    scenes = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    embeds = scenes.repeat_interleave(8, dim=0).flatten(0, 1)
    tokens = VideoTokens(embeds, torch.zeros(3, 96), torch.arange(96), Grid(16, 2, 3))
    result = PruneVid(temporal_segment_ratio=0.125).compress(tokens)
    assert result.source.tolist() == [*range(6), *range(48, 54)]
    assert result.pools.tolist() == [0] * 6 + [16] * 6
    torch.testing.assert_close(result.embeds, scenes.flatten(0, 1))


def test_a_lone_slice_is_dynamic():
    result = PruneVid().compress(video(1, 2, 5, moving=0))
    assert result.pools.tolist() == [1] * 10
    assert torch.equal(result.embeds, video(1, 2, 5, moving=0).embeds)


def test_a_constant_video_becomes_one_slice():
    tokens = VideoTokens(torch.full((160, 4), 0.7), torch.zeros(3, 160), torch.arange(160), Grid(8, 4, 5))
    result = PruneVid().compress(tokens)
    assert result.source.tolist() == list(range(10))  # 10 clusters of 20 equal tokens: ties go to the lower index
    torch.testing.assert_close(result.embeds, tokens.embeds[:10])
    same = PruneVid(tau=1.0, cluster_ratio=1.0).compress(tokens)  # no cosine is above 1
    assert torch.equal(same.embeds, tokens.embeds)
    assert same.pools.tolist() == [2 * t + 1 for t in range(8) for _ in range(20)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    result = check(video(8, 5, 8, dtype=dtype), PruneVid())
    assert result.embeds.dtype == dtype


def test_the_same_answer_twice_and_no_side_effect():
    tokens = video(8, 5, 8)
    embeds = tokens.embeds.clone()
    state = torch.get_rng_state()
    first, second = PruneVid().compress(tokens), PruneVid().compress(tokens)
    assert torch.equal(first.embeds, second.embeds)
    assert torch.equal(first.source, second.source)
    assert torch.equal(tokens.embeds, embeds)
    assert torch.equal(torch.get_rng_state(), state)


def test_autocast_changes_nothing():
    tokens = video(8, 5, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = PruneVid().compress(tokens)
    assert torch.equal(result.embeds, PruneVid().compress(tokens).embeds)


def test_clustering_in_blocks_changes_nothing(monkeypatch):
    tokens = video(7, 4, 8)
    expected = PruneVid().compress(tokens)
    monkeypatch.setattr("quickprefill.policies.shared.merging.BLOCK", 3000)
    monkeypatch.setattr("quickprefill.policies.shared.segments.BLOCK", 100)
    result = PruneVid().compress(tokens)
    assert torch.equal(result.source, expected.source)
    torch.testing.assert_close(result.embeds, expected.embeds)


def test_stage_1_switched_off():
    tokens = video(4, 2, 2)
    assert PruneVid(merge=False).compress(tokens) is tokens


def seen(attention, pools=None, num_kept=1):
    num_tokens = attention.shape[2]
    places = torch.arange(num_tokens)
    return GroupAttention(attention, num_kept, pools, Grid(1, 1, max(num_tokens, 1)), places, layer=0, group=0)


def literal_select(attention, pools, policy):
    heads, rows, num_tokens = attention.shape
    score = [max(float(attention[h, q, j]) for h in range(heads) for q in range(rows)) for j in range(num_tokens)]
    if pools is None or policy.budget == "global":
        pools = [0] * num_tokens
    kept = []
    for pool in set(pools):
        members = sorted((j for j in range(num_tokens) if pools[j] == pool), key=lambda j: (-score[j], j))
        kept += members[: max(1, int(len(members) * policy.keep_ratio))]
    return sorted(kept)


@pytest.mark.parametrize("budget", ["segment", "global"])
@pytest.mark.parametrize("keep_ratio", [0.01, 0.29, 0.4, 0.5, 1.0])
@pytest.mark.parametrize("num_tokens", [1, 2, 5, 40, 100])
def test_selection(num_tokens, keep_ratio, budget):
    generator = torch.Generator().manual_seed(num_tokens)
    attention = torch.randn(3, 4, num_tokens, generator=generator).softmax(dim=-1)
    attention = torch.where(torch.rand(attention.shape, generator=generator) < 0.3, 0.5, attention)  # ties
    pools = torch.randint(0, 6, (num_tokens,), generator=generator) * 5
    policy = PruneVid(keep_ratio=keep_ratio, budget=budget)
    assert policy.select(seen(attention, pools)).tolist() == literal_select(attention, pools.tolist(), policy)
    assert policy.select(seen(attention)).tolist() == literal_select(attention, None, policy)


def test_selection_by_hand():
    """Largest over heads and rows: 0.9, 0.2, 0.3 | 0.2, 0.2 | 0.8."""
    attention = torch.tensor([[[0.9, 0.2, 0.1, 0.1, 0.2, 0.0]], [[0.0, 0.1, 0.3, 0.2, 0.1, 0.8]]])
    pools = torch.tensor([0, 0, 0, 1, 1, 7])
    assert PruneVid(keep_ratio=0.7).select(seen(attention, pools)).tolist() == [0, 2, 3, 5]
    assert PruneVid(keep_ratio=0.4).select(seen(attention, pools)).tolist() == [0, 3, 5]  # int(2 x 0.4) is 0: one stays
    assert PruneVid(keep_ratio=0.5, budget="global").select(seen(attention, pools)).tolist() == [0, 2, 5]
    assert PruneVid(keep_ratio=0.01, budget="global").select(seen(attention, pools)).tolist() == [0]


def test_selection_after_merging():
    result = PruneVid().compress(video(8, 5, 8))
    attention = torch.rand(2, 3, result.num_tokens, generator=torch.Generator().manual_seed(0))
    kept = result.take(PruneVid.paper().select(seen(attention, result.pools)))
    for pool in result.pools.unique():
        assert (kept.pools == pool).sum() == max(1, int(int((result.pools == pool).sum()) * 0.4))


def test_selection_without_a_question():
    with pytest.raises(InputError, match="no text follows the video"):
        PruneVid().select(seen(torch.zeros(2, 0, 5)))


def test_stats():
    embeds = torch.tensor([[1.0, 0], [0, 1], [3, 0], [0, -1]])
    tokens = VideoTokens(embeds, torch.zeros(3, 4), torch.arange(4), Grid(2, 1, 2))
    stats = PruneVid.stats(tokens, PruneVid().compress(tokens))
    assert stats == {
        "original_tokens": 4,
        "compressed_tokens": 3,
        "reduction_percentage": 25.0,
        "static_ratio": pytest.approx(1 / 3),
    }
    assert PruneVid.stats(tokens, tokens)["static_ratio"] == 0


def test_presets_do_what_they_say():
    light, paper, strong = PruneVid.light(), PruneVid.paper(), PruneVid.strong()
    assert paper == PruneVid(cluster_ratio=0.5, keep_ratio=0.4)
    tokens = video(8, 5, 8)
    counts = [policy.compress(tokens).num_tokens for policy in (light, paper, strong)]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == 3
    assert light.keep_ratio > paper.keep_ratio > strong.keep_ratio
    only = PruneVid.merge_only()
    assert (only.merge, only.select_tokens, only.prune_cache) == (True, False, False)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("tau", 1.01, r"tau must be in \[-1, 1\], got 1.01"),
        ("tau", math.nan, r"tau must be in \[-1, 1\], got nan"),
        ("temporal_segment_ratio", 0, r"temporal_segment_ratio must be in \(0, 1\], got 0"),
        ("cluster_ratio", 1.5, r"cluster_ratio must be in \(0, 1\], got 1.5"),
        ("keep_ratio", 0.0, r"keep_ratio must be in \(0, 1\], got 0.0"),
        ("k", 0, "k must be >= 1, got 0"),
        ("min_cluster_tokens", -1, "min_cluster_tokens must be >= 0, got -1"),
        ("layer", -1, "layer must be >= 0, got -1"),
        ("attention", "full", "attention must be 'position_free' or 'causal', got 'full'"),
        ("budget", "frame", "budget must be 'segment' or 'global', got 'frame'"),
        ("scope", "frame", "scope must be 'video' or 'group', got 'frame'"),
    ],
)
def test_a_value_out_of_range(field, value, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(PruneVid(), **{field: value})


def test_after_another_stage():
    with pytest.raises(ConfigError, match="PruneVid must be the first stage.* 16 tokens, but got 15"):
        PruneVid().compress(video(4, 2, 2).take(torch.arange(1, 16)))


def test_round_trip():
    policy = PruneVid.strong()
    values = policy.to_dict()
    assert values.pop("name") == "prunevid"
    assert PruneVid.from_dict(values) == policy
