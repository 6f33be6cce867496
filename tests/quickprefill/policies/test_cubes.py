"""Cubes against its definition, written out slice by slice, and what must hold of where it cuts."""

import math

import pytest
import torch

import quickprefill
from quickprefill import ConfigError, QuickPrefillConfig
from quickprefill.budget.counts import compressed_count
from quickprefill.policies import Cubes, KeyNorm, VidCom2, VideoTokens
from quickprefill.prompt.spans import Grid
from tests.families import FAMILIES, build_inputs
from tests.quickprefill.calls import generate
from tests.tiny import Clip, make_inputs, prompt, tiny_model


def video(slices, rows=2, columns=3, channels=8, frames=2, dtype=torch.float32, still=(), num_kept=None, seed=0):
    """A random video in which the slices named `still` repeat the one before."""
    grid = Grid(slices, rows, columns, slice_frames=frames)
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randn(slices, rows * columns, channels, generator=generator)
    for number in still:
        pictures[number] = pictures[number - 1]
    places = torch.arange(grid.num_tokens)
    positions = torch.stack([places + 100, places + 200, places + 300])
    return VideoTokens(pictures.flatten(0, 1).to(dtype), positions, places, grid, num_kept=num_kept)


def reference(tokens, cubes, alpha):
    """Starts and means of the training-free rule, in plain numbers."""
    grid = tokens.grid
    pictures = tokens.embeds.double().view(grid.slices, grid.slice_tokens, -1).tolist()
    momentum, change = None, {0: math.inf}
    for t in range(1, grid.slices):
        new = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(pictures[t], pictures[t - 1], strict=True)]
        if momentum is not None:
            rows = zip(new, momentum, strict=True)
            new = [[alpha * a + (1 - alpha) * b for a, b in zip(*row, strict=True)] for row in rows]
        momentum = new
        change[t] = sum(math.sqrt(sum(x * x for x in row)) for row in momentum) / len(momentum)
    starts = sorted(sorted(change, key=lambda t: (-change[t], t))[:cubes])
    means = []
    for start, stop in zip(starts, [*starts[1:], grid.slices], strict=True):
        for place in range(grid.slice_tokens):
            rows = [pictures[t][place] for t in range(start, stop)]
            means.append([sum(column) / len(rows) for column in zip(*rows, strict=True)])
    return starts, torch.tensor(means)


