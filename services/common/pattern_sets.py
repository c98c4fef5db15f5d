"""Which patterns a wafer shows, and how sure that is: one place for training, scores and the predictor.

A model of several patterns answers each with a probability of its own, as if the patterns came and went independently.
The normal class is the answer that none of them is there, and its probability is that of no pattern.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHOWN = 0.5
"""Least probability of a pattern that a wafer is said to show."""


def shown_classes(probabilities: NDArray[np.floating[Any]], normal: Sequence[bool]) -> NDArray[np.bool_]:
    """Returns bool (N, classes): which patterns each wafer shows; the normal class where it shows none.

    Args:
        probabilities: (N, classes).
        normal: whether each class is the normal one.
    """
    none = np.asarray(normal, np.bool_)
    shown: NDArray[np.bool_] = (probabilities >= SHOWN) & ~none
    return np.where(none, ~shown.any(axis=1, keepdims=True), shown)


def set_confidence(probabilities: NDArray[np.floating[Any]], normal: Sequence[bool]) -> NDArray[np.float32]:
    """Returns float32 (N,): probability that the whole set of patterns is right, the product of max(p, 1 - p).

    Args:
        probabilities: (N, classes).
        normal: whether each class is the normal one; it follows from the others and does not count.
    """
    patterns = np.asarray(probabilities, np.float32)[:, ~np.asarray(normal, np.bool_)]
    return np.asarray(np.maximum(patterns, 1 - patterns).prod(axis=1), np.float32)
