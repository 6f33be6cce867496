"""Carry out a plan: threads decode blocks into a buffer, and say which rows are done."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import av
import numpy as np

from ..errors import FOREIGN_ERRORS, DecodeError, QuickDecodeError, reason
from ..index.media import Media
from ..index.packets import Way
from ..plan.blocks import Block, Segment, count_through, cut, ending_together
from ..threads.pool import NEVER, Crew, Deadline
from ..threads.stop import Stop
from .block import CountingDecoder, Damaged, Mismatch, SegmentDecoder
from .handover import Handover
from .kept import Decoders, decoder
from .picture import PictureWriter, Pixels
from .salvage import nearest_frames

FEW_BLOCKS = 3
"""Below this many a worker, the last block to be decoded would leave the others idle for long."""


class Buffer(Protocol):
    """Where rows are written; an array for all of them (Whole), or less than that (Ring)."""

    @property
    def most_rows(self) -> int | None:
        """How many rows one block should fill at most, and its rows come early first; None: neither matters."""

    def has_room(self, row: int) -> bool:
        """Whether place(row) would return at once."""

    def place(self, row: int) -> Pixels:
        """(3, H, W) to write the row into; waits until there is room. Raises Cancelled if there will be none."""


@dataclass(frozen=True, repr=False)
class Whole:
    """Room for every row."""

    pictures: Pixels
    """(T, 3, H, W)."""

    @property
    def most_rows(self) -> None:
        """Blocks may be of any size and order."""

    def has_room(self, row: int) -> bool:
        return True

    def place(self, row: int) -> Pixels:
        picture: Pixels = self.pictures[row]
        return picture


@dataclass(frozen=True, repr=False)
class Order:
    """Frame wanted[row] of `media` is to be written to row `row` of a buffer."""

    media: Media
    wanted: list[int]
    size: tuple[int, int]
    """Height and width to deliver."""
    buffer: Buffer
    resize: str = "fast"
    interpolation: str = "bicubic"
    """How to resize: one of resize.RESIZES, one of picture.INTERPOLATIONS."""
    nearest: bool = False
    """Whether frames that cannot be decoded are replaced by the nearest one."""
    replaced: dict[int, int] = field(default_factory=dict)
    """Filled in: wanted frame -> frame given instead."""

    @property
    def resized(self) -> bool:
        """Whether frames are to be of another size than the file's."""
        info = self.media.info
        return self.size != (info.height, info.width)


def fill(
    order: Order, *, workers: int, deadline: Deadline = NEVER, decoders: Decoders | None = None
) -> Crew[Any, list[int]]:
    """Start to decode; iterate over what this returns for the rows that are filled, early frames roughly first.

    `decoders`: those to use and to keep open; without them the file is opened again.
    """
    media, buffer, index = order.media, order.buffer, order.media.index
    if index is None:
        return _count(order, workers, deadline)
    blocks = cut(index, order.wanted, workers=workers, most_rows=buffer.most_rows)
    if buffer.most_rows is None:
        blocks = ending_together(blocks, workers=workers)
    threads = decoder_threads(len(blocks), workers)

    @contextmanager
    def worker(stop: Stop) -> Iterator[Callable[[Block], Iterator[list[int]]]]:
        with decoder(decoders, media, index, threads, stop) as ours:
            do = _seeking(order, ours, _RowWriter(order))
            yield lambda block: (rows for segment in block.segments for rows in do(segment))

    return Crew(blocks, worker, workers=min(workers, len(blocks)), deadline=deadline)


def _count(order: Order, workers: int, deadline: Deadline) -> Crew[Any, list[int]]:
    """One thread decodes from the start and counts; the others, if there are any, write the pictures."""
    media = order.media
    writers = workers - 1
    handover = Handover(writers)

    def decode(segment: Segment, writer: _RowWriter, stop: Stop) -> Iterator[list[int]]:
        threads = 1 if media.damaged else workers
        with _naming_frames(order, segment), media.source.open(stop) as container:
            decoder = CountingDecoder(container, media, threads=threads, stop=stop)
            for number, frame in decoder.decode(segment, tolerant=order.nearest):
                if writers:
                    handover.give(frame, segment.rows[number], stop)
                else:
                    yield from writer.write(frame, segment.rows[number])
        yield from writer.report()
        if writers:
            handover.end(stop)

    def write(writer: _RowWriter, stop: Stop) -> Iterator[list[int]]:
        for frame, rows in handover.taken(stop):
            yield from writer.write(frame, rows)
            yield from writer.report()

    @contextmanager
    def worker(stop: Stop) -> Iterator[Callable[[Segment | None], Iterator[list[int]]]]:
        writer = _RowWriter(order)
        yield lambda segment: write(writer, stop) if segment is None else decode(segment, writer, stop)

    return Crew([count_through(order.wanted), *[None] * writers], worker, workers=workers, deadline=deadline)


