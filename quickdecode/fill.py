"""Carry out a plan: threads decode blocks into the caller's buffer, and say which rows are done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Semaphore
from typing import Any

import av
import numpy as np

from .decode import CountingDecoder, Damaged, SegmentDecoder
from .errors import FOREIGN_ERRORS, DecodeError, QuickDecodeError, reason
from .picture import PictureWriter, Pixels
from .plan import Block, Segment, count_through, cut
from .pool import NEVER, Deadline, run
from .probe import Media
from .salvage import nearest_frames

FEW_BLOCKS = 3
"""Below this many a worker, the last block to be decoded would leave the others idle for long."""


@dataclass(frozen=True, repr=False)
class Order:
    """Frame wanted[row] of `media` is to be written to row `row` of a buffer."""

    media: Media
    wanted: list[int]
    size: tuple[int, int]
    """Height and width to deliver."""
    buffer: Callable[[Block], tuple[Pixels, int]]
    """Where to write a block: (T, 3, H, W), and which row its first is. Called when the block is begun."""
    interpolation: str = "bicubic"
    """How to resize: one of picture.INTERPOLATIONS."""
    nearest: bool = False
    """Whether frames that cannot be decoded are replaced by the nearest one."""
    replaced: dict[int, int] = field(default_factory=dict)
    """Filled in: wanted frame -> frame given instead."""

    @property
    def resize(self) -> bool:
        info = self.media.info
        return self.size != (info.height, info.width)


def fill(
    order: Order, *, workers: int, deadline: Deadline = NEVER, permits: Semaphore | None = None
) -> Iterator[Block]:
    """Decode, and yield each block when its rows are filled, early frames roughly first.

    One of `permits` is taken for each block begun; the caller gives them back.
    """
    media = order.media
    index, wanted = media.index, order.wanted
    blocks = count_through(wanted) if index is None else cut(index, wanted, workers=workers)
    busy = min(workers, len(blocks))
    threads = 1 if media.damaged else decoder_threads(len(blocks), workers)

    @contextmanager
    def worker(stop: Event) -> Iterator[Callable[[Block], None]]:
        writer = PictureWriter(
            *order.size, rotation=media.info.rotation, resize=order.resize, interpolation=order.interpolation
        )
        with media.source.open() as container:
            do = _segment_worker(order, container, writer, threads, stop)

            def do_block(block: Block) -> None:
                writer.aim(*order.buffer(block))
                for segment in block.segments:
                    do(segment)

            yield do_block

    return run(blocks, worker, workers=busy, deadline=deadline, permits=permits)


def decoder_threads(blocks: int, workers: int) -> int:
    """Threads inside each decoder: more than one only where there are too few blocks to keep all workers busy."""
    if blocks <= workers:
        return -(-workers // blocks)
    return 2 if workers > 1 and blocks < FEW_BLOCKS * workers else 1


def _segment_worker(
    order: Order, container: Any, writer: PictureWriter, threads: int, stop: Event
) -> Callable[[Segment], None]:
    media = order.media
    if media.index is None:
        counter = CountingDecoder(container, media, threads=threads, stop=stop)

        def count(segment: Segment) -> None:
            with _naming_frames(order, segment):
                for number, frame in counter.decode(segment, tolerant=order.nearest):
                    writer.write(frame, segment.rows[number])

        return count
    decoder = SegmentDecoder(container, media, media.index, threads=threads, stop=stop)

    def decode(segment: Segment) -> None:
        with _naming_frames(order, segment):
            try:
                _write_all(decoder, segment, writer)
            except av.FFmpegError:
                if not order.nearest or not _salvage(order, decoder, segment, writer):
                    raise

    return decode


def _write_all(decoder: SegmentDecoder, segment: Segment, writer: PictureWriter) -> None:
    try:
        for pts, frame in decoder.decode(segment):
            writer.write(frame, segment.rows[pts])
    except Damaged:
        for pts, frame in decoder.decode(segment, skip=False):
            writer.write(frame, segment.rows[pts])


def _salvage(order: Order, decoder: SegmentDecoder, segment: Segment, writer: PictureWriter) -> bool:
    """Write the nearest frames that decode, and note which. False if nothing in the file does."""
    index = order.media.index
    assert index is not None
    given = nearest_frames(decoder.whatever_decodes, segment, len(index.keys), writer.write)
    for wanted_pts, given_pts in given.items():
        wanted, shown = np.searchsorted(index.frame_pts, [wanted_pts, given_pts])
        if wanted != shown:
            order.replaced[int(wanted)] = int(shown)
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
            f"{last:.3f} s ({reason(error)}). The file is damaged there; ask for other frames, pass "
            'on_error="nearest", or re-encode it.'
        ) from error
