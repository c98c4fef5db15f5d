"""Die grids of simulated products: which cells of a round wafer carry a die, and where each die lies."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

WAFER_DIAMETER_MM = 300.0
MIN_SIDE, MAX_SIDE = 22, 200
_EDGE_EXCLUSION_MM = (2.0, 5.0)


@dataclass(frozen=True, eq=False)
class Product:
    """One product: the die grid that all its wafers share.

    A die is kept when all four of its corners lie inside the usable radius (wafer radius minus edge exclusion), as
    steppers and probers do it. Lengths without a unit are shares of that usable radius.

    Attributes:
        name: Product name, made from its size.
        mask: (rows, columns) bool, true where a die is.
        pitch_x_mm: Die width, mm.
        pitch_y_mm: Die height, mm.
    """

    name: str
    mask: NDArray[np.bool_]
    pitch_x_mm: float
    pitch_y_mm: float
    center: tuple[float, float]
    radius: float
    cells: NDArray[np.intp] = field(init=False)
    x: NDArray[np.float32] = field(init=False)
    y: NDArray[np.float32] = field(init=False)
    r: NDArray[np.float32] = field(init=False)
    theta: NDArray[np.float32] = field(init=False)
    depth: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        """Derives the positions of the dies, in the order of the flattened mask."""
        rows, columns = self.mask.shape
        cells = np.flatnonzero(self.mask)
        row, column = np.divmod(cells, columns)
        x = ((column + 0.5) * 2 / columns - 1 - self.center[0]) / self.radius
        y = ((row + 0.5) * 2 / rows - 1 - self.center[1]) / self.radius
        layers = _layers_from_edge(self.mask).reshape(-1)[cells]
        derived = {
            "cells": cells,
            "x": x.astype(np.float32),
            "y": y.astype(np.float32),
            "r": np.hypot(x, y).astype(np.float32),
            "theta": np.arctan2(y, x).astype(np.float32),
            "depth": ((layers - 0.5) * self.die).astype(np.float32),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def die_width(self) -> float:
        """Width of a die in wafer radii."""
        return 2 / int(self.mask.shape[1]) / self.radius

    @property
    def die_height(self) -> float:
        """Height of a die in wafer radii."""
        return 2 / int(self.mask.shape[0]) / self.radius

    @property
    def die(self) -> float:
        """Mean side of a die in wafer radii: the finest scale on which a pattern can show."""
        return math.sqrt(self.die_width * self.die_height)

    def cell_of(self, x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.intp]:
        """Returns the flat grid cell under each point, -1 outside the grid.

        Args:
            x: Points' x in wafer radii, any shape.
            y: Points' y, of the same shape.
        """
        rows, columns = self.mask.shape
        column = np.floor((x * self.radius + self.center[0] + 1) * (columns / 2)).astype(np.intp)
        row = np.floor((y * self.radius + self.center[1] + 1) * (rows / 2)).astype(np.intp)
        inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        return np.where(inside, row * columns + column, -1)


def product_of(mask: NDArray[np.bool_]) -> Product:
    """Returns the product of a real die grid: centred, with all corners of its dies just inside the usable radius.

    Args:
        mask: (rows, columns) bool, true where a die is; at least one is.
    """
    rows, columns = mask.shape
    row, column = np.nonzero(mask)
    far_x = np.maximum(np.abs(column * 2 / columns - 1), np.abs((column + 1) * 2 / columns - 1))
    far_y = np.maximum(np.abs(row * 2 / rows - 1), np.abs((row + 1) * 2 / rows - 1))
    radius = float(np.hypot(far_x, far_y).max())
    usable_mm = WAFER_DIAMETER_MM / 2 - _EDGE_EXCLUSION_MM[0]
    pitch_x, pitch_y = (usable_mm * 2 / side / radius for side in (columns, rows))
    return Product(f"P{rows}X{columns}", mask, pitch_x, pitch_y, (0.0, 0.0), radius)


def random_product(
    rng: np.random.Generator,
    rows: int = 0,
    columns: int = 0,
    sides: tuple[float, float] | None = None,
    aspect: tuple[float, float] | None = None,
) -> Product:
    """Draws a product; with rows and columns given, one whose grid has exactly that size.

    Sizes follow a log-normal law around 36 dies a side, clipped to 22..200, which is about how WM-811K spreads; die
    aspect ratios spread by 12 %. The array is centred on a die, on a street, or off by part of a die; one product in
    three loses dies at the notch, one in ten has alignment or test sites inside.

    Args:
        rng: Source of everything random.
        rows: Die rows; 0 draws them.
        columns: Die columns; 0 exactly when `rows` is 0.
        sides: Range of the mean of rows and columns, in the place of that law; its logarithm is uniform.
        aspect: Range of rows / columns, likewise.
    """
    exact = rows > 0 and columns > 0
    if not exact:
        side = float(np.clip(math.exp(rng.normal(math.log(36), 0.5)), MIN_SIDE, MAX_SIDE))
        ratio = float(np.clip(math.exp(rng.normal(0, 0.12)), 0.7, 1.42))
        smallest, largest = MIN_SIDE, MAX_SIDE
        if sides is not None:
            side = math.exp(rng.uniform(math.log(sides[0]), math.log(sides[1])))
            smallest, largest = 8, 300
        if aspect is not None:
            ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
            smallest, largest = 8, 300
        rows, columns = (int(np.clip(round(side * f), smallest, largest)) for f in (ratio**0.5, ratio**-0.5))
    step = 2 / min(rows, columns)
    # The circle passes outside the grid's outermost rows by so much that they hold some dies.
    radius = math.sqrt(1 + rng.uniform(1.01 * step, max(1.02 * step, 0.3)) ** 2)
    centered = exact or rng.random() < 0.6
    center = (0.0, 0.0) if centered else (rng.uniform(-0.7, 0.7) / columns, rng.uniform(-0.7, 0.7) / rows)
    mask = _full_dies(rows, columns, radius, center)
    if not (mask[0].any() and mask[-1].any() and mask[:, 0].any() and mask[:, -1].any()):
        center = (0.0, 0.0)
        mask = _full_dies(rows, columns, radius, center)
    if rng.random() < 1 / 3:
        mask = _without(mask, _notch_cells(mask, rng))
    if rng.random() < 0.1:
        mask = _without(mask, rng.choice(np.flatnonzero(mask), size=int(rng.integers(1, 5)), replace=False))
    usable_mm = WAFER_DIAMETER_MM / 2 - rng.uniform(*_EDGE_EXCLUSION_MM)
    pitch_x, pitch_y = (usable_mm * 2 / side / radius for side in (columns, rows))
    return Product(f"P{mask.shape[0]}X{mask.shape[1]}-{rng.integers(1000):03d}", mask, pitch_x, pitch_y, center, radius)


def _full_dies(rows: int, columns: int, radius: float, center: tuple[float, float]) -> NDArray[np.bool_]:
    """Marks cells of a grid over [-1, 1] x [-1, 1] whose four corners lie inside the circle."""
    far_x = np.abs(np.linspace(-1, 1, columns + 1) - center[0])
    far_y = np.abs(np.linspace(-1, 1, rows + 1) - center[1])
    x = np.maximum(far_x[:-1], far_x[1:])
    y = np.maximum(far_y[:-1], far_y[1:])
    return np.hypot(x[None, :], y[:, None]) <= radius


def _notch_cells(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.intp]:
    """Picks the lowest dies of the columns above the notch (6 o'clock)."""
    rows, columns = mask.shape
    half = rng.uniform(0.5, max(1.0, 0.03 * columns))
    near = np.flatnonzero(np.abs(np.arange(columns) - (columns - 1) / 2) <= half)
    lowest = rows - 1 - np.argmax(mask[::-1, near], axis=0)
    return np.asarray(lowest * columns + near, np.intp)


def _without(mask: NDArray[np.bool_], cells: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Removes cells, unless the grid's bounding box would shrink."""
    thinner = mask.copy()
    thinner.reshape(-1)[cells] = False
    same_box = bool((thinner.any(0) == mask.any(0)).all() and (thinner.any(1) == mask.any(1)).all())
    return thinner if same_box else mask


def _layers_from_edge(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Counts each die's layer from the rim: 1 for dies beside a missing one across the rim, 2 for the next, ...

    Sites missing inside the wafer are filled first, so that an alignment site makes no rim. Layers are those of
    alternating 4- and 8-neighbour erosion (an octagon, near to a circle), up to 40 % of the smaller half side.
    """
    left = np.logical_or.accumulate(mask, axis=1) & np.logical_or.accumulate(mask[:, ::-1], axis=1)[:, ::-1]
    inside = np.pad(left, 1)
    deepest = max(2, int(0.4 * min(mask.shape) / 2))
    layers = inside.astype(np.int32)
    for step in range(deepest - 1):
        kept = inside.copy()
        kept[1:-1, 1:-1] &= inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
        if step % 2:
            kept[1:-1, 1:-1] &= inside[:-2, :-2] & inside[2:, 2:] & inside[2:, :-2] & inside[:-2, 2:]
        inside = kept
        layers += inside
    return layers[1:-1, 1:-1]
