"""Look into a file: stream facts, the first picture, and how its frames are numbered."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from fractions import Fraction
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import SourceError, translated
from ..source.limits import DEFAULT_LIMITS, Limits
from ..source.source import Source
from ..threads.stop import Stop
from .clock import UNKNOWN, display_order, steady
from .media import Media, VideoInfo
from .orientation import display_orientation
from .packets import STAND_ALONE_CODECS, Codec, FrameIndex, Packets, Way, last_duration, numbered
from .scan import Scan
from .sequential import all_frames, video_stream
from .skip import skips_unreferenced
from .tables import table_packets

CACHED_FILES = 8
"""An hour of video takes some 3 MB here."""
FALLBACK_FPS = Fraction(25)


_cache: OrderedDict[tuple[object, ...], Media] = OrderedDict()
_cache_lock = Lock()
_NEVER_SET = Stop()


def inspect(
    source: Source,
    *,
    at_least: Way = Way.TABLE,
    why: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    stop: Stop = _NEVER_SET,
) -> Media:
    """The Media of `source`, from the cache if the file did not change.

    `at_least` rules out the cheaper ways of numbering frames, `why` being what was wrong with them.
    """
    identity = source.identity()
    key = None if identity is None else (*identity, at_least)
    with _cache_lock:
        media = _cache.get(key) if key is not None else None
    if media is None:
        media = _inspect(source, at_least, why, limits, stop)
        if key is not None:
            _remember(key, media)
    media = replace(media, source=source, info=replace(media.info, name=source.name))  # not an equal one of before
    limits.check_size(source.name, media.info.height, media.info.width)
    limits.check_duration(source.name, media.info.duration_seconds)
    return media


def _remember(key: tuple[object, ...], media: Media) -> None:
    with _cache_lock:
        _cache[key] = media
        while len(_cache) > CACHED_FILES:
            _cache.popitem(last=False)


def _inspect(source: Source, at_least: Way, why: str | None, limits: Limits, stop: Stop) -> Media:
    with source.open(stop) as container, translated(source.name, "reading it"):
        stream = video_stream(container, source)
        limits.check_size(source.name, stream.codec_context.height, stream.codec_context.width)
        stream.codec_context.thread_count = 1
        scan = Scan(container, stream, source.name, stop)
        facts = _facts(container, stream, scan.first)
        table = table_packets(source, facts["container"], stream, scan.packets, stop)
        facts["truncated"] = table if isinstance(table, str) else None
        if at_least < Way.DECODING:
            packets, way = (table, Way.TABLE) if isinstance(table, Packets) else (scan.to_the_end(), Way.PACKETS)
            if at_least > way:
                packets, way = scan.to_the_end(), at_least
    if at_least == Way.DECODING:
        return _decoded(source, facts, why or "asked for", stop)
    codec = Codec(facts["codec"], facts["intra_only"], facts["reorders"], scan.delay)
    index = numbered(packets, facts["container"], codec, float(1 / facts["time_base"]))
    if isinstance(index, str) or way == Way.COUNTING:
        return _expected(source, facts, packets, codec, index if isinstance(index, str) else why or "asked for")
    duration = float((index.end_pts - int(index.frame_pts[0])) * facts["time_base"])
    return _media(source, facts, way, index.frame_pts, facts["time_base"], duration, index=index)


def _facts(container: Any, stream: Any, first: Any) -> dict[str, Any]:
    """Everything that must be read while the container is open: its streams' memory goes away with it."""
    rate = stream.average_rate or stream.guessed_rate
    codec = str(stream.codec_context.name)
    rotation, mirrored = display_orientation(first)
    return {
        "container": str(container.format.name),
        "codec": codec,
        "pixel_format": str(first.format.name),
        "height": int(first.height),
        "width": int(first.width),
        "rotation": rotation,
        "mirrored": mirrored,
        "pixel_aspect": stream.sample_aspect_ratio or Fraction(1),
        "time_base": Fraction(stream.time_base),
        "rate": Fraction(rate) if rate and rate > 0 else FALLBACK_FPS,
        "intra_only": stream.codec_context.codec.intra_only or codec in STAND_ALONE_CODECS,
        "reorders": bool(stream.codec_context.codec.reorder),
        "skips": skips_unreferenced(codec, stream.codec_context.extradata),
    }


