"""Where the dies of a wafer picture lie: cells along one axis."""

import math

import numpy as np
from numpy.typing import NDArray

_NOISE = 0.12
"""A boundary counts when its changing pixels reach this share of the third-strongest boundary's."""
_LARGE_SIDE = 160
"""A picture with more pixels a side and no cells to be seen is no map of one pixel a die."""
_GUESSED_CELLS = 64
_MIN_PITCH = 2.5


def find_cells(codes: NDArray[np.uint8], axis: int) -> tuple[list[tuple[int, int]], bool]:
    """Return the cells along an axis as pixel ranges [start, end), and whether they were found for sure.

    Args:
        codes: uint8 (height, width) value of each pixel, 0 where there is no die; some are not 0.
        axis: 0 for rows, 1 for columns.
    """
    along = codes if axis == 0 else codes.T
    occupied = np.flatnonzero(along.any(axis=1))
    start, end = int(occupied[0]), int(occupied[-1]) + 1
    gaps = _cells_between_gaps(along, start, end)
    if gaps is not None:
        return gaps, True
    boundaries, exact = _boundaries(along, start, end)
    extent = end - start
    pitch = math.gcd(extent, *(int(place) - start for place in boundaries)) if len(boundaries) else extent
    if pitch > 1 and (exact or pitch >= 3):
        return _ranges(start, end, extent // pitch), True
    for first, last, tolerance in ((0, len(along), 0.5), (start, end, 1.0)):
        count = _fitting_count(boundaries, first, last, tolerance if exact else 1.0)
        if count is not None:
            cells = _ranges(first, last, count)
            return [(low, high) for low, high in cells if high > start and low < end], True
    if extent <= _LARGE_SIDE and exact:
        return _ranges(start, end, extent), True
    return _ranges(start, end, min(extent, _GUESSED_CELLS)), False


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


def _boundaries(along: NDArray[np.uint8], start: int, end: int) -> tuple[NDArray[np.int64], bool]:
    """Return where neighbouring lines differ, and whether every such place is one (no noise was cut off)."""
    strength = (along[start + 1 : end] != along[start : end - 1]).sum(axis=1)
    if not strength.any():
        return np.zeros(0, np.int64), True
    ranked = np.sort(strength)[::-1]
    threshold = _NOISE * ranked[min(2, len(ranked) - 1)]
    places = np.flatnonzero(strength) + start + 1
    strong = np.flatnonzero(strength >= max(1.0, threshold)) + start + 1
    # Few strong places that all lie on a lattice of three or more pixels mean that the weak ones are noise of JPEG.
    if len(strong) < len(places) and _on_lattice(strong - start, end - start) >= 3 > _on_lattice(
        places - start, end - start
    ):
        return strong, False
    return places, True


def _on_lattice(places: NDArray[np.int64], extent: int) -> int:
    return math.gcd(extent, *(int(place) for place in places))


def _fitting_count(boundaries: NDArray[np.int64], first: int, last: int, tolerance: float) -> int | None:
    """Return the smallest number of equal cells in [first, last) whose rounded edges hold every boundary."""
    if not len(boundaries):
        return None
    extent = last - first
    places = (boundaries - first).astype(np.float64)
    most = int(extent / _MIN_PITCH)
    for count in range(max(2, len(boundaries) // 2), most + 1):
        pitch = extent / count
        distance = np.abs(places - np.round(places / pitch) * pitch)
        if distance.max() <= tolerance + 1e-6:
            # By chance a boundary fits with a probability of 2 tolerance / pitch: so many must not fit by chance.
            if len(boundaries) * math.log(max(2 * tolerance / pitch, 1e-9)) < math.log(1e-3):
                return count
            return None
    return None


def _ranges(first: int, last: int, count: int) -> list[tuple[int, int]]:
    edges = [first + round(index * (last - first) / count) for index in range(count + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))