def starts(tokens):
    return sorted({int(place) // tokens.grid.slice_tokens for place in tokens.source})


@pytest.mark.parametrize("alpha", [0.8, 0.3, 1.0])
@pytest.mark.parametrize(("slices", "cubes"), [(1, 1), (2, 1), (5, 2), (12, 5), (13, 12), (40, 9)])
def test_the_rule(slices, cubes, alpha):
    tokens = video(slices, num_kept=6 * cubes)
    expected, means = reference(tokens, cubes, alpha)
    compressed = Cubes(alpha=alpha).compress(tokens)
    assert starts(compressed) == expected
    torch.testing.assert_close(compressed.embeds, means.float())
    assert compressed.source.tolist() == [6 * start + place for start in expected for place in range(6)]
    assert torch.equal(compressed.positions, tokens.positions[:, compressed.source])


def test_bf16_cuts_where_float32_does():
    tokens = video(40, num_kept=60, dtype=torch.bfloat16)
    precise = VideoTokens(tokens.embeds.float(), tokens.positions, tokens.source, tokens.grid, num_kept=60)
    first, second = Cubes().compress(tokens), Cubes().compress(precise)
    assert torch.equal(first.source, second.source)
    torch.testing.assert_close(first.embeds.float(), second.embeds, atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize(
    ("slices", "frames", "per_cube", "cubes"),
    [(1, 2, 5, 1), (2, 2, 5, 1), (5, 2, 5, 2), (12, 2, 5, 5), (13, 2, 5, 5), (210, 1, 5, 42), (210, 2, 10, 42)],
)
def test_how_many_cubes_there_are(slices, frames, per_cube, cubes):
    tokens = video(slices, frames=frames)
    policy = Cubes(frames_per_cube=per_cube)
    assert (
        policy.own_count(tokens.grid) == compressed_count(QuickPrefillConfig(policy=policy), tokens.grid) == 6 * cubes
    )
    assert len(starts(policy.compress(tokens))) == cubes


def test_fixed_cubes_are_equal_parts():
    assert starts(Cubes(6, gate="fixed").compress(video(12))) == [0, 3, 6, 9]
    assert starts(Cubes(gate="fixed").compress(video(10, num_kept=18))) == [0, 3, 6]


def test_a_video_that_stands_still_is_cut_the_same_way_every_time():
    tokens = video(9, still=range(1, 9), num_kept=18)
    assert starts(Cubes().compress(tokens)) == [0, 1, 2]


def test_cubes_begin_where_something_happens():
    moves = (3, 4, 11)
    still = [number for number in range(1, 16) if number not in moves]
    assert starts(Cubes(alpha=1.0).compress(video(16, still=still, num_kept=24))) == [0, *moves]


@pytest.mark.parametrize("per_cube", [1, 2])
def test_cubes_of_one_slice_change_nothing(per_cube):
    tokens = video(7)
    assert Cubes(per_cube).compress(tokens) is tokens


@pytest.mark.parametrize("num_kept", range(1, 43))
def test_any_number_of_tokens_is_met(num_kept):
    tokens = video(7, num_kept=num_kept)
    compressed = Cubes().compress(tokens)
    assert compressed.num_tokens == num_kept
    whole = Cubes().compress(video(7, num_kept=-(-num_kept // 6) * 6))
    kept = torch.isin(whole.source, compressed.source)
    assert torch.equal(whole.embeds[kept], compressed.embeds)
    assert set(range(min(num_kept, 6))) <= set(compressed.source.tolist()), "the first slice is all new"


@pytest.mark.parametrize(
    ("per_cube", "rows", "columns", "cells"),
    [(1, 4, 6, (1, 1)), (6, 4, 6, (2, 3)), (4, 4, 6, (2, 2)), (8, 4, 6, (2, 4)), (5, 4, 6, (1, 5)), (24, 4, 6, (4, 6))],
)
def test_tokens_of_a_cube_are_means_of_cells(per_cube, rows, columns, cells):
    tokens = video(6, rows, columns, frames=1)
    compressed = Cubes(3, tokens_per_cube=per_cube, gate="fixed").compress(tokens)
    mean = tokens.embeds.view(2, 3, rows, columns, 8).mean(1).permute(0, 3, 1, 2)
    pooled = torch.nn.functional.adaptive_avg_pool2d(mean, cells)
    torch.testing.assert_close(compressed.embeds, pooled.permute(0, 2, 3, 1).reshape(-1, 8))
    assert compressed.num_tokens == 2 * per_cube
    for place, (row, column) in zip(
        compressed.source % (rows * columns), torch.cartesian_prod(*map(torch.arange, cells)).view(-1, 2), strict=False
    ):
        assert row * rows // cells[0] <= place // columns < -(-(row + 1) * rows // cells[0])
        assert column * columns // cells[1] <= place % columns < -(-(column + 1) * columns // cells[1])


def test_keep_beyond_what_cubes_can_hold_keeps_one_a_slice():
    tokens = video(6, 4, 6, num_kept=100)
    policy = Cubes(tokens_per_cube=4)
    assert policy.most_tokens(tokens.grid, 100) == 24
    assert starts(policy.compress(tokens)) == list(range(6))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"frames_per_cube": 0.5}, "frames_per_cube must be None or a number >= 1, got 0.5"),
        ({"frames_per_cube": math.inf}, "frames_per_cube must be"),
        ({"frames_per_cube": True}, "frames_per_cube must be"),
        ({"tokens_per_cube": 0}, "tokens_per_cube must be None or an integer >= 1, got 0"),
        ({"tokens_per_cube": 2.0}, "tokens_per_cube must be"),
        ({"gate": "learnt"}, "gate must be one of momentum, fixed, learned, got 'learnt'"),
        ({"alpha": 0}, r"alpha must be in \(0, 1\], got 0"),
    ],
)
def test_what_cannot_be(options, said):
    with pytest.raises(ConfigError, match=said):
        Cubes(**options)


def test_what_cannot_be_compressed():
    with pytest.raises(ConfigError, match="Cubes was not told how many tokens stay; give frames_per_cube"):
        Cubes().compress(video(4))
    with pytest.raises(ConfigError, match=r"tokens_per_cube=7 makes no grid of cells in slices of 4 x 6 tokens"):
        Cubes(4, tokens_per_cube=7).compress(video(4, 4, 6))
    with pytest.raises(ConfigError, match="Cubes must be the first stage"):
        Cubes(4).compress(video(4).take(torch.arange(20)))
    with pytest.raises(ConfigError, match="compress"):
        QuickPrefillConfig(policy=(Cubes(4), VidCom2(0.5)))
    with pytest.raises(ConfigError, match="keep_tokens"):
        QuickPrefillConfig(policy=Cubes(4), keep_tokens=8)


CLIP = Clip((8, 4, 4))


def answers(model, inputs, **config):
    with quickprefill.patched(model, **config):
        output = generate(model, inputs, max_new_tokens=4)
        return output, quickprefill.report(model)


@pytest.mark.parametrize("group_frames", [2, 6, 16, None])
def test_any_group_size_gives_the_same_cubes(group_frames):
    model, inputs = tiny_model(), make_inputs(prompt(3, CLIP, 5))
    expected, _ = answers(model, inputs, policy=Cubes(5), group_frames=16)
    output, report = answers(model, inputs, policy=Cubes(5), group_frames=group_frames)
    assert report.entered_tokens == 3 * 4
    torch.testing.assert_close(torch.stack(output.logits), torch.stack(expected.logits), atol=1e-5, rtol=1e-4)


def test_the_report_says_where_cubes_begin():
    model, inputs = tiny_model(), make_inputs(prompt(3, CLIP, 5))
    pixels = inputs["pixel_values_videos"].view(8, 16, -1)
    pixels[:3], pixels[3:6], pixels[6:] = pixels[:1].clone(), pixels[3:4].clone(), pixels[6:7].clone()
    _, report = answers(model, inputs, policy=Cubes(5, alpha=1.0), group_frames=4, trace=True)
    (cut,) = [one for one in report.kept_places if one.stage == "compress"]
    assert (cut.places // (cut.grid[1] * cut.grid[2])).unique().tolist() == [0, 3, 6]


def test_a_score_prunes_behind_it():
    model, inputs = tiny_model(), make_inputs(prompt(3, CLIP, 5))
    _, report = answers(model, inputs, keep=0.25, policy=(Cubes(4), KeyNorm()))
    assert report.entered_tokens == 16
    assert set(report.stored_tokens) == {8}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_slices_count_the_frames_of_their_family(family):
    """Two in the Qwen family, one where each frame is a picture."""
    built = FAMILIES[family]
    if not built.chooses:
        pytest.skip("its processor leaves tokens out, so that slices are not whole")
    model, inputs = built.model("sdpa"), build_inputs(family, prompt(3, CLIP, 5))
    _, report = answers(model, inputs, policy=Cubes(4), group_frames=4)
    assert report.entered_tokens < report.video_tokens
