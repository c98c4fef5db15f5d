"""Between die grids of any size and the square canvas of dies that the learned generator works on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.common.wafer_map import FAIL, NO_DIE, PASS

SMALLEST, LARGEST, STEP = 24, 56, 8
"""Smallest and largest side of a canvas, and what it is a multiple of, cells."""
ORIENTATIONS = 8
"""Turns by 90 degrees and mirrors of a square."""


@dataclass(frozen=True, slots=True)
class _Axis:
    """How dies of one axis lie on the canvas.

    Attributes:
        first: First row (column) of the grid with a die.
        cells: Canvas cell of each die from there on; several dies may share one.
        sources: Die that is seen in each canvas cell, -1 for none.
    """

    first: int
    cells: NDArray[np.intp]
    sources: NDArray[np.intp]


class Canvas:
    """Square of `side` x `side` cells with one die a cell.

    A grid lies in the middle, die by die. An axis with more dies than cells is thinned out: each cell shows one of its
    dies.

    Args:
        grids: Die grids that it is for; three of four fit on it without thinning, up to the largest side.
    """

    def __init__(self, grids: Sequence[NDArray[np.uint8]]) -> None:
        usual = float(np.quantile([max(grid.shape) for grid in grids], 0.75))
        self.side = int(np.clip(-(-usual // STEP) * STEP, SMALLEST, LARGEST))

    def draw(self, grids: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Returns (n, side, side) die grids as they lie on the canvas."""
        drawn = np.zeros((len(grids), self.side, self.side), np.uint8)
        for target, grid in zip(drawn, grids, strict=True):
            rows, columns = self._axes(grid)
            seen = grid[
                np.ix_(rows.first + np.maximum(rows.sources, 0), columns.first + np.maximum(columns.sources, 0))
            ]
            target[:] = seen * ((rows.sources >= 0)[:, None] & (columns.sources >= 0)[None, :])
        return drawn

    def transfer(
        self, before: NDArray[np.uint8], after: NDArray[np.uint8], grid: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """Carries what changed on the canvas over to a die grid.

        Args:
            before: (side, side) the grid as it was drawn.
            after: (side, side) the same with other results.
            grid: Die grid.

        Returns:
            The grid in which the dies of changed cells have the cell's new result.
        """
        rows, columns = self._axes(grid)
        box = (
            slice(rows.first, rows.first + len(rows.cells)),
            slice(columns.first, columns.first + len(columns.cells)),
        )
        changed = np.where(after != before, after, NO_DIE)[np.ix_(rows.cells, columns.cells)]
        result = grid.copy()
        part = result[box]
        part[(changed != NO_DIE) & (part != NO_DIE)] = changed[(changed != NO_DIE) & (part != NO_DIE)]
        return result

    def _axes(self, grid: NDArray[np.uint8]) -> tuple[_Axis, _Axis]:
        valid = grid != NO_DIE
        return self._axis(np.asarray(valid.any(axis=1))), self._axis(np.asarray(valid.any(axis=0)))

    def _axis(self, occupied: NDArray[np.bool_]) -> _Axis:
        places = np.flatnonzero(occupied)
        first, length = int(places[0]), int(places[-1] - places[0] + 1)
        sources = np.full(self.side, -1)
        if length <= self.side:
            cells = np.arange(length) + (self.side - length) // 2
            sources[cells] = np.arange(length)
        else:
            cells = np.arange(length) * self.side // length
            sources[:] = ((np.arange(self.side) + 0.5) * length / self.side).astype(np.intp)
        return _Axis(first, cells, sources)


def oriented(drawn: NDArray[np.uint8], orientations: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Turns each of (n, side, side) canvases into its own one of the eight orientations, 0 to 7."""
    turned = np.empty_like(drawn)
    for orientation in range(ORIENTATIONS):
        which = orientations == orientation
        part = np.rot90(drawn[which], orientation % 4, axes=(1, 2))
        turned[which] = part[:, :, ::-1] if orientation >= 4 else part
    return turned


def planes(drawn: NDArray[np.uint8], known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Returns what the network sees.

    Args:
        drawn: (n, side, side) die grids.
        known: (n, side, side) whose results may be seen.

    Returns:
        (n, side, side, 4): known fails, known passes, dies, squared distance from the middle in half sides.
    """
    side = drawn.shape[1]
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
    seen = np.empty((*drawn.shape, 4), np.float32)
    seen[..., 0] = known & (drawn == FAIL)
    seen[..., 1] = known & (drawn == PASS)
    seen[..., 2] = drawn != NO_DIE
    seen[..., 3] = axis[:, None] ** 2 + axis[None, :] ** 2
    return seen
