"""Clips that no encoder writes: packets with other times, boxes with other bytes, files joined or cut."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from tests.clips import draw_number, remux

Edit = Callable[[Path, Path], object]
"""Makes the second file from the first."""
TS_PACKET = 188


def shifted(seconds: float) -> Edit:
    """All times moved; a negative shift hides the first frames of an MP4 behind an edit list."""
    return lambda source, target: remux(source, target, shift_seconds=seconds)


def rewritten(change: Callable[[int, Any], None], **container: str) -> Edit:
    """The packets copied, `change(number, packet)` altering each."""

    def edit(source: Path, target: Path) -> Path:
        with av.open(str(source)) as given, av.open(str(target), "w", container_options=container) as output:
            stream = given.streams.video[0]
            copy = output.add_stream_from_template(stream)
            packets = [packet for packet in given.demux(stream) if packet.size]
            for number, packet in enumerate(packets):
                packet.stream = copy
                change(number, packet)
                output.mux(packet)
        return target

    return edit


def times_by(pts: Callable[[int], int], step: int = 1) -> Edit:
    """Packet `number` shown at pts(number) steps, decoded at `number` steps."""

    def change(number: int, packet: Any) -> None:
        packet.pts, packet.dts = pts(number) * step, number * step

    return rewritten(change)


def copied(**container: str) -> Edit:
    """The packets in another container, or the same one with other options."""
    return rewritten(lambda number, packet: None, **container)


def renamed(*kinds: bytes) -> Edit:
    """Boxes of an MP4 made meaningless."""

    def edit(source: Path, target: Path) -> None:
        content = source.read_bytes()
        for kind in kinds:
            assert content.count(kind) == 1
            content = content.replace(kind, b"free")
        target.write_bytes(content)

    return edit


def edited(*entries: tuple[float, float]) -> Edit:
    """An MP4, its tables at the end, that plays these pieces: begin (-1: a pause) and duration, in seconds."""

    def edit(source: Path, target: Path) -> None:
        content = bytearray(source.read_bytes())
        units = _number(content, content.index(b"mdhd") + 16)
        movie = _number(content, content.index(b"mvhd") + 16)
        rows = b"".join(
            round(duration * movie).to_bytes(4, "big")
            + (round(begin * units) if begin >= 0 else -1).to_bytes(4, "big", signed=True)
            + b"\0\1\0\0"
            for begin, duration in entries
        )
        elst = content.index(b"elst") - 4
        fresh = (16 + len(rows)).to_bytes(4, "big") + b"elst" + bytes(4) + len(entries).to_bytes(4, "big") + rows
        growth = len(fresh) - _number(content, elst)
        content[elst : elst + _number(content, elst)] = fresh
        for kind in (b"edts", b"trak", b"moov"):
            place = content.index(kind) - 4
            content[place : place + 4] = (_number(content, place) + growth).to_bytes(4, "big")
        target.write_bytes(content)

    return edit


def joined(second: Path) -> Edit:
    """Another file's bytes behind those of the first."""
    return lambda source, target: target.write_bytes(source.read_bytes() + second.read_bytes())


def cut_from(share: float) -> Edit:
    """An MPEG-TS without its first part: it starts in the middle of a group of pictures."""

    def edit(source: Path, target: Path) -> None:
        content = source.read_bytes()
        target.write_bytes(content[int(len(content) * share) // TS_PACKET * TS_PACKET :])

    return edit


def cut_at(share: float) -> Edit:
    """An interrupted download."""
    return lambda source, target: target.write_bytes(source.read_bytes()[: int(source.stat().st_size * share)])


def _number(content: bytearray, place: int) -> int:
    return int.from_bytes(content[place : place + 4], "big")


def write_late_pyramid(path: Path, frames: int = 30) -> Path:
    """H.264 that does not say how far it reorders: no B-frames at first, then a pyramid of them."""
    packets = [*_encoded(0, frames, "bframes=0"), *_encoded(frames, frames, "bframes=7:b-pyramid=normal:b-adapt=0")]
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number, (pts, content) in enumerate(packets):
            packet = av.Packet(_without_vui(content))
            packet.pts, packet.dts = pts, number - 3
            packet.time_base, packet.stream = Fraction(1, 30), stream
            output.mux(packet)
    return path


def _encoded(first: int, frames: int, parameters: str) -> list[tuple[int, bytes]]:
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 64, 48, "yuv420p", Fraction(1, 30)
    encoder.gop_size, encoder.options = 10, {"x264-params": parameters + ":ref=4:scenecut=0", "threads": "1"}
    packets = []
    for number in range(frames):
        frame = av.VideoFrame.from_ndarray(draw_number(first + number, 48, 64), format="rgb24").reformat(
            format="yuv420p"
        )
        frame.pts, frame.time_base = first + number, Fraction(1, 30)
        packets += encoder.encode(frame)
    return [(each.pts, bytes(each)) for each in [*packets, *encoder.encode(None)]]


def _without_vui(content: bytes) -> bytes:
    """The same byte stream, its sequence parameter sets cut off where usability information begins."""
    units = content.split(b"\0\0\1")
    return b"\0\0\1".join(_shorter(unit) if unit and unit[0] & 31 == 7 else unit for unit in units)


def _shorter(unit: bytes) -> bytes:
    bits = "".join(f"{byte:08b}" for byte in unit.rstrip(b"\0").replace(b"\0\0\3", b"\0\0"))
    place = 32  # behind the unit's head, the profile and the level

    def number() -> int:
        nonlocal place
        zeros = bits.index("1", place) - place
        place += 2 * zeros + 1
        return int(bits[place - zeros - 1 : place], 2) - 1

    number()
    if int(bits[8:16], 2) >= 100:
        for _ in range(3):  # chroma format, bit depths
            number()
        place += 2  # transform bypass, scaling matrix
    number()
    if number() == 0:  # the kind of picture order
        number()
    number()
    place += 1
    for _ in range(2):  # width, height
        number()
    place += 2 if bits[place] == "1" else 3  # frames or fields
    place += 1
    if bits[place - 1] == "1":  # cropping
        for _ in range(4):
            number()
    kept = bits[:place] + "01"
    kept += "0" * (-len(kept) % 8)
    content = bytes(int(kept[i : i + 8], 2) for i in range(0, len(kept), 8))
    return content.replace(b"\0\0", b"\0\0\3") if b"\0\0" in content else content
