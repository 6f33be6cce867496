"""Clocks that start again or jump: two recordings joined into one MPEG file, each with times of its own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

RECORDINGS = frozenset({"mpegts", "mpegtsraw", "mpeg"})
"""Containers whose clock may start anew at any point."""
UNKNOWN = np.iinfo(np.int64).min
"""A time that a packet does not state."""
JUMP_SECONDS = 10.0
"""A frame that stays longer than this in such a container is two recordings joined."""


def jumps(pts: Ints, container: str, ticks_per_second: float) -> Flags:
    """(n - 1,) whether the clock starts again between two frames; `pts` in the order of display."""
    steps = np.diff(pts)
    if container not in RECORDINGS:
        return steps < 0
    return (steps < 0) | (steps > JUMP_SECONDS * ticks_per_second)


def steady(pts: Ints, container: str, ticks_per_second: float) -> Ints:
    """`pts` on one clock that never goes back: where it jumps, the usual step is taken instead."""
    steps = np.diff(pts)
    ordinary = steps[steps > 0]
    steps[jumps(pts, container, ticks_per_second)] = int(np.median(ordinary)) if len(ordinary) else 0
    return np.concatenate([pts[:1], pts[0] + np.cumsum(steps)])


def display_order(pts: Ints, dts: Ints, container: str, ticks_per_second: float) -> Ints:
    """Positions of packets in the order in which their frames are shown: by pts within each run of the clock."""
    if container not in RECORDINGS or (dts == UNKNOWN).any():
        return np.argsort(pts, kind="stable")
    runs = np.concatenate([[0], np.cumsum(jumps(dts, container, ticks_per_second))])
    order: Ints = np.lexsort((pts, runs))
    return order
