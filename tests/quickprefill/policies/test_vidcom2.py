"""VidCom2 against its definition, written out in loops and float64."""

import dataclasses
import itertools
import math

import pytest
import torch

from quickprefill import ConfigError
from quickprefill.policies.vidcom2 import VidCom2, _deal, _most_rounded
from quickprefill.prompt.spans import Grid
from quickprefill.prompt.tokens import VideoTokens

SHAPES = [(1, 1, 1), (1, 3, 3), (2, 1, 2), (3, 5, 1), (7, 3, 3), (16, 5, 10), (5, 4, 4)]
RATIOS = [0.01, 0.25, 0.3, 0.5, 0.7, 0.99]


def video(slices, height, width, *, channels=8, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed + slices)
    grid = Grid(slices, height, width)
    embeds = torch.randn(grid.num_tokens, channels, generator=generator).to(dtype)
    return VideoTokens(embeds, torch.arange(3 * grid.num_tokens).view(3, -1), torch.arange(grid.num_tokens), grid)


def kept(policy, tokens):
    return policy.compress(tokens).source.tolist()


def literal(embeds, slices, ratio):
    """Shares of the slices and V + F of the tokens, steps 1 to 4 of the paper."""
    rows = [[float(value) for value in row] for row in embeds]
    num_tokens, num_channels = len(rows), len(rows[0])
    size = num_tokens // slices

    def variance(channel):
        values = [row[channel] for row in rows]
        mean = sum(values) / num_tokens
        return sum((value - mean) ** 2 for value in values) / num_tokens

    quiet = sorted(range(num_channels), key=lambda channel: (variance(channel), channel))[: num_channels // 2]
    units = []
    for row in rows:
        norm = math.sqrt(sum(row[channel] ** 2 for channel in quiet))
        units.append([row[channel] / norm for channel in quiet])

    def mean(vectors):
        return [sum(values) / len(vectors) for values in zip(*vectors, strict=True)]

    def similarity(a, b):
        squared = sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
        return sum(math.exp(-squared / (2 * width)) for width in (1 / 8, 1 / 4, 1 / 2, 1, 2))

    centre = mean(units)
    frames = [units[t * size : (t + 1) * size] for t in range(slices)]
    to_video = [[similarity(token, centre) for token in frame] for frame in frames]
    to_frame = [[similarity(token, mean(frame)) for token in frame] for frame in frames]
    unique = [-sum(row) / size for row in to_video]
    weights = [math.exp((value - max(unique)) / 0.01) for value in unique]
    shares = [min(1, ratio * (1 + weight / sum(weights) - 1 / slices)) * size for weight in weights]
    scores = [[v + f for v, f in zip(a, b, strict=True)] for a, b in zip(to_video, to_frame, strict=True)]
    return shares, scores


def lowest(scores, counts):
    """Ascending indices of the tokens with the smallest scores, `counts[t]` of slice t."""
    chosen = []
    for t, (row, count) in enumerate(zip(scores, counts, strict=True)):
        order = sorted(range(len(row)), key=lambda p: (row[p], p))
        chosen += [t * len(row) + p for p in order[:count]]
    return sorted(chosen)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_definition(shape, ratio):
    tokens = video(*shape)
    shares, scores = literal(tokens.embeds, shape[0], ratio)
    counts = [max(1, round(share)) for share in shares]  # Python rounds half to even
    assert kept(VidCom2(ratio), tokens) == lowest(scores, counts)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_exact_total_takes_the_same_tokens_of_each_slice(shape, ratio):
    tokens = video(*shape)
    index = kept(VidCom2(ratio, exact_total=True), tokens)
    assert len(index) == max(1, math.floor(ratio * tokens.num_tokens + 0.5))
    shares, scores = literal(tokens.embeds, shape[0], ratio)
    size = tokens.grid.slice_tokens
    counts = [sum(place // size == t for place in index) for t in range(shape[0])]
    assert index == lowest(scores, counts)
    surplus = sum(counts) - sum(shares)  # what clamping lost, spread evenly; or less than one token each
    if len(index) >= shape[0]:
        assert all(abs(count - share) < 1 + max(surplus, 0) for count, share in zip(counts, shares, strict=True))


@pytest.mark.parametrize(("slices", "size"), [(1, 1), (1, 9), (4, 1), (5, 7), (9, 3)])
def test_dealing_one_token_at_a_time(slices, size):
    for seed in range(4):
        share = torch.rand(slices, generator=torch.Generator().manual_seed(seed)) * size
        for total in range(1, slices * size + 1):
            dealt = [int(total >= slices)] * slices
            while sum(dealt) < total:
                open_slices = [t for t in range(slices) if dealt[t] < size]
                dealt[max(open_slices, key=lambda t: (float(share[t]) - dealt[t], -t))] += 1
            assert _deal(share, size, total).tolist() == dealt


def test_equal_shares_are_dealt_to_the_earlier_slice_first():
    assert _deal(torch.tensor([2.5, 2.5, 2.5]), 4, 8).tolist() == [3, 3, 2]
    assert _deal(torch.tensor([0.2, 0.2, 0.2]), 4, 2).tolist() == [1, 1, 0]


def test_what_a_full_slice_cannot_hold_goes_to_the_others():
    assert _deal(torch.tensor([4.0, 2.8, 2.8]), 4, 11).tolist() == [4, 4, 3]


def test_by_hand():
    """Three slices of two tokens; channels 0 and 1 are quiet, 2 and 3 are loud noise.

    Every token points along channel 0 but one, which points along channel 1: its slice is the unique one, with a share
    of 0.5 x (1 + 1 - 1/3) x 2 = 1.67 against 0.67.
    """
    embeds = torch.tensor([[1.0, 0, 9, -9], [1, 0, -9, 9], [2, 0, 9, 9], [0, 1, -9, -9], [1, 0, 9, -9], [3, 0, -9, 9]])
    tokens = VideoTokens(embeds, torch.zeros(3, 6), torch.arange(6), Grid(3, 1, 2))
    assert kept(VidCom2(0.5), tokens) == [0, 2, 3, 4]
    assert kept(VidCom2(0.25), tokens) == [0, 3, 4]


def test_the_paper_total_and_the_exact_total():
    """At 0.7 the clamp loses tokens that an exact total puts elsewhere."""
    tokens = video(16, 5, 10)
    assert len(kept(VidCom2(0.7), tokens)) < 560
    assert len(kept(VidCom2(0.7, exact_total=True), tokens)) == 560


def test_a_constant_video_keeps_the_earliest_of_every_slice():
    tokens = VideoTokens(torch.ones(24, 6), torch.zeros(3, 24), torch.arange(24), Grid(4, 2, 3))
    assert kept(VidCom2(0.5), tokens) == [0, 1, 2, 6, 7, 8, 12, 13, 14, 18, 19, 20]
    assert kept(VidCom2(0.42), tokens) == [0, 1, 2, 6, 7, 8, 12, 13, 14, 18, 19, 20]  # 2.52 of 6 each
    assert kept(VidCom2(0.42, exact_total=True), tokens) == [0, 1, 2, 6, 7, 8, 12, 13, 18, 19]


def test_halves_round_to_even():
    def constant(size):
        return VideoTokens(torch.ones(2 * size, 4), torch.zeros(3, 2 * size), torch.arange(2 * size), Grid(2, 1, size))

    assert len(kept(VidCom2(0.5), constant(5))) == 2 * 2
    assert len(kept(VidCom2(0.5), constant(3))) == 2 * 2


def test_a_ratio_of_one_is_the_identity():
    tokens = video(16, 5, 10)
    assert VidCom2(1.0).compress(tokens) is tokens
    assert VidCom2().compress(dataclasses.replace(tokens, num_kept=800)).num_tokens == 800


@pytest.mark.parametrize("total", [1, 3, 7, 8, 31, 200, 799])
def test_keep_is_an_exact_total(total):
    """The budget that the loop hands over is the ratio, and the tokens are those of that ratio."""
    tokens = dataclasses.replace(video(16, 5, 10), num_kept=total)
    index = kept(VidCom2(), tokens)
    assert index == kept(VidCom2(total / 800, exact_total=True), video(16, 5, 10))
    assert len(index) == total
    assert VidCom2().exact
    assert VidCom2().most_tokens(tokens.grid, total) == total


def test_whose_budget_holds():
    tokens = dataclasses.replace(video(16, 5, 10), num_kept=90)
    assert VidCom2(0.25).compress_ratio == 0.25
    assert VidCom2().compress_ratio is None
    assert not VidCom2(0.25).exact
    assert kept(VidCom2(0.25), tokens) == kept(VidCom2(0.25), video(16, 5, 10)), "the paper rounds slice by slice"
    assert len(kept(VidCom2(0.25, exact_total=True), tokens)) == 90


def test_nobody_says_how_many():
    with pytest.raises(ConfigError, match="give retention_ratio, or set num_kept of the tokens"):
        VidCom2().compress(video(4, 3, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_blocks_change_nothing(monkeypatch, dtype):
    tokens = dataclasses.replace(video(16, 5, 10, dtype=dtype), num_kept=300)
    expected = kept(VidCom2(), tokens)
    for block in (1, 1000, 3000):
        monkeypatch.setattr("quickprefill.policies.vidcom2._BLOCK", block)
        assert kept(VidCom2(), tokens) == expected


def test_only_the_features_count():
    tokens = video(6, 4, 4)
    behind = torch.randn(96, 5, generator=torch.Generator().manual_seed(1)) * 100
    wide = dataclasses.replace(tokens, embeds=torch.cat([tokens.embeds, behind], dim=1), width=8)
    result = VidCom2(0.3).compress(wide)
    assert result.source.tolist() == kept(VidCom2(0.3), tokens)
    assert torch.equal(result.embeds, wide.embeds[result.source])


def test_an_exact_total_waits_for_no_device():
    """Nothing can be read from the meta device."""
    tokens = video(6, 4, 4)
    meta = dataclasses.replace(tokens, embeds=tokens.embeds.to("meta"), source=tokens.source.to("meta"))
    assert VidCom2().compress(dataclasses.replace(meta, num_kept=20)).num_tokens == 20
    assert VidCom2(0.25, exact_total=True).compress(meta).num_tokens == 24
    with pytest.raises((NotImplementedError, RuntimeError)):
        VidCom2(0.25).compress(meta)


def literal_most(ratio, slices, size, steps):
    """The most over all ways to spread the extra share in steps of 1 / `steps`, with halves rounded up."""
    most = 0
    for cuts in itertools.combinations_with_replacement(range(steps + 1), slices - 1):
        edges = [0, *cuts, steps]
        extra = [(b - a) / steps for a, b in itertools.pairwise(edges)]
        due = [min(ratio * (1 + part - 1 / slices), 1) * size for part in extra]
        most = max(most, sum(max(math.floor(share + 0.5 + 1e-9), 1) for share in due))
    return most


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.25, 0.3, 0.5, 0.7, 0.99])
@pytest.mark.parametrize(("slices", "size"), [(1, 1), (1, 9), (2, 4), (2, 10), (3, 5), (4, 2), (4, 6)])
def test_the_most_that_the_papers_rounding_leaves(slices, size, ratio):
    most = _most_rounded(ratio, slices, size)
    assert literal_most(ratio, slices, size, 40) <= most
    assert most <= literal_most(ratio, slices, size, 40) + 1, "a finer step may find one more"
    assert VidCom2(ratio).most_tokens(Grid(slices, 1, size), 1) == most


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("shape", SHAPES)
def test_no_video_leaves_more(shape, ratio):
    for seed in range(5):
        tokens = video(*shape, seed=seed)
        assert len(kept(VidCom2(ratio), tokens)) <= VidCom2(ratio).most_tokens(tokens.grid, 1)


def test_tokens_that_stay_are_unchanged():
    tokens = video(4, 3, 3)
    embeds = tokens.embeds.clone()
    result = VidCom2(0.25).compress(tokens)
    assert torch.equal(tokens.embeds, embeds)
    assert torch.equal(result.source, result.source.sort().values)
    assert torch.equal(result.embeds, embeds[result.source])
    assert torch.equal(result.positions, tokens.positions[:, result.source])
    assert torch.equal(VidCom2(0.25).compress(tokens).embeds, result.embeds)


def test_bfloat16_is_scored_in_float32():
    tokens = video(6, 4, 4, dtype=torch.bfloat16)
    result = VidCom2(0.4).compress(tokens)
    shares, scores = literal(tokens.embeds, 6, 0.4)
    assert result.source.tolist() == lowest(scores, [max(1, round(share)) for share in shares])
    assert result.embeds.dtype == torch.bfloat16


def test_a_group_is_a_video_of_its_own():
    """What the streaming scope does: the loop hands over slices, and nothing outside them counts."""
    tokens = video(8, 3, 3)
    part = tokens.cut(4, 8)[1]
    alone = VideoTokens(tokens.embeds[36:], tokens.positions[:, 36:], torch.arange(36), Grid(4, 3, 3))
    assert kept(VidCom2(0.25, scope="group"), part) == kept(VidCom2(0.25), alone)


@pytest.mark.parametrize("ratio", [0, -0.1, 1.01, math.nan])
def test_a_ratio_out_of_range(ratio):
    with pytest.raises(ConfigError, match=r"retention_ratio must be in \(0, 1\], got"):
        VidCom2(ratio)


def test_an_unknown_scope():
    with pytest.raises(ConfigError, match="scope must be 'video' or 'group', got 'frame'"):
        VidCom2(scope="frame")


def test_after_another_stage():
    tokens = video(4, 3, 3)
    with pytest.raises(ConfigError, match="VidCom2 must be the first stage.* 36 tokens, but got 35"):
        VidCom2(0.25).compress(tokens.take(torch.arange(1, 36)))


def test_round_trip():
    policy = VidCom2(0.4, exact_total=True, scope="group")
    values = policy.to_dict()
    assert values.pop("name") == "vidcom2"
    assert VidCom2.from_dict(values) == policy
