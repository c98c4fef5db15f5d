"""Means of few numbers and how far they can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.evaluation import Interval

# Student's t at 97.5 % for 1 to 30 degrees of freedom; beyond, the normal distribution is near enough.
_T975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_Z975 = 1.96

Numbers = Sequence[float] | NDArray[np.floating[Any]]


def mean(values: Numbers) -> float:
    """Returns the mean, 0 of nothing."""
    return float(np.mean(values)) if len(values) else 0.0


def spread(values: Numbers) -> float:
    """Returns the standard deviation of a sample, 0 of less than two numbers."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def mean_interval(values: Numbers) -> Interval | None:
    """Returns the 95 % interval of the mean by Student's t; None of less than two numbers, which say nothing of it."""
    count = len(values)
    if count < 2:
        return None
    factor = _T975[count - 2] if count - 1 <= len(_T975) else _Z975
    half = factor * spread(values) / math.sqrt(count)
    return Interval(mean(values) - half, mean(values) + half)
