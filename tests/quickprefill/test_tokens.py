"""VideoTokens: taking, cutting, and what rides along."""

import pytest
import torch

from quickprefill.policies import VideoTokens
from quickprefill.prompt.spans import Grid


def tokens(device="cpu", **options):
    grid = Grid(4, 2, 3)
    places = torch.arange(24, device=device)
    return VideoTokens(
        places[:, None] * torch.ones(5, device=device), torch.arange(72).view(3, 24), places, grid, **options
    )


def test_features_are_the_first_channels():
    whole, narrow = tokens(), tokens(width=2)
    assert whole.features is whole.embeds
    assert narrow.features.shape == (24, 2)
    assert narrow.take(torch.tensor([3, 7])).embeds.shape == (2, 5), "whole rows are taken"
    assert narrow.take(torch.tensor([3, 7])).features.tolist() == [[3, 3], [7, 7]]


@pytest.mark.parametrize("rows", [1, 3])
def test_take(rows):
    given = tokens(pools=torch.arange(24) // 6, num_kept=2)
    given = VideoTokens(given.embeds, given.positions[:rows], given.source, given.grid, given.pools)
    taken = given.take(torch.tensor([1, 8, 23]))
    assert taken.source.tolist() == [1, 8, 23]
    assert taken.pools.tolist() == [0, 1, 3]
    assert taken.positions.tolist() == [[row * 24 + place for place in (1, 8, 23)] for row in range(rows)]
    assert taken.grid == given.grid


def test_cut_renumbers_and_forgets_the_budget_of_the_whole():
    first, second = tokens(num_kept=10, width=2, question=torch.ones(1, 2)).cut(1, 4)
    assert (first.grid, second.grid) == (Grid(1, 2, 3), Grid(3, 2, 3))
    assert first.source.tolist() == list(range(6))
    assert second.source.tolist() == list(range(18))
    assert second.embeds[:, 0].tolist() == list(range(6, 24))
    assert (second.num_kept, second.width, second.question.shape) == (None, 2, (1, 2))


def test_cut_after_tokens_were_dropped():
    first, second, third = tokens().take(torch.tensor([0, 5, 7, 23])).cut(1, 3, 4)
    assert [part.source.tolist() for part in (first, second, third)] == [[0, 5], [1], [5]]
    assert [part.positions[0].tolist() for part in (first, second, third)] == [[0, 5], [7], [23]]
    assert tokens().take(torch.tensor([0, 23])).cut(1, 3, 4)[1].num_tokens == 0


def test_cut_waits_for_the_device_only_where_tokens_were_dropped():
    """Nothing can be read from the meta device."""
    whole = tokens(device="meta")
    assert [part.num_tokens for part in whole.cut(1, 4)] == [6, 18]
    with pytest.raises((NotImplementedError, RuntimeError)):
        whole.take(torch.arange(5, device="meta")).cut(1, 4)
