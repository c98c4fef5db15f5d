"""Variations of wafers: the same pattern turned, mirrored, sheared, shifted and with other noise.

What comes out is a legal wafer map: exactly the dies of its parent, each passed or failed. The wafer is round, so
positions are taken relative to the half sides of its die grid, where the wafer is a disc whatever the die's aspect.
Each die takes the result of the parent's die nearest to where the inverse motion leads; a place off the wafer takes the
die that lies nearest towards the centre.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from services.common.wafer_map import FAIL, NO_DIE, PASS
from services.common.wafer_set import GridSequence
from services.generator.domain import EDGE_PATTERNS, VariationOptions

GRID_PATTERNS = ("Shot-Grid", "Checker", "Slip-Lines")
"""Patterns tied to the rows and columns of dies: they turn by right angles only."""
_CELLS_AT_ONCE = 100_000
_SWAP = np.uint8(3)  # 1 ^ 3 = 2 and 2 ^ 3 = 1: a passed die fails and a failed one passes
_RESULT, _PATTERN = 3, 4  # bits of a die: its result, and whether it lies in the pattern
_PATTERN_SHARE = 0.3

_Places = NDArray[np.unsignedinteger]
_Steps = tuple[_Places, _Places]


@dataclass(frozen=True, slots=True)
class VariationSettings:
    """Settings in use; see `VariationOptions`.

    Attributes:
        rotation_degrees: Largest rotation to either side.
        shear: Largest shear: how far the rim moves against the centre line, in radii.
        horizontal_mirror: Whether half of the wafers are mirrored left to right.
        vertical_mirror: Whether half of the wafers are mirrored top to bottom.
        shift: Largest shift in radii, in any direction.
        die_noise: Share of dies whose result is flipped.
        right_angles: Turn by right angles only: by 90 degrees where the grid is square, else by 180.
        strength: Largest change of the pattern's strength: share of its failed dies that pass (half of the wafers), or
            of its passed dies that fail.
    """

    rotation_degrees: float = 180.0
    shear: float = 0.05
    horizontal_mirror: bool = True
    vertical_mirror: bool = True
    shift: float = 0.03
    die_noise: float = 0.005
    right_angles: bool = False
    strength: float = 0.1


def settings_for(options: VariationOptions, pattern: str) -> VariationSettings:
    """Returns the settings of a class: what was asked for, else what is legal for its pattern.

    A pattern at the edge is never shifted, one tied to the die rows is never sheared and turns by right angles. The
    patterns of science have no handedness, so mirrors are legal for all; a class of the fab's own may have one, and
    nothing is mirrored then.

    Args:
        options: What was asked for.
        pattern: Canonical name of the class's pattern, or "".
    """
    settings = VariationSettings()
    if pattern in GRID_PATTERNS:
        settings = replace(settings, shear=0.0, shift=0.0, right_angles=True)
    if pattern in EDGE_PATTERNS:
        settings = replace(settings, shift=0.0)
    asked = {name: value for name, value in asdict(options).items() if value is not None}
    if pattern in EDGE_PATTERNS:
        asked.pop("shift", None)
    if asked.pop("handedness", False):
        asked |= {"horizontal_mirror": False, "vertical_mirror": False}
    return replace(settings, **asked)


class VariationMaker:
    """Makes variations of a class's wafers.

    Args:
        parents: uint8 (rows, columns) die grids, at least one.
        settings: Settings in use.
    """

    def __init__(self, parents: Sequence[NDArray[np.uint8]], settings: VariationSettings) -> None:
        members: dict[tuple[tuple[int, ...], bytes], list[int]] = {}
        for index, parent in enumerate(parents):
            members.setdefault((parent.shape, np.packbits(parent != NO_DIE).tobytes()), []).append(index)
        # Neighbouring families of one shape make longer runs of it.
        families = sorted(members.items())
        self._families: list[_Family] = []
        self._family_of = np.zeros(len(parents), np.intp)
        self._place = np.zeros(len(parents), np.intp)
        self._shapes = np.array([parent.shape for parent in parents], np.int64)
        for number, (_, indexes) in enumerate(families):
            self._family_of[indexes] = number
            self._place[indexes] = np.arange(len(indexes))
            self._families.append(_Family(np.stack([parents[index] for index in indexes]), settings))

    def arranged(self, parents: NDArray[np.intp]) -> NDArray[np.intp]:
        """Returns the given parents in the order in which their variations are made fastest."""
        return parents[np.argsort(self._family_of[parents], kind="stable")]

    def make(self, parents: NDArray[np.intp], rng: np.random.Generator) -> GridSequence:
        """Makes one variation of each of the given parents.

        Args:
            parents: (n,) positions of the parents; one may come several times.
            rng: Source of everything random.

        Returns:
            n uint8 die grids, in order.
        """
        shapes = self._shapes[parents]
        made = GridSequence(np.empty(int(shapes.prod(axis=1).sum()), np.uint8), shapes)
        offsets = made.offsets
        family_of = self._family_of[parents]
        for start, stop in pairwise([0, *(np.flatnonzero(np.diff(family_of)) + 1).tolist(), len(parents)]):
            family = self._families[family_of[start]]
            family.vary(self._place[parents[start:stop]], rng, made.dies[offsets[start] : offsets[stop]])
        return made


class _Family:
    """Parents with the same die positions."""

    def __init__(self, parents: NDArray[np.uint8], settings: VariationSettings) -> None:
        self._settings = settings
        rows, columns = self._shape = parents.shape[1:]
        mask = parents[0] != NO_DIE
        self._mask = (mask * np.uint8(_RESULT)).reshape(-1)
        self._x = (2 * np.arange(columns) + 1 - columns) / columns
        self._y = (2 * np.arange(rows) + 1 - rows) / rows
        self._square = 0.95 <= rows / columns <= 1 / 0.95
        # A motion leads every cell of the grid, its empty corners as well, to some cell of the padded one.
        reach = math.hypot(self._x[-1], self._y[-1]) * (1 + settings.shear) + settings.shift
        self._pad = (_padding(reach, rows), _padding(reach, columns))
        height, self._width = rows + 2 * self._pad[0], columns + 2 * self._pad[1]
        self._position = np.dtype(np.uint16 if max(height, self._width) < 256 else np.uint32)
        nearest = _nearest_dies(mask, *self._pad, settings.shear, settings.shift)
        marked = parents | (_pattern_regions(parents) * np.uint8(_PATTERN)) if settings.strength else parents
        self._padded = marked.reshape(len(parents), -1)[:, nearest].reshape(-1)
        self._cells = nearest.size

    def vary(self, parents: NDArray[np.intp], rng: np.random.Generator, out: NDArray[np.uint8]) -> None:
        """Writes variations of the family's parents at the given places.

        Args:
            parents: (n,) places of the parents in the family.
            rng: Source of everything random.
            out: uint8 (n * rows * columns,), filled grid after grid.
        """
        taken = out.reshape(len(parents), -1)
        motion = self._motions(len(parents), self._settings, rng)
        row, column = self._steps(motion[:, 1], 0), self._steps(motion[:, 0], 1)
        start = parents[:, None] * self._cells
        strength = rng.uniform(-self._settings.strength, self._settings.strength, len(parents))
        at_once = max(1, _CELLS_AT_ONCE // self._mask.size)
        for block in (slice(first, first + at_once) for first in range(0, len(parents), at_once)):
            source = _whole(*row, block)
            source *= self._position.type(self._width)
            source += _whole(*column, block)
            places = np.add(source.reshape(len(source), -1), start[block], dtype=np.intp)
            np.take(self._padded, places, out=taken[block], mode="clip")
            if self._settings.strength:
                _change_strength(taken[block], strength[block], rng)
        flips = rng.integers(0, out.size, rng.binomial(out.size, self._settings.die_noise))
        out[flips] ^= _SWAP
        taken &= self._mask

    def _steps(self, motion: NDArray[np.float64], axis: int) -> _Steps:
        """Returns the padded row (axis 0) or column (axis 1) to which affine maps lead the cells, as a sum.

        An affine map is the sum of what the column and what the row of a cell add. Both are rounded to a small share of
        a die, so that whole numbers do; they wrap around, and the sum comes out right.

        Args:
            motion: (n, 3) what x, y and 1 add.
            axis: Axis of the grid that they lead to.

        Returns:
            (n, columns) and (n, rows), unsigned; half of their bits are the fraction.
        """
        half, unit = self._shape[axis] / 2, float(1 << 4 * self._position.itemsize)
        across = (motion[:, 0, None] * self._x + motion[:, 2, None] + 1) * half + self._pad[axis]
        down = motion[:, 1, None] * self._y * half
        across, down = (np.rint(part * unit).astype(np.int64).astype(self._position) for part in (across, down))
        return across, down

    def _motions(self, count: int, settings: VariationSettings, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draws (count, 2, 3) affine maps from places of the new wafer to places of its parent."""
        angle = np.deg2rad(rng.uniform(-settings.rotation_degrees, settings.rotation_degrees, count))
        if settings.right_angles:
            step = math.pi / 2 if self._square else math.pi
            angle = np.trunc(angle / step + np.copysign(0.5, angle)) * step
            angle = np.where(np.abs(angle) <= np.deg2rad(settings.rotation_degrees) + 1e-9, angle, 0)
        shear = rng.uniform(-settings.shear, settings.shear, count)
        mirror_x = np.where((rng.random(count) < 0.5) & settings.horizontal_mirror, -1.0, 1.0)
        mirror_y = np.where((rng.random(count) < 0.5) & settings.vertical_mirror, -1.0, 1.0)
        distance = settings.shift * np.sqrt(rng.random(count))
        direction = rng.uniform(0, 2 * math.pi, count)
        cos, sin = np.cos(angle), np.sin(angle)
        motion = np.empty((count, 2, 3))
        # Rotation times shear along x, then mirrors.
        motion[:, 0] = np.stack([cos, cos * shear - sin, distance * np.cos(direction)], axis=1) * mirror_x[:, None]
        motion[:, 1] = np.stack([sin, sin * shear + cos, distance * np.sin(direction)], axis=1) * mirror_y[:, None]
        return motion


