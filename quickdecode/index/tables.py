"""A file's own tables: its packets without a demux, compared with the first ones that were read."""

from __future__ import annotations

from typing import Any

from ..source.source import Source
from ..threads.stop import Stop
from . import mkv, mp4
from .clock import UNKNOWN
from .packets import Packets

MP4, MATROSKA = frozenset({"mov", "mp4"}), frozenset({"matroska", "webm"})


def table_packets(source: Source, container: str, stream: Any, head: Packets, stop: Stop) -> Packets | str | None:
    """The packets of `stream` by the file's own tables; None if it has none that are plain to see, or that agree
    with `head`, the first packets of the stream. A text says why the file is known to be cut short.
    """
    kind = set(container.split(","))
    with source.file(stop) as file:
        if MATROSKA & kind:
            found = mkv.read_packets(file, source.size)
        elif MP4 & kind:
            found = _mp4(mp4.read_samples(file, source.size, stream.id), stream, head)
        else:
            return None
    return found if isinstance(found, str) or found is None or _agree(found, head) else None


def _mp4(samples: mp4.Samples | str | None, stream: Any, head: Packets) -> Packets | str | None:
    if samples is None or isinstance(samples, str):
        return samples
    first_pts, first_dts = int(head.pts[0]), int(head.dts[0])
    if first_pts == UNKNOWN or first_dts == UNKNOWN:
        return None
    if not mp4.hidden(samples):
        return mp4.packets(samples, first_pts, first_dts)
    entries = getattr(stream, "index_entries", None)
    return None if entries is None else mp4.edited_packets(samples, entries, first_pts)


def _agree(table: Packets, head: Packets) -> bool:
    count = len(head)
    if len(table) < count:
        return False
    dts_known = head.dts != UNKNOWN
    return bool(
        (table.pts[:count] == head.pts).all()
        and (table.key[:count] == head.key).all()
        and (table.shown[:count] == head.shown).all()
        and ((table.dts[:count] == head.dts) | ~dts_known | (table.dts[:count] == UNKNOWN)).all()
    )
