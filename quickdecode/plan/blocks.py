"""Which packets must be decoded for the wanted frames, cut into pieces that threads can take one by one.

A segment starts at a key frame and stops after the last packet that a wanted frame needs; a group of pictures
that holds no wanted frame is in no segment. Blocks are runs of neighbouring segments, in display order, so that
early frames finish first.

    packets   K . . . . K . . . . K . . . . K . . . .
    wanted        x                 x   x       x
    segments  [----)                [-----) [---)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..index.packets import FrameIndex

BLOCKS_PER_WORKER = 64
TAIL_BLOCKS_PER_WORKER = 4
"""How many of the last blocks are decoded largest first, where order does not matter."""


@dataclass(frozen=True)
class Segment:
    """What to decode from one key packet on."""

    key: int
    """Which key packet, counted from 0."""
    stop: int
    """Position of the first packet that is surely not needed."""
    cost: int
    """How many packets will probably be decoded."""
    rows: dict[int, list[int]] = field(repr=False)
    """Wanted pts (or frame number, where frames are counted) -> rows of the output that receive that frame."""


@dataclass(frozen=True)
class Block:
    """Neighbouring segments that one worker decodes one after another."""

    segments: tuple[Segment, ...]

    @property
    def cost(self) -> int:
        """How many packets will probably be decoded."""
        return sum(segment.cost for segment in self.segments)


def cut(index: FrameIndex, wanted: Sequence[int], *, workers: int, most_rows: int | None = None) -> list[Block]:
    """Blocks that together produce frame wanted[row] for every row, earliest frames first.

    With `most_rows` a block ends when it fills that many rows, so that several fit into a small buffer.
    """
    segments = _segments(index, rows_by_frame(wanted))
    target = sum(segment.cost for segment in segments) / (workers * BLOCKS_PER_WORKER)
    blocks: list[Block] = []
    run: list[Segment] = []
    cost = rows = 0
    for segment in segments:
        run.append(segment)
        cost += segment.cost
        rows += sum(map(len, segment.rows.values()))
        if cost >= target or (most_rows is not None and rows >= most_rows):
            blocks.append(Block(tuple(run)))
            run, cost, rows = [], 0, 0
    return [*blocks, Block(tuple(run))] if run else blocks


def ending_together(blocks: Sequence[Block], *, workers: int) -> list[Block]:
    """The same blocks, the last few with the largest first, so that no worker is left alone with a large one.

    Only the last few, because a file that is read forwards is read faster.
    """
    tail = max(len(blocks) - TAIL_BLOCKS_PER_WORKER * workers, 0)
    return [*blocks[:tail], *sorted(blocks[tail:], key=lambda block: block.cost, reverse=True)]


def count_through(wanted: Sequence[int]) -> Segment:
    """All of a file whose frames have to be counted from the start."""
    rows = rows_by_frame(wanted)
    stop = max(rows) + 1
    return Segment(key=0, stop=stop, cost=stop, rows=rows)


def rows_by_frame(wanted: Sequence[int]) -> dict[int, list[int]]:
    """Frame number -> rows that it fills, in ascending order of frames."""
    rows: dict[int, list[int]] = {frame: [] for frame in sorted(set(wanted))}
    for row, frame in enumerate(wanted):
        rows[frame].append(row)
    return rows


def _segments(index: FrameIndex, rows: dict[int, list[int]]) -> list[Segment]:
    groups: dict[int, list[int]] = {}
    for frame, key in zip(rows, _key_of(index, list(rows)), strict=True):
        groups.setdefault(key, []).append(frame)
    return [_segment(index, key, frames, rows) for key, frames in groups.items()]


def _segment(index: FrameIndex, key: int, frames: list[int], rows: dict[int, list[int]]) -> Segment:
    last = int(index.positions[frames].max()) + 1
    following = int(index.keys[key + 1]) if key + 1 < len(index.keys) else index.num_packets
    stop = last if index.order_stated else max(last, following)
    by_pts = {int(index.frame_pts[frame]): rows[frame] for frame in frames}
    return Segment(key=key, stop=stop, cost=last - int(index.keys[key]), rows=by_pts)


def _key_of(index: FrameIndex, frames: list[int]) -> list[int]:
    """The key packet to start at: for a picture shown before its own key frame, the one of the group before."""
    groups = np.searchsorted(index.keys, index.positions[frames], side="right") - 1
    groups = groups - (index.frame_pts[frames] < index.key_pts[groups])
    return [max(int(group), 0) for group in groups]
