"""How stored pictures are turned and mirrored for display, as the file's display matrix says."""

from __future__ import annotations

from typing import Any

import numpy as np


def display_orientation(frame: Any) -> tuple[int, bool]:
    """Degrees by which to turn `frame` counter-clockwise (0, 90, 180 or 270), and whether to mirror it after that.

    The matrix takes column x and row y of a stored picture to column a x + c y and row b x + d y. One that turns by
    anything else is taken as the nearest quarter turn; one that cannot be inverted says nothing.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 0, False
    (a, b, _), (c, d, _), _ = np.frombuffer(data, np.int32)[:9].reshape(3, 3).tolist()
    determinant = a * d - b * c
    if determinant == 0:
        return 0, False
    mirrored = determinant < 0
    if mirrored:
        a, c = -a, -c
    if abs(a + d) >= abs(c - b):
        return (0 if a + d > 0 else 180), mirrored
    return (90 if c > b else 270), mirrored
