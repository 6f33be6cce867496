"""How sure the figures are: intervals over clips, and a paired test between two ways of answering."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["interval", "mcnemar", "relative_interval", "sign_test"]

_DRAWS = 2000


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided exact p-value that two sets of right/wrong answers to the same questions are equally good.

    >>> mcnemar(np.array([1, 1, 1, 1, 1, 1]), np.array([0, 0, 0, 0, 0, 0]))
    0.03125
    """
    better = int(np.sum(first.astype(bool) & ~second.astype(bool)))
    worse = int(np.sum(second.astype(bool) & ~first.astype(bool)))
    return sign_test(better, worse)


def sign_test(better: int, worse: int) -> float:
    """Two-sided exact p-value of a split that is as uneven as this one, if both sides are equally likely.

    >>> sign_test(6, 0)
    0.03125
    """
    total = better + worse
    tail = sum(math.comb(total, count) for count in range(min(better, worse) + 1)) / 2**total
    return min(1.0, 2 * tail)


def interval(right: np.ndarray, clips: np.ndarray) -> tuple[float, float]:
    """95 % interval of a share of right answers; clips are drawn anew, as the questions of one clip go together."""
    return _bootstrap(lambda index: right[index].mean(), clips)


def relative_interval(right: np.ndarray, full: np.ndarray, clips: np.ndarray) -> tuple[float, float]:
    """95 % interval of the share of right answers, relative to the unpruned model's on the same questions."""
    return _bootstrap(lambda index: right[index].mean() / max(full[index].mean(), 1e-9), clips)


def _bootstrap(statistic: Callable[[np.ndarray], Any], clips: np.ndarray) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(clips == clip) for clip in np.unique(clips)]
    values = []
    for _ in range(_DRAWS):
        drawn = rng.integers(len(members), size=len(members))
        values.append(statistic(np.concatenate([members[clip] for clip in drawn])))
    low, high = np.percentile(values, [2.5, 97.5])
    return round(float(low), 4), round(float(high), 4)
