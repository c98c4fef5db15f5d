"""Wafers that a person in the browser tests has on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.common.wafer_map import FAIL, NO_DIE, PASS
from services.common.wafer_set import write_wafer_set

PATTERNS = ("none", "Center", "Edge-Ring")
MIXED = (*PATTERNS, "Center+Edge-Ring")
WAFERS_PER_LOT = 9


def wafer(pattern: str, seed: int, across: int = 26) -> NDArray[np.uint8]:
    """Makes a round wafer with patterns anybody can tell, several joined by `+`, and 3 % random fails."""
    shown = pattern.split("+")
    rng = np.random.default_rng(seed)
    steps = (np.arange(across) + 0.5) / across * 2 - 1
    radius = np.hypot(steps[None, :], steps[:, None])
    fails = rng.random((across, across)) < 0.03
    if "Center" in shown:
        fails |= (radius < 0.35) & (rng.random(radius.shape) < 0.9)
    if "Edge-Ring" in shown:
        fails |= (radius > 0.85) & (rng.random(radius.shape) < 0.9)
    dies = np.where(radius <= 1, PASS, NO_DIE).astype(np.uint8)
    dies[(dies == PASS) & fails] = FAIL
    return dies


def wafer_set(
    path: Path, count: int, *, labelled: bool = True, first_seed: int = 0, kinds: Sequence[str] = PATTERNS
) -> Path:
    """Writes a wafer set of `count` wafers, patterns in turn, WAFERS_PER_LOT a lot."""
    patterns = [kinds[index % len(kinds)] for index in range(count)]
    write_wafer_set(
        path,
        [wafer(pattern, first_seed + index) for index, pattern in enumerate(patterns)],
        labels=patterns if labelled else None,
        groups=[f"LOT{first_seed + index // WAFERS_PER_LOT:03d}" for index in range(count)],
    )
    return path