class _RowWriter:
    """Writes frames into their rows. Before it waits for room it reports what it has written so far."""

    def __init__(self, order: Order) -> None:
        self._buffer = order.buffer
        info = order.media.info
        self._pictures = PictureWriter(
            *order.size,
            rotation=info.rotation,
            mirrored=info.mirrored,
            resized=order.resized,
            resize=order.resize,
            interpolation=order.interpolation,
        )
        self._written: list[int] = []

    def write(self, frame: Any, rows: list[int]) -> Iterator[list[int]]:
        """Put `frame` into every row in `rows`."""
        last: Pixels | None = None
        for row in rows:
            if not self._buffer.has_room(row):
                yield from self.report()
                last = None  # what was reported may be overwritten
            target = self._buffer.place(row)
            if last is None:
                self._pictures.write(frame, target)
            else:
                np.copyto(target, last)
            last = target
            self._written.append(row)

    def report(self) -> Iterator[list[int]]:
        """The rows written since the last report, if any."""
        if self._written:
            yield self._written
            self._written = []


def decoder_threads(blocks: int, workers: int) -> int:
    """Threads inside each decoder: more than one only where there are too few blocks to keep all workers busy."""
    if blocks <= workers:
        return -(-workers // blocks)
    return 2 if workers > 1 and blocks < FEW_BLOCKS * workers else 1


def _seeking(order: Order, decoder: SegmentDecoder, writer: _RowWriter) -> Callable[[Segment], Iterator[list[int]]]:
    """Decodes a segment and reports the rows that it has filled."""

    def decode(segment: Segment) -> Iterator[list[int]]:
        with _naming_frames(order, segment):
            try:
                yield from _write_all(decoder, segment, writer)
            except av.FFmpegError as error:
                if order.media.way == Way.TABLE:  # which may have named a key frame that is none
                    raise Mismatch(f"FFmpeg cannot decode it as its table says ({reason(error)})") from error
                if not order.nearest or not (yield from _salvage(order, decoder, segment, writer)):
                    raise
        yield from writer.report()

    return decode


def _write_all(decoder: SegmentDecoder, segment: Segment, writer: _RowWriter) -> Iterator[list[int]]:
    try:
        for pts, frame in decoder.decode(segment):
            yield from writer.write(frame, segment.rows[pts])
    except Damaged:
        for pts, frame in decoder.decode(segment, skip=False):
            yield from writer.write(frame, segment.rows[pts])


def _salvage(
    order: Order, decoder: SegmentDecoder, segment: Segment, writer: _RowWriter
) -> Generator[list[int], None, bool]:
    """Write the nearest frames that decode, and note which. False if nothing in the file does."""
    index = order.media.index
    assert index is not None
    given, frames = nearest_frames(decoder.whatever_decodes, segment, len(index.keys))
    for wanted_pts, given_pts in given.items():
        wanted, shown = np.searchsorted(index.frame_pts, [wanted_pts, given_pts])
        if wanted != shown:
            order.replaced[int(wanted)] = int(shown)
    for frame, rows in frames:
        yield from writer.write(frame, rows)
    return bool(given)


@contextmanager
def _naming_frames(order: Order, segment: Segment) -> Iterator[None]:
    """Turn FFmpeg's errors into a DecodeError that names the segment's wanted frames and their times."""
    try:
        yield
    except QuickDecodeError:
        raise
    except FOREIGN_ERRORS as error:
        frames = sorted(order.wanted[rows[0]] for rows in segment.rows.values())
        first, last = order.media.seconds[frames[0]], order.media.seconds[frames[-1]]
        raise DecodeError(
            f"{order.media.source.name}: FFmpeg cannot decode frames {frames[0]} to {frames[-1]}, {first:.3f} s to "
            f"{last:.3f} s ({reason(error)}). The file is damaged there, or its frames are larger than "
            f"limits.frame_pixels={order.media.source.limits.frame_pixels}; ask for other frames, pass "
            'on_error="nearest", or re-encode it.'
        ) from error
