"""Shares of whole numbers.

A share is taken as the decimal fraction that somebody wrote down: 0.29 of 100 tokens are 29, and 0.145 of them 15,
whatever a float makes of it.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

__all__ = ["round_share", "rounded"]


def round_share(share: float, n: int) -> int:
    """share x n rounded half up, at least 1, at most n.

    >>> round_share(0.29, 100), round_share(0.5, 7), round_share(0.001, 10)
    (29, 4, 1)
    """
    return min(max(rounded(share, n), 1), n)


def rounded(share: float, numerator: int, denominator: int = 1) -> int:
    """share x numerator / denominator rounded half up, in integers."""
    top, bottom = _fraction(share)
    return (2 * top * numerator + bottom * denominator) // (2 * bottom * denominator)


@lru_cache(maxsize=64)
def _fraction(share: float) -> tuple[int, int]:
    return Fraction(share).limit_denominator(10**9).as_integer_ratio()
