"""Between wafers of any die grid and the square canvas that the learned generator works on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from services.common.preprocessing import planes_of
from services.common.wafer_map import FAIL, NO_DIE, PASS

SIDE = 48
"""Side of the canvas, cells: about the die grids of most products."""
ORIENTATIONS = 8
"""Turns by 90 degrees and mirrors of a square."""


def to_canvas(grids: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Returns (n, 48, 48, 2): share of a cell's dies that failed, and the cell's weight (share covered by dies)."""
    planes = planes_of(grids, SIDE)
    canvas = np.empty_like(planes)
    np.divide(planes[..., 1], planes[..., 0], out=canvas[..., 0], where=planes[..., 0] > 0)
    canvas[..., 0] = np.where(planes[..., 0] > 0, canvas[..., 0], 0)
    canvas[..., 1] = planes[..., 0]
    return canvas


def oriented(canvas: NDArray[np.float32], orientations: NDArray[np.intp]) -> NDArray[np.float32]:
    """Turns each of (n, side, side, c) canvases into its own one of the eight orientations, 0 to 7."""
    turned = np.empty_like(canvas)
    for orientation in range(ORIENTATIONS):
        which = orientations == orientation
        part = np.rot90(canvas[which], orientation % 4, axes=(1, 2))
        turned[which] = part[:, :, ::-1] if orientation >= 4 else part
    return turned


def from_canvas(
    probability: NDArray[np.float32],
    parent: NDArray[np.uint8],
    fail_fraction: float,
    rng: np.random.Generator,
    noise: float,
) -> NDArray[np.uint8]:
    """Draws a wafer from a canvas of fail probabilities.

    Args:
        probability: (48, 48) fail probability of each cell, inside (0, 1).
        parent: uint8 die grid whose die positions the wafer takes.
        fail_fraction: Share of its dies that fail, 0 to 1.
        rng: Source of the dies' independent part.
        noise: How independent dies are: 1 draws each die by its probability, 0 fails just the most probable ones.

    Returns:
        uint8 die grid with exactly the parent's dies.
    """
    rows, columns = np.flatnonzero(parent.any(axis=1)), np.flatnonzero(parent.any(axis=0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    mask = parent[box] != NO_DIE
    height, width = mask.shape
    at_dies = (_shares(height) @ probability @ _shares(width).T)[mask]
    # With logistic noise, the dies above the threshold are those of independent draws by probability (Gumbel trick).
    scores = np.log(at_dies) - np.log1p(-at_dies) + noise * rng.logistic(size=at_dies.size)
    fails = int(np.clip(round(fail_fraction * at_dies.size), 0, at_dies.size))
    results = np.full(at_dies.size, PASS, np.uint8)
    results[np.argpartition(-scores, fails - 1)[:fails] if fails else []] = FAIL
    dies = np.zeros_like(parent)
    dies[box][mask] = results
    return dies


@lru_cache(maxsize=1024)
def _shares(length: int) -> NDArray[np.float32]:
    """Returns (length, 48): how much each canvas cell takes part in each die, rows of sum 1."""
    die = np.arange(length)[:, None] * SIDE
    cell = np.arange(SIDE)[None, :] * length
    overlap = np.minimum(die + SIDE, cell + length) - np.maximum(die, cell)
    return np.asarray(np.maximum(overlap, 0) / SIDE, np.float32)
