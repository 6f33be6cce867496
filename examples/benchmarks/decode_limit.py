"""The limit that decode.py holds readers against: busy cores that decode what must be decoded, and nothing else."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np

SIZE = (252, 448)
"""To which every reader resizes."""


class Limit:
    """What perfectly busy cores would need for the groups of frames in `wishes`; see decode.py."""

    def __init__(self, path: Path, wishes: list[list[int]], cores: int) -> None:
        packets = read_packets(path)
        order = np.argsort([packet["pts"] for packet in packets])
        wanted = [{int(order[i]) for i in indices} for indices in wishes]
        self._path, self._cores, self._wanted = path, cores, sum(len(group) for group in wanted)
        self._seconds: list[float] = []
        self._together: list[float] = []
        needed = [p for group in wanted for p in _needed(packets, group)]
        self._of = len(packets)
        self._needed = {kind: sum(packets[p]["reference"] is kind for p in needed) for kind in (True, False)}
        shown = packets[: 2 * 60 * 30]
        self._shown = {kind: max(sum(packet["reference"] is kind for packet in shown), 1) for kind in (True, False)}

    def measure(self) -> None:
        """Decode two minutes on one thread, with and without the pictures that nothing refers to."""
        every, references = (_single_thread(self._path, skip) for skip in (False, True))
        with ProcessPoolExecutor(self._cores, get_context("spawn")) as pool:
            at_once = list(pool.map(_single_thread, [self._path] * self._cores, [True] * self._cores))
        self._together.append(references / statistics.mean(at_once))
        other = max(every - references, 0.0) if self._shown[False] > 1 else 0.0
        decode = sum(
            self._needed[kind] * seconds / self._shown[kind] for kind, seconds in ((True, references), (False, other))
        )
        self._seconds.append((decode + self._wanted * _resize_seconds(self._path)) / self._cores)

    def row(self) -> dict[str, Any]:
        """`seconds` is the median of what was measured."""
        needed = sum(self._needed.values())
        return {
            "frames": needed,
            "of": self._of,
            "seconds": statistics.median(self._seconds),
            "runs": self._seconds,
            "together": statistics.median(self._together),
        }


def _needed(packets: list[dict[str, Any]], wanted: set[int]) -> set[int]:
    needed, pending = set(), []
    for position, packet in enumerate(packets):
        if packet["key"]:
            pending = []
        pending.append(position)
        if position in wanted:
            needed |= {p for p in pending if packets[p]["reference"] or p in wanted}
            pending = []
    return needed


def read_packets(path: Path) -> list[dict[str, Any]]:
    """Of each packet with data, in the file's order: pts, whether it is a key frame, whether others refer to it."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        is_reference = REFERENCES.get(stream.codec_context.name, lambda _: True)
        return [
            {"pts": packet.pts, "key": packet.is_keyframe, "reference": is_reference(bytes(packet))}
            for packet in container.demux(stream)
            if packet.size
        ]


def _h264_reference(packet: bytes) -> bool:
    """Whether the first slice of the sample has nal_ref_idc > 0."""
    return next((header >> 5 & 3 > 0 for header in _headers(packet) if header & 0x1F in (1, 5)), True)


def _hevc_reference(packet: bytes) -> bool:
    """Whether the first slice of the sample, of a stream with one temporal layer, is of a reference type."""
    kinds = (header >> 1 & 0x3F for header in _headers(packet))
    return next((kind > 15 or kind % 2 == 1 for kind in kinds if kind < 32), True)


def _headers(packet: bytes) -> Iterator[int]:
    """The first byte of each unit of a sample in an MP4."""
    place = 0
    while place + 4 < len(packet):
        yield packet[place + 4]
        place += 4 + int.from_bytes(packet[place : place + 4], "big")


REFERENCES = {"h264": _h264_reference, "hevc": _hevc_reference}


def _single_thread(path: Path, skip: bool) -> float:
    """CPU seconds to decode the first two minutes on one thread."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
        if skip and stream.codec_context.name in REFERENCES:
            stream.codec_context.skip_frame = "NONREF"
        began = time.process_time()
        for number, packet in enumerate(container.demux(stream)):
            if number == 2 * 60 * 30:
                break
            packet.decode()
        return time.process_time() - began


def _resize_seconds(path: Path) -> float:
    with av.open(str(path)) as container:
        frames = [frame for frame, _ in zip(container.decode(video=0), range(16), strict=False)]
    began = time.process_time()
    for frame in frames:
        frame.reformat(width=SIZE[1], height=SIZE[0], format="gbrp", interpolation="BICUBIC", threads=1)
    return (time.process_time() - began) / len(frames)
