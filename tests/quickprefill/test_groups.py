"""Cutting prompts: hand-computed small cases."""

import pytest

from quickprefill import InputError
from quickprefill.prompt.spans import Grid, Group, split_prompt

V = 99


def test_text_video_text():
    ids = [1, 2, *[V] * 10, 3]
    groups, tail = split_prompt(ids, V, [Grid(5, 1, 2)], group_slices=2)
    assert groups == [
        Group(index=0, start=0, video_start=2, stop=6, video=0, first_slice=0, stop_slice=2),
        Group(index=1, start=6, video_start=6, stop=10, video=0, first_slice=2, stop_slice=4),
        Group(index=2, start=10, video_start=10, stop=12, video=0, first_slice=4, stop_slice=5),
    ]
    assert tail == 12
    assert [group.num_text for group in groups] == [2, 0, 0]
    assert [group.num_video for group in groups] == [4, 4, 2]


def test_groups_never_straddle_videos():
    ids = [V, V, 7, V, V, V]
    groups, tail = split_prompt(ids, V, [Grid(2, 1, 1), Grid(3, 1, 1)], group_slices=10)
    assert [(group.start, group.video_start, group.stop, group.video) for group in groups] == [
        (0, 0, 2, 0),
        (2, 3, 6, 1),
    ]
    assert tail == 6


def test_videos_side_by_side():
    groups, _ = split_prompt([V] * 4, V, [Grid(1, 1, 2), Grid(1, 2, 1)], group_slices=4)
    assert [(group.video_start, group.stop, group.video) for group in groups] == [(0, 2, 0), (2, 4, 1)]


def test_no_video():
    assert split_prompt([1, 2, 3], V, [], group_slices=4) == ([], 0)


@pytest.mark.parametrize("slices", range(1, 41))
def test_every_column_is_covered_once(slices):
    grid = Grid(slices, 3, 5)
    ids = [1, *[V] * grid.num_tokens, 2, 3]
    groups, tail = split_prompt(ids, V, [grid], group_slices=7)
    assert [group.start for group in groups] == [0, *(group.stop for group in groups[:-1])]
    assert tail == groups[-1].stop == 1 + grid.num_tokens
    assert sum(group.num_video for group in groups) == grid.num_tokens


def test_too_few_or_too_many_placeholders():
    with pytest.raises(InputError, match=r"holds 5 video placeholder tokens.*need 6.*do not truncate"):
        split_prompt([V] * 5, V, [Grid(3, 1, 2)], group_slices=2)
    with pytest.raises(InputError, match="holds 7"):
        split_prompt([V] * 7, V, [Grid(3, 1, 2)], group_slices=2)


def test_placeholders_with_a_gap():
    with pytest.raises(InputError, match="not consecutive"):
        split_prompt([V, V, 1, V, V], V, [Grid(2, 1, 2)], group_slices=2)


def test_empty_grid():
    with pytest.raises(InputError, match="at least one slice"):
        Grid(0, 4, 4)
