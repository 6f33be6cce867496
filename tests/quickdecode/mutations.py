"""What is done to a file to damage it: the same for the same random numbers."""

from __future__ import annotations

import random
from collections.abc import Callable

Mutation = Callable[[bytearray, random.Random, bytes], bytearray]


def flip_bits(content: bytearray, chance: random.Random, _: bytes) -> bytearray:
    for _ in range(chance.choice((1, 5, 50, 500))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return content


def flip_bits_of_the_header(content: bytearray, chance: random.Random, _: bytes) -> bytearray:
    """Headers lie at either end of a file."""
    for _ in range(chance.choice((1, 4, 16))):
        place = chance.randrange(min(600, len(content)))
        content[chance.choice((place, -1 - place))] ^= 1 << chance.randrange(8)
    return content


def wild_numbers(content: bytearray, chance: random.Random, _: bytes) -> bytearray:
    """Sizes and counts that nobody means."""
    for _ in range(chance.choice((1, 2, 4))):
        place = chance.randrange(max(min(1200, len(content)) - 4, 1))
        place = chance.choice((place, max(len(content) - 4 - place, 0)))
        number = chance.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x00FFFFFF, 0x10000000, 60_000_000, len(content)))
        content[place : place + 4] = number.to_bytes(4, chance.choice(("big", "little")))  # type: ignore[arg-type]
    return content


def truncate(content: bytearray, chance: random.Random, _: bytes) -> bytearray:
    return content[: chance.randrange(1, len(content))]


def cut_out(content: bytearray, chance: random.Random, _: bytes) -> bytearray:
    start = chance.randrange(len(content))
    del content[start : start + chance.randrange(1, 4000)]
    return content or bytearray(b"\0")


def blank(content: bytearray, chance: random.Random, _: bytes) -> bytearray:
    start = chance.randrange(len(content))
    size = min(chance.randrange(1, 4000), len(content) - start)
    content[start : start + size] = bytes(size)
    return content


def splice(content: bytearray, chance: random.Random, other: bytes) -> bytearray:
    """The beginning of one file and the rest of another."""
    where = chance.randrange(1, min(len(content), len(other)))
    return bytearray(other[:where]) + content[chance.choice((0, where)) :]


MUTATIONS: tuple[Mutation, ...] = (
    *(flip_bits, flip_bits_of_the_header, wild_numbers, truncate, cut_out, blank, splice),
)
