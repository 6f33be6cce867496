"""Where prompts are cut: hand-computed small cases."""

import pytest
import torch

from quickprefill import InputError
from quickprefill.prompt.spans import Grid, find_videos

V = 99


def videos(ids, *grids, closing=0):
    return find_videos(torch.tensor(ids), V, grids, closing)


def groups(spans, slices):
    """All groups of `slices` temporal slices, numbered through."""
    made = []
    for span in spans:
        for first in range(0, span.grid.slices, slices):
            made.append(span.group(len(made), first, min(first + slices, span.grid.slices)))
    return made


def test_text_video_text():
    (span,) = videos([1, 2, *[V] * 10, 3], Grid(5, 1, 2))
    assert (span.start, span.stop, list(span.slice_columns)) == (0, 12, [2, 4, 6, 8, 10])
    parts = groups([span], 2)
    assert [(group.start, group.video_start, group.stop) for group in parts] == [(0, 2, 6), (6, 6, 10), (10, 10, 12)]
    assert [(group.num_text, group.num_video) for group in parts] == [(2, 4), (0, 4), (0, 2)]
    assert [(group.first_slice, group.stop_slice) for group in parts] == [(0, 2), (2, 4), (4, 5)]
    assert all(group.consecutive for group in parts)
    assert parts[1].columns().tolist() == [6, 7, 8, 9]
    assert parts[1].grid == Grid(2, 1, 2)


def test_text_between_slices_belongs_to_the_slice_that_follows():
    (span,) = videos([1, V, V, 2, 3, V, V, 4, V, V, 5], Grid(3, 1, 2))
    both, last = groups([span], 2)
    assert (both.start, both.stop, both.num_text, both.num_video) == (0, 7, 3, 4)
    assert not both.consecutive
    assert both.columns().tolist() == [1, 2, 5, 6]
    assert both.columns(torch.tensor([1, 2])).tolist() == [2, 5]
    assert both.text_columns().tolist() == [0, 3, 4]
    assert (last.start, last.stop, last.text_columns().tolist()) == (7, 10, [7])
    assert last.consecutive


def test_groups_never_straddle_videos():
    spans = videos([V, V, 7, V, V, V], Grid(2, 1, 1), Grid(3, 1, 1))
    assert [(group.start, group.video_start, group.stop, group.video) for group in groups(spans, 10)] == [
        (0, 0, 2, 0),
        (2, 3, 6, 1),
    ]


def test_videos_side_by_side():
    spans = videos([V] * 4, Grid(1, 1, 2), Grid(1, 2, 1))
    assert [(group.video_start, group.stop, group.video) for group in groups(spans, 4)] == [(0, 2, 0), (2, 4, 1)]


def test_placeholders_that_close_a_video_are_text_behind_it():
    spans = videos([1, *[V] * 5, *[V] * 3, 2], Grid(2, 1, 2), Grid(1, 1, 2), closing=1)
    assert [(span.start, span.stop, list(span.slice_columns)) for span in spans] == [(0, 5, [1, 3]), (5, 8, [6])]
    assert [group.text_columns().tolist() for group in groups(spans, 2)] == [[0], [5]]
    with pytest.raises(InputError, match="holds 5 video placeholder tokens.*need 6"):
        videos([V] * 5, Grid(5, 1, 1), closing=1)


def test_no_video():
    assert videos([1, 2, 3]) == []


@pytest.mark.parametrize("between", [0, 1, 3])
@pytest.mark.parametrize("slices", range(1, 41, 3))
def test_every_column_is_covered_once(slices, between):
    grid = Grid(slices, 3, 5)
    ids = [1]
    for _ in range(slices):
        ids += [*[V] * 15, *[2] * between]
    parts = groups(videos([*ids, 3], grid), 7)
    assert [group.start for group in parts] == [0, *(group.stop for group in parts[:-1])]
    covered = torch.cat([torch.cat([group.text_columns(), group.columns()]).sort().values for group in parts])
    assert covered.tolist() == list(range(parts[-1].stop))
    assert all(ids[column] == V for group in parts for column in group.columns().tolist())
    assert sum(group.num_video for group in parts) == grid.num_tokens


def test_too_few_or_too_many_placeholders():
    with pytest.raises(InputError, match=r"holds 5 video placeholder tokens.*need 6.*do not truncate"):
        videos([V] * 5, Grid(3, 1, 2))
    with pytest.raises(InputError, match="holds 7"):
        videos([V] * 7, Grid(3, 1, 2))


def test_a_slice_with_a_gap():
    with pytest.raises(InputError, match="temporal slice 1 of video 0 are not consecutive.*from column 3 on"):
        videos([V, V, 1, V, 1, V], Grid(2, 1, 2))


def test_empty_grid():
    with pytest.raises(InputError, match="at least one slice"):
        Grid(0, 4, 4)


@pytest.mark.parametrize("between", [[], [7], [7, 8]], ids=str)
def test_slices_of_unequal_length(between):
    """Of three slices of four tokens the prompt holds all, the second and fourth, and the third."""
    present = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 1, 0]]).bool()
    grid = Grid(3, 2, 2, present)
    assert (grid.num_tokens, grid.num_made, grid.lengths) == (7, 12, [4, 2, 1])
    assert grid.places().tolist() == [0, 1, 2, 3, 5, 7, 10]
    ids = [1, *[V] * 4, *between, *[V] * 2, *between, V, 3]
    (span,) = videos(ids, grid)
    first, last = groups([span], 2)
    assert (first.num_video, last.num_video, last.stop) == (6, 1, len(ids) - 1)
    assert [column for group in (first, last) for column in group.columns().tolist()] == [
        column for column, token in enumerate(ids) if token == V
    ]
    second = 5 + len(between)
    assert first.columns(torch.tensor([3, 5, 7])).tolist() == [4, second, second + 1]
    assert first.grid.places().tolist() == [0, 1, 2, 3, 5, 7]
    assert last.grid.places().tolist() == [2]
    assert last.columns(torch.tensor([2])).tolist() == [len(ids) - 2]


def test_every_slice_holds_a_token():
    with pytest.raises(InputError, match=r"must hold a token, got \[2, 0\]"):
        Grid(2, 1, 2, torch.tensor([[True, True], [False, False]]))
