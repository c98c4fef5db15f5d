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

import numpy as np
from numpy.typing import NDArray

from services.common.wafer_map import NO_DIE
from services.generator.domain import EDGE_PATTERNS, VariationOptions

GRID_PATTERNS = ("Shot-Grid", "Checker", "Slip-Lines")
"""Patterns tied to the rows and columns of dies: they turn by right angles only."""
_DIES_AT_ONCE = 500_000
_SWAP = np.uint8(3)  # 1 ^ 3 = 2 and 2 ^ 3 = 1: a passed die fails and a failed one passes


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
    """

    rotation_degrees: float = 180.0
    shear: float = 0.05
    horizontal_mirror: bool = True
    vertical_mirror: bool = True
    shift: float = 0.03
    die_noise: float = 0.005
    right_angles: bool = False


def settings_for(options: VariationOptions, pattern: str) -> VariationSettings:
    """Returns the settings of a class: what was asked for, else what is legal for its pattern.

    A pattern at the edge is never shifted, one tied to the die rows is never sheared and turns by right angles. The
    patterns of science have no handedness, so mirrors are legal for all; a class of the fab's own that has one must
    switch them off.

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
    return replace(settings, **asked)


class VariationMaker:
    """Makes variations of a class's wafers.

    Args:
        parents: uint8 (rows, columns) die grids, at least one.
        settings: Settings in use.
    """

    def __init__(self, parents: Sequence[NDArray[np.uint8]], settings: VariationSettings) -> None:
        self._settings = settings
        members: dict[tuple[tuple[int, ...], bytes], list[int]] = {}
        for index, parent in enumerate(parents):
            members.setdefault((parent.shape, np.packbits(parent != NO_DIE).tobytes()), []).append(index)
        self._families: list[_Family] = []
        self._family_of = np.zeros(len(parents), np.intp)
        self._place = np.zeros(len(parents), np.intp)
        for number, indexes in enumerate(members.values()):
            self._family_of[indexes] = number
            self._place[indexes] = np.arange(len(indexes))
            self._families.append(_Family(np.stack([parents[index] for index in indexes]), settings))

    def make(self, parents: NDArray[np.intp], rng: np.random.Generator) -> list[NDArray[np.uint8]]:
        """Makes one variation of each of the given parents.

        Args:
            parents: (n,) positions of the parents; one may come several times.
            rng: Source of everything random.

        Returns:
            n uint8 die grids, in order.
        """
        made: list[NDArray[np.uint8]] = [np.empty((0, 0), np.uint8)] * len(parents)
        family_of = self._family_of[parents]
        order = np.argsort(family_of, kind="stable")
        ends = np.flatnonzero(np.diff(family_of[order])) + 1
        for wanted in np.split(order, ends):
            family = self._families[family_of[wanted[0]]]
            at_once = max(1, _DIES_AT_ONCE // family.cells.size)
            for start in range(0, len(wanted), at_once):
                part = wanted[start : start + at_once]
                for index, dies in zip(part, family.vary(self._place[parents[part]], self._settings, rng), strict=True):
                    made[index] = dies
        return made


class _Family:
    """Parents with the same die positions.

    Attributes:
        cells: Flat grid positions of the dies.
    """

    def __init__(self, parents: NDArray[np.uint8], settings: VariationSettings) -> None:
        self._shape = parents.shape[1:]
        rows, columns = self._shape
        mask = parents[0] != NO_DIE
        self.cells = np.flatnonzero(mask)
        self._dies = parents.reshape(len(parents), -1)
        row, column = np.divmod(self.cells, columns)
        x = (2 * column + 1 - columns) / columns
        y = (2 * row + 1 - rows) / rows
        self._square = 0.95 <= rows / columns <= 1 / 0.95
        # Rows of the basis: x, y, 1; an affine motion of all wafers is then one matrix product.
        self._basis = np.stack([x, y, np.ones_like(x)]).astype(np.float32)
        reach = float(np.hypot(x, y).max()) * (1 + settings.shear) + settings.shift
        self._pad = tuple(max(1, math.ceil((reach - 1) * side / 2) + 1) for side in (rows, columns))
        self._nearest = _nearest_dies(mask, *self._pad)

    def vary(
        self, parents: NDArray[np.intp], settings: VariationSettings, rng: np.random.Generator
    ) -> NDArray[np.uint8]:
        """Returns (n, rows, columns) variations of the family's parents at the given places."""
        rows, columns = self._shape
        motion = self._motions(len(parents), settings, rng)
        width = columns + 2 * self._pad[1]
        # Positions are positive thanks to the padding, so that truncation is floor.
        column = np.matmul(motion[:, 0] * (columns / 2), self._basis)
        column += columns / 2 + self._pad[1]
        row = np.matmul(motion[:, 1] * (rows / 2), self._basis)
        row += rows / 2 + self._pad[0]
        source = row.astype(np.int32)
        source *= width
        source += column.astype(np.int32)
        source = np.take(self._nearest, source)
        source += (parents * (rows * columns)).astype(np.int32)[:, None]
        results = np.take(self._dies, source)
        flips = rng.integers(0, results.size, rng.binomial(results.size, settings.die_noise))
        results.reshape(-1)[flips] ^= _SWAP
        dies = np.full((len(parents), rows * columns), NO_DIE, np.uint8)
        dies[:, self.cells] = results
        return dies.reshape(-1, rows, columns)

    def _motions(self, count: int, settings: VariationSettings, rng: np.random.Generator) -> NDArray[np.float32]:
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
        motion = np.empty((count, 2, 3), np.float32)
        # Rotation times shear along x, then mirrors.
        motion[:, 0] = np.stack([cos, cos * shear - sin, distance * np.cos(direction)], axis=1) * mirror_x[:, None]
        motion[:, 1] = np.stack([sin, sin * shear + cos, distance * np.sin(direction)], axis=1) * mirror_y[:, None]
        return motion


def _nearest_dies(mask: NDArray[np.bool_], pad_rows: int, pad_columns: int) -> NDArray[np.int32]:
    """Returns the flat position of the die of each cell of the padded grid; without one, of the next to the centre."""
    rows, columns = mask.shape
    y = (2 * np.arange(-pad_rows, rows + pad_rows) + 1 - rows) / rows
    x = (2 * np.arange(-pad_columns, columns + pad_columns) + 1 - columns) / columns
    y, x = (np.ascontiguousarray(grid).reshape(-1) for grid in np.broadcast_arrays(y[:, None], x[None, :]))
    dies = np.flatnonzero(mask)
    die_row, die_column = np.divmod(dies, columns)
    nearest = np.full(y.size, -1, np.int64)
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