def _expected(source: Source, facts: dict[str, Any], packets: Packets, codec: Codec, why: str) -> Media:
    """What packets suggest of a file whose frames have to be counted."""
    shown = packets.shown
    pts, dts, base = packets.pts[shown], packets.dts[shown], facts["time_base"]
    if not codec.reorders:
        pts = np.where(pts == UNKNOWN, dts, pts)
        order = np.arange(len(pts))
    else:
        order = display_order(pts, dts, facts["container"], float(1 / base))
    invented = codec.delay > 0 and packets.reordering == 0
    if invented or len(pts) == 0 or (pts == UNKNOWN).any():
        count = max(len(pts), 1)
        duration = float(count / facts["rate"])
        numbers = np.arange(count, dtype=np.int64)
        return _media(source, facts, Way.COUNTING, numbers, 1 / facts["rate"], duration, counted=why, exact=False)
    expected = pts[order]
    times = steady(expected, facts["container"], float(1 / base))
    last = last_duration(packets, times, int(np.flatnonzero(shown)[order[-1]]), set(facts["container"].split(",")))
    duration = float((int(times[-1]) - int(times[0]) + last) * base)
    media = _media(source, facts, Way.COUNTING, times, base, duration, counted=why, exact=False)
    regular = (packets.pts != UNKNOWN).all() and packets.key[0] and packets.reordering <= codec.delay
    return replace(media, expected_pts=expected, irregular=not regular)


def _decoded(source: Source, facts: dict[str, Any], why: str, stop: Stop) -> Media:
    """Decode the whole file once, keeping nothing but times."""
    times: list[int | None] = []
    errors: list[Exception] = []
    with source.open(stop) as container, translated(source.name, "counting its frames"):
        stream = video_stream(container, source)
        stream.codec_context.thread_count = 1
        for frame in all_frames(container, stream, stop, tolerant=True, errors=errors):
            times.append(frame.pts)
    if not times:
        raise SourceError(f"{source.name}: no video frame can be decoded; the file is damaged or truncated.")
    known = [time for time in times if time is not None]
    pts, base = np.arange(len(times), dtype=np.int64), 1 / facts["rate"]
    last = 1
    if len(known) == len(times):
        base = facts["time_base"]
        pts = steady(np.array(known, np.int64), facts["container"], float(1 / base))
        last = int(np.median(np.diff(pts))) if len(pts) > 1 else max(round(1 / facts["rate"] / base), 1)
    duration = float((int(pts[-1]) - int(pts[0]) + last) * base)
    media = _media(source, facts, Way.DECODING, pts, base, duration, counted=why)
    return replace(media, damaged=bool(errors))


def _media(
    source: Source,
    facts: dict[str, Any],
    way: Way,
    pts: npt.NDArray[np.int64],
    base: Fraction,
    duration: float,
    *,
    index: FrameIndex | None = None,
    counted: str | None = None,
    exact: bool = True,
) -> Media:
    turned = facts["rotation"] in (90, 270)
    seconds = (pts - pts[0]) * base.numerator / base.denominator
    info = VideoInfo(
        name=source.name,
        container=facts["container"],
        codec=facts["codec"],
        pixel_format=facts["pixel_format"],
        height=facts["width"] if turned else facts["height"],
        width=facts["height"] if turned else facts["width"],
        rotation=facts["rotation"],
        mirrored=facts["mirrored"],
        pixel_aspect=float(1 / facts["pixel_aspect"] if turned else facts["pixel_aspect"]),
        num_frames=len(pts),
        fps=_average_fps(len(pts), duration, facts["rate"]),
        duration_seconds=duration,
        begin_seconds=float(int(pts[0]) * base),
        num_keyframes=None if index is None else len(index.keys),
        counted=counted,
        num_frames_exact=exact,
        truncated=facts["truncated"],
    )
    return Media(source, info, way, index, seconds, None, facts["skips"])


def _average_fps(num_frames: int, duration: float, stated: Fraction) -> float:
    """The container's rate if its frames bear it out to within one frame, else frames over duration."""
    if duration <= 0 or abs(num_frames - duration * stated) <= 1:
        return float(stated)
    return num_frames / duration
