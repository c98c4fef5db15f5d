"""Where the dies of a wafer picture lie: cells along one axis."""

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_LARGE_SIDE = 160
"""A picture with more pixels a side and no cells to be seen is no map of one pixel a die."""
_GUESSED_CELLS = 64
_MIN_PITCH = 3.5
_TIE = 1e-4
_ON_EDGES = 0.9
_LOG_CHANCE = math.log(1e-3)


def find_cells(codes: NDArray[np.uint8], axis: int, clean: bool) -> tuple[list[tuple[int, int]], bool]:
    """Return the cells along an axis as pixel ranges [start, end), and whether they were found for sure.

    Args:
        codes: uint8 (height, width) value of each pixel, 0 where there is no die; some are not 0.
        axis: 0 for rows, 1 for columns.
        clean: whether every pixel has exactly the colour of its die, as in a PNG that nobody smoothed.
    """
    along = codes if axis == 0 else codes.T
    occupied = np.flatnonzero(along.any(axis=1))
    start, end = int(occupied[0]), int(occupied[-1]) + 1
    gaps = _cells_between_gaps(along, start, end)
    if gaps is not None:
        return gaps, True
    strength = np.concatenate([[0], (along[1:] != along[:-1]).sum(axis=1)])
    boundaries = np.flatnonzero(strength[start + 1 : end]) + start + 1
    if not len(boundaries):
        return _ranges(start, end, 1), True
    if clean:
        pitch = math.gcd(end - start, *(int(place) - start for place in boundaries))
        if pitch > 1:
            return _ranges(start, end, (end - start) // pitch), True
    for first, last in ((0, len(along)), (start, end)):
        count = _resized_count(boundaries, first, last) if clean else _noisy_count(strength, first, last)
        if count is not None:
            cells = _ranges(first, last, count)
            return [(low, high) for low, high in cells if high > start and low < end], True
    if clean and end - start <= _LARGE_SIDE:
        return _ranges(start, end, end - start), True
    return _ranges(start, end, min(end - start, _GUESSED_CELLS)), False


def _cells_between_gaps(along: NDArray[np.uint8], start: int, end: int) -> list[tuple[int, int]] | None:
    """Return the cells when lines without dies part them at equal distances."""
    filled = (along[start:end] != 0).any(axis=1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], filled.astype(np.int8), [0]])))
    starts, ends = edges[::2], edges[1::2]
    if len(starts) < 3:
        return None
    widths, pitches = ends - starts, np.diff(starts)
    if np.ptp(widths) > 1 or np.ptp(pitches) > 1:
        return None
    return [(start + int(low), start + int(high)) for low, high in zip(starts, ends, strict=True)]


def _resized_count(boundaries: NDArray[np.int64], first: int, last: int) -> int | None:
    """Return the smallest number of cells that, enlarged to [first, last) by nearest neighbour, gives each boundary."""
    extent = last - first
    pixels = np.arange(extent)
    for count in range(max(2, len(boundaries) + 1), extent):
        # Programs differ in the phase of pixels, and in how they round where a source edge meets a pixel's middle.
        for phases in ((0.5 - _TIE, 0.5 + _TIE), (0.0,)):
            edges = np.zeros(extent, bool)
            for phase in phases:
                sources = np.floor((pixels + phase) * count / extent)
                edges[1:] |= sources[1:] != sources[:-1]
            if edges[boundaries - first].all():
                # By chance a boundary fits with the share of edges around it: so many must not fit by chance.
                share = edges[boundaries[0] - first : boundaries[-1] - first + 1].mean()
                return count if len(boundaries) * math.log(share) < _LOG_CHANCE else None
    return None


def _noisy_count(strength: NDArray[np.int64], first: int, last: int) -> int | None:
    """Return the smallest number of cells in [first, last) on whose edges, give or take a pixel, most changes lie.

    Args:
        strength: how many pixels change from the line before to each line.
        first: where the first cell begins.
        last: where the last cell ends.
    """
    inside = strength[first + 1 : last]
    places = np.arange(1, last - first)
    total = inside.sum()
    for count in range(2, int((last - first) / _MIN_PITCH) + 1):
        pitch = (last - first) / count
        near = np.abs(places - np.round(places / pitch) * pitch) <= 1
        if inside[near].sum() >= _ON_EDGES * total:
            return count
    return None


def _ranges(first: int, last: int, count: int) -> list[tuple[int, int]]:
    edges = [first + round(index * (last - first) / count) for index in range(count + 1)]
    return list(pairwise(edges))
