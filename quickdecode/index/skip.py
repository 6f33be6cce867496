"""In which streams pictures that nothing refers to may be left out without changing any other picture."""

from __future__ import annotations

HEVC_VPS = 32
START_CODE = b"\x00\x00\x01"


def skips_unreferenced(codec: str, extradata: bytes | None) -> bool:
    """Whether FFmpeg's skip_frame=NONREF is exact for this stream.

    H.264 marks a picture as unreferenced only if nothing at all refers to it. HEVC marks it within its temporal
    layer, and a higher layer may still refer to it: exact only if the stream has one layer. The other decoders do
    not honour the setting between packets.
    """
    if codec == "h264":
        return True
    return codec == "hevc" and _has_one_temporal_layer(extradata or b"")


def _has_one_temporal_layer(extradata: bytes) -> bool:
    """Whether every video parameter set says so. Its 4th byte holds max_sub_layers_minus1 in bits 1 to 3."""
    sets = _from_configuration_record(extradata) if extradata[:1] == b"\x01" else _from_byte_stream(extradata)
    return bool(sets) and all(len(each) > 3 and each[3] >> 1 & 7 == 0 for each in sets)


def _from_configuration_record(data: bytes) -> list[bytes]:
    """Video parameter sets in an hvcC record: 22 bytes of header, then arrays of length-prefixed units."""
    found, place = [], 23
    for _ in range(data[22] if len(data) > 22 else 0):
        kind, units = data[place] & 0x3F if place < len(data) else 0, _number(data, place + 1)
        place += 3
        for _ in range(units):
            size = _number(data, place)
            if kind == HEVC_VPS:
                found.append(data[place + 2 : place + 2 + size])
            place += 2 + size
    return found


def _from_byte_stream(data: bytes) -> list[bytes]:
    units = data.split(START_CODE)[1:]
    return [unit for unit in units if unit and unit[0] >> 1 & 0x3F == HEVC_VPS]


def _number(data: bytes, place: int) -> int:
    return int.from_bytes(data[place : place + 2], "big")
