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
        seen: Whether each die is the one that its cell shows.
    """

    first: int
    cells: NDArray[np.intp]
    sources: NDArray[np.intp]
    seen: NDArray[np.bool_]


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
            The grid in which the dies seen in changed cells have the cell's new result. Dies that no cell shows keep
            theirs: to give all dies of a cell one result would draw blocks.
        """
        rows, columns = self._axes(grid)
        box = (
            slice(rows.first, rows.first + len(rows.cells)),
            slice(columns.first, columns.first + len(columns.cells)),
        )
        changed = np.where(after != before, after, NO_DIE)[np.ix_(rows.cells, columns.cells)]
        changed *= np.outer(rows.seen, columns.seen)
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
            cells[sources] = np.arange(self.side)
        return _Axis(first, cells, sources, np.isin(np.arange(length), sources))


def oriented(drawn: NDArray[np.uint8], orientations: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Turns each of (n, side, side) canvases into its own one of the eight orientations, 0 to 7."""
    turned = np.empty_like(drawn)
    for orientation in range(ORIENTATIONS):
        which = orientations == orientation
        part = np.rot90(drawn[which], orientation % 4, axes=(1, 2))
        turned[which] = part[:, :, ::-1] if orientation >= 4 else part
    return turned


PLANES = 7
"""Planes that the network sees; see `planes`."""
_LEAST_SHARE = 0.002


def planes(drawn: NDArray[np.uint8], known: NDArray[np.bool_], share: NDArray[np.floating]) -> NDArray[np.float32]:
    """Returns what the network sees.

    Args:
        drawn: (n, side, side) die grids.
        known: (n, side, side) whose results may be seen.
        share: (n,) share of the other dies that fails, 0 to 1.

    Returns:
        (n, side, side, 7): known fails, known passes, dies, column and row from the wafer's middle in its half sides,
        squared distance from the middle, logit of the share.
    """
    seen = np.empty((*drawn.shape, PLANES), np.float32)
    dies = drawn != NO_DIE
    seen[..., 0] = known & (drawn == FAIL)
    seen[..., 1] = known & (drawn == PASS)
    seen[..., 2] = dies
    x, y = _places(dies.any(axis=1)), _places(dies.any(axis=2))
    seen[..., 3] = x[:, None, :]
    seen[..., 4] = y[:, :, None]
    seen[..., 5] = seen[..., 3] ** 2 + seen[..., 4] ** 2
    kept = np.clip(share, _LEAST_SHARE, 1 - _LEAST_SHARE)
    seen[..., 6] = np.log(kept / (1 - kept))[:, None, None]
    return seen


def _places(occupied: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Returns (n, side) places from the middle of what is occupied, in its half lengths, held within 1.5."""
    side = occupied.shape[1]
    first = occupied.argmax(axis=1)[:, None]
    length = np.maximum(side - occupied[:, ::-1].argmax(axis=1)[:, None] - first, 1)
    places: NDArray[np.float32] = ((np.arange(side) - first + 0.5) / length * 2 - 1).astype(np.float32)
    return np.clip(places, -1.5, 1.5)
