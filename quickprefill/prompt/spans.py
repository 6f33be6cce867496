"""Where a prompt is cut: token ids and grids in, spans of video and groups of slices out. Integers only.

    columns   0 1   2 3 4 5   6 7   8 9 10 11   12 13 14
    role      text  slice 0   text  slice 1     text              one video of two slices of four tokens
    groups    |-------------- group 0 --------| |- tail -|

A column is a token's place in its prompt, without padding. A video's slices are runs of tokens; text may stand
between them (timestamps, frame markers), and belongs to the group of the slice that follows. The runs are of equal
length, unless the host's processor left tokens out of the prompt. Some hosts close a video with placeholders that are
no place of it (a newline); they are text like what follows them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from quickprefill.errors import InputError

__all__ = ["Grid", "Group", "VideoSpan", "find_videos"]


@dataclass(frozen=True)
class Grid:
    """One video's token grid after the vision tower's spatial merge."""

    slices: int
    """Temporal slices T."""
    height: int
    """Token rows per slice."""
    width: int
    """Token columns per slice."""
    present: torch.Tensor | None = field(default=None, repr=False, compare=False)
    """(slices, height x width) bool, on the CPU: which of the raster's tokens the prompt holds; None: all."""
    slice_frames: int = field(default=1, repr=False, compare=False)
    """Video frames that the tower merges into one slice: two in the Qwen family."""

    def __post_init__(self) -> None:
        if min(self.slices, self.height, self.width) < 1:
            raise InputError(f"a video grid needs at least one slice, row and column of tokens, got {self}")
        if self.present is not None and not bool(self.present.any(dim=1).all()):
            raise InputError(f"of each slice of {self} the prompt must hold a token, got {self.lengths} tokens")

    @property
    def slice_tokens(self) -> int:
        """Tokens in one temporal slice, as the vision tower makes them."""
        return self.height * self.width

    @property
    def num_made(self) -> int:
        """Tokens of the whole raster, as the vision tower makes them."""
        return self.slices * self.slice_tokens

    @functools.cached_property
    def num_tokens(self) -> int:
        """Tokens of the video in the prompt, in (t, h, w) raster order."""
        return self.num_made if self.present is None else int(self.present.sum())

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Tokens of each slice in the prompt."""
        if self.present is None:
            return [self.slice_tokens] * self.slices
        lengths: list[int] = self.present.sum(dim=1).tolist()
        return lengths

    def part(self, first_slice: int, stop_slice: int) -> Grid:
        """The grid of slices [first_slice, stop_slice)."""
        present = None if self.present is None else self.present[first_slice:stop_slice]
        return Grid(stop_slice - first_slice, self.height, self.width, present, self.slice_frames)

    def places(self, device: torch.device | None = None) -> torch.Tensor:
        """(num_tokens,) places in the raster of the tokens in the prompt, ascending."""
        if self.present is None:
            return torch.arange(self.num_made, device=device)
        return self.present.flatten().nonzero()[:, 0].to(device)


@dataclass(frozen=True)
class Group:
    """Tokens prefilled by one pass: whole temporal slices of one video and the text before and between them."""

    index: int
    """Counts the prompt's groups from 0."""
    start: int
    """First column, that of the text before the slices, if there is any."""
    stop: int
    """The column behind the last slice."""
    video: int
    """Index of the video in the prompt."""
    first_slice: int
    stop_slice: int
    video_grid: Grid
    """The whole video's grid."""
    slice_columns: Sequence[int]
    """The column at which each slice starts."""

    @property
    def grid(self) -> Grid:
        """The group's part of it."""
        return self.video_grid.part(self.first_slice, self.stop_slice)

    @property
    def slice_tokens(self) -> int:
        """Tokens in one temporal slice."""
        return self.video_grid.slice_tokens

    @property
    def num_video(self) -> int:
        """Video tokens of the group in the prompt."""
        return sum(self.video_grid.lengths[self.first_slice : self.stop_slice])

    @property
    def num_text(self) -> int:
        """Text and image tokens of the group; they are never pruned."""
        return self.stop - self.start - self.num_video

    @property
    def video_start(self) -> int:
        """The first column of video."""
        return self.slice_columns[0]

    @property
    def consecutive(self) -> bool:
        """Whether no text stands between the slices: the group is text, then video."""
        return self.stop - self.video_start == self.num_video

    def columns(self, places: torch.Tensor | None = None) -> torch.Tensor:
        """Columns of the video tokens at `places`, (n,) in the group's (t, h, w) raster; None: of all of them."""
        if places is None:
            places = self.grid.places()
        present = self.grid.present
        if present is None and self.consecutive:
            return places + self.video_start
        starts = torch.tensor(self.slice_columns, device=places.device)
        within = places % self.slice_tokens
        if present is not None:
            within = (present.cumsum(dim=1) - 1).flatten().to(places.device)[places]
        return starts[places // self.slice_tokens] + within

    def text_columns(self) -> torch.Tensor:
        """Columns of the group's text, (num_text,), ascending."""
        if self.consecutive:
            return torch.arange(self.start, self.video_start)
        is_text = torch.ones(self.stop - self.start, dtype=torch.bool)
        is_text[self.columns() - self.start] = False
        return is_text.nonzero()[:, 0] + self.start


@dataclass(frozen=True)
class VideoSpan:
    """One video's place in a prompt."""

    index: int
    start: int
    """First column of the text before it, behind the video before."""
    grid: Grid
    slice_columns: Sequence[int]
    """The column at which each slice starts."""

    @property
    def stop(self) -> int:
        """The column behind its last slice."""
        return self.slice_columns[-1] + self.grid.lengths[-1]

    def group(self, index: int, first_slice: int, stop_slice: int) -> Group:
        """The group of slices [first_slice, stop_slice), and of the text before and between them."""
        lengths, last = self.grid.lengths, first_slice - 1
        return Group(
            index=index,
            start=self.start if first_slice == 0 else self.slice_columns[last] + lengths[last],
            stop=self.slice_columns[stop_slice - 1] + lengths[stop_slice - 1],
            video=self.index,
            first_slice=first_slice,
            stop_slice=stop_slice,
            video_grid=self.grid,
            slice_columns=self.slice_columns[first_slice:stop_slice],
        )


def find_videos(ids: torch.Tensor, video_token_id: int, grids: Sequence[Grid], closing: int = 0) -> list[VideoSpan]:
    """The videos of one prompt, from its token ids (S,) on the CPU, no padding.

    Args:
        closing: placeholders behind each video's last slice that are no place of it.

    Raises:
        InputError: the placeholders do not match the grids.
    """
    columns = (ids == video_token_id).nonzero()[:, 0]
    expected = sum(grid.num_tokens + closing for grid in grids)
    if len(columns) != expected:
        shapes = [(grid.slices, grid.height, grid.width) for grid in grids]
        raise InputError(
            f"the prompt holds {len(columns)} video placeholder tokens, but its {len(grids)} video(s) with merged "
            f"grids (slices, rows, columns) {shapes} need {expected}; pass input_ids and pixels from one processor "
            "call, and do not truncate input_ids"
        )
    spans: list[VideoSpan] = []
    start = taken = 0
    for index, grid in enumerate(grids):
        lengths = torch.tensor(grid.lengths)
        stops = lengths.cumsum(0) + taken
        first, last = columns[stops - lengths], columns[stops - 1]
        broken = (last - first != lengths - 1).nonzero()
        if len(broken):
            at = int(broken[0])
            raise InputError(
                f"the {grid.lengths[at]} placeholder tokens of temporal slice {at} of video {index} are not "
                f"consecutive in the prompt; other tokens stand between them from column {int(first[at])} on"
            )
        taken += grid.num_tokens + closing
        spans.append(VideoSpan(index, start, grid, first.tolist()))
        start = spans[-1].stop
    return spans