def _whole(across: _Places, down: _Places, block: slice) -> _Places:
    """Returns the (n, rows, columns) whole parts of sums of steps of some wafers; see `_Family._steps`."""
    sums = across[block, None, :] + down[block, :, None]
    sums >>= sums.dtype.type(4 * sums.itemsize)
    return sums


def _change_strength(taken: NDArray[np.uint8], strength: NDArray[np.float64], rng: np.random.Generator) -> None:
    """Lets failed dies of the pattern pass where the strength is below 0, and passed ones fail where it is above.

    Args:
        taken: (n, cells) results, marked where the pattern is; changed in place.
        strength: (n,) shares of those dies to change.
        rng: Source of everything random.
    """
    # One byte a die: strengths in steps of 1/256 are fine enough.
    chance = np.rint(np.abs(strength) * 256).astype(np.uint8)[:, None]
    draws = rng.integers(0, 1 << 64, -(-taken.size // 8), np.uint64).view(np.uint8)[: taken.size]
    changed = np.where(strength < 0, np.uint8(FAIL | _PATTERN), np.uint8(PASS | _PATTERN))[:, None] == taken
    changed &= draws.reshape(taken.shape) < chance
    taken ^= changed.view(np.uint8) * _SWAP


def _pattern_regions(parents: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Returns where a pattern is, (n, rows, columns): where 30 % or more fail among a die and its eight neighbours.

    A line of fails reaches that share on and beside itself; scattered fails of a good wafer do not.
    """
    shares = []
    for plane in (parents == FAIL, parents != NO_DIE):
        padded = np.pad(plane.astype(np.float32), ((0, 0), (1, 1), (1, 1)))
        rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
        shares.append(rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:])
    failed, valid = shares
    return np.asarray(failed >= _PATTERN_SHARE * np.maximum(valid, 1))


def _padding(reach: float, side: int) -> int:
    """Returns the cells beside a grid that motions reach, with one to spare."""
    return max(1, math.ceil((reach - 1) * side / 2) + 1)


def _nearest_dies(
    mask: NDArray[np.bool_], pad_rows: int, pad_columns: int, shear: float, shift: float
) -> NDArray[np.int32]:
    """Returns the flat position of the die of each cell of the padded grid; without one, of the next to the centre.

    Cells to which no motion of at most so much shear and shift leads a die get any position.
    """
    rows, columns = mask.shape
    y = (2 * np.arange(-pad_rows, rows + pad_rows) + 1 - rows) / rows
    x = (2 * np.arange(-pad_columns, columns + pad_columns) + 1 - columns) / columns
    y, x = (np.ascontiguousarray(grid).reshape(-1) for grid in np.broadcast_arrays(y[:, None], x[None, :]))
    dies = np.flatnonzero(mask)
    die_row, die_column = np.divmod(dies, columns)
    far = np.hypot((2 * die_row + 1 - rows) / rows, (2 * die_column + 1 - columns) / columns).max()
    reach = far * (1 + shear) + shift + 2 / min(rows, columns)
    nearest = np.where(np.hypot(x, y) <= reach, -1, dies[0])
    step = 0.5 / max(rows, columns)
    for inward in np.arange(0, 1 + step, step):
        left = np.flatnonzero(nearest < 0)
        if not left.size:
            break
        # A share of the way to the centre that makes the step half a die at most.
        row = np.floor((y[left] * (1 - inward) + 1) * (rows / 2)).astype(np.intp)
        column = np.floor((x[left] * (1 - inward) + 1) * (columns / 2)).astype(np.intp)
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        inside[inside] = mask[row[inside], column[inside]]
        nearest[left[inside]] = row[inside] * columns + column[inside]
    for cell in np.flatnonzero(nearest < 0):
        # No die on the way to the centre: an odd grid. Take the nearest one there is.
        away = (die_row - (y[cell] + 1) * rows / 2) ** 2 + (die_column - (x[cell] + 1) * columns / 2) ** 2
        nearest[cell] = dies[np.argmin(away)]
    return nearest.astype(np.int32)
