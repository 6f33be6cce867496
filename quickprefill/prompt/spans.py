"""Where a prompt is cut: token ids and grids in, groups and the trailing text out. Integers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quickprefill.errors import InputError

__all__ = ["Grid", "Group", "split_prompt"]


@dataclass(frozen=True)
class Grid:
    """One video's token grid after the vision tower's spatial merge."""

    slices: int
    """Temporal slices T; a slice is two frames in the Qwen family."""
    height: int
    """Token rows per slice."""
    width: int
    """Token columns per slice."""

    def __post_init__(self) -> None:
        if min(self.slices, self.height, self.width) < 1:
            raise InputError(f"a video grid needs at least one slice, row and column of tokens, got {self}")

    @property
    def slice_tokens(self) -> int:
        """Tokens in one temporal slice."""
        return self.height * self.width

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole video, in (t, h, w) raster order."""
        return self.slices * self.slice_tokens


@dataclass(frozen=True)
class Group:
    """Tokens prefilled by one forward: the text before the group, then whole temporal slices of one video.

    Ranges are half-open: the text is [start, video_start), the video tokens are [video_start, stop).
    """

    index: int
    """Counts the prompt's groups from 0."""
    start: int
    video_start: int
    stop: int
    video: int
    """Index of the video in the prompt."""
    first_slice: int
    stop_slice: int

    @property
    def num_text(self) -> int:
        """Tokens before the video tokens; they are never pruned."""
        return self.video_start - self.start

    @property
    def num_video(self) -> int:
        """Video tokens of the group."""
        return self.stop - self.video_start


def split_prompt(
    ids: Sequence[int], video_token_id: int, grids: Sequence[Grid], group_slices: int
) -> tuple[list[Group], int]:
    """Cut one prompt (no padding) into groups of at most `group_slices` temporal slices.

    Returns the groups and the column where the trailing text starts (which is len(ids) if a video ends the prompt).

    Raises:
        InputError: the placeholders do not match the grids.
    """
    columns = [column for column, token in enumerate(ids) if token == video_token_id]
    expected = sum(grid.num_tokens for grid in grids)
    if len(columns) != expected:
        shapes = [(grid.slices, grid.height, grid.width) for grid in grids]
        raise InputError(
            f"the prompt holds {len(columns)} video placeholder tokens, but its {len(grids)} video(s) with merged "
            f"grids (slices, rows, columns) {shapes} need {expected}; pass input_ids, pixel_values_videos and "
            "video_grid_thw from one processor call, and do not truncate input_ids"
        )
    groups: list[Group] = []
    start = taken = 0
    for video, grid in enumerate(grids):
        first = columns[taken]
        if columns[taken + grid.num_tokens - 1] - first != grid.num_tokens - 1:
            raise InputError(
                f"the {grid.num_tokens} placeholder tokens of video {video} are not consecutive in the prompt; other "
                f"tokens stand between them from column {first} on"
            )
        taken += grid.num_tokens
        for first_slice in range(0, grid.slices, group_slices):
            stop_slice = min(first_slice + group_slices, grid.slices)
            video_start = first + first_slice * grid.slice_tokens
            stop = first + stop_slice * grid.slice_tokens
            groups.append(Group(len(groups), start, video_start, stop, video, first_slice, stop_slice))
            start = stop
    return groups, start
