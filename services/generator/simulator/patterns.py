"""The patterns: where on the wafer a fault kills dies, and how surely.

Each function returns the (wafers, dies) probability in [0, 1] that the fault kills a die. Sizes, places and strengths
vary as widely as in production; faint ones are wanted. Looks follow the classes of WM-811K (Wu, Jang, Chen, IEEE Trans.
Semiconductor Manufacturing 28(1), 2015); shapes that show the process step follow its physics as said in each function.
"""

import math
from collections.abc import Callable

import numpy as np

from services.generator.simulator.draws import Draws, Flags, Floats
from services.generator.simulator.geometry import Product
from services.generator.simulator.strokes import scratch, slip_lines

Pattern = Callable[[Draws, Product], Floats]


def center(draws: Draws, product: Product) -> Floats:
    """Cluster in the middle: centre flow of CVD or ALD, CMP head pressure, the drop of a spin coat.

    A disc of 4 to 60 % of the radius, slightly oval and off centre; one in eight is hollow at its very core.
    """
    offset, direction = draws.uniform(0, 0.12), draws.angle()
    size = np.maximum(draws.log_uniform(0.045, 0.62), 1.3 * product.die)
    distance = _ellipse_distance(
        draws, product, (offset * np.cos(direction), offset * np.sin(direction)), size, draws.log_uniform(0.6, 1.0)
    )
    strength = draws.strength(0.45)
    filled = _inside(distance, draws.log_uniform(0.06, 0.5))
    hollow = draws.chance(0.12) * _inside(distance * 2.5, 0.3)
    return strength * filled * (1 - hollow)


def donut(draws: Draws, product: Product) -> Floats:
    """Ring with a clean centre: standing resist annulus of spin coat or hot plate, mid-radius gas or heat gradient.

    Half of the rings are open: the kill rate fades over part of the circle.
    """
    offset, direction = draws.uniform(0, 0.13), draws.angle()
    x = product.x - offset * np.cos(direction)
    y = product.y - offset * np.sin(direction)
    lumps = draws.noise(product, 5)
    r = np.hypot(x, y) * (1 + draws.uniform(0, 0.13) * lumps)
    radius = draws.uniform(0.24, 0.62)
    half_width = np.maximum(radius * draws.uniform(0.16, 0.42), 0.8 * product.die)
    ring = _inside(np.abs(r - radius) / half_width, draws.uniform(0.08, 0.4))
    opening = draws.chance(0.5) * draws.uniform(0.3, 1.0)
    facing = 0.5 + 0.5 * np.cos(np.arctan2(y, x) - draws.angle())
    density: Floats = np.clip(1 + 0.3 * lumps, 0, 1)
    return draws.strength(0.4) * ring * (1 - opening * facing) * density


def edge_ring(draws: Draws, product: Product) -> Floats:
    """Band round the whole edge: edge-etch or CMP roll-off, bevel particles, a worn edge ring, edge-bead removal.

    From part of the outermost die layer to 16 % of the radius; the width breathes along the edge (a wafer off the
    chuck's centre), and up to a quarter of the circle may be thin.
    """
    width = np.maximum(draws.log_uniform(0.018, 0.16), draws.uniform(0.6, 1.2) * product.die)
    facing = np.cos(product.theta - draws.angle())
    width = width * (1 + draws.uniform(0, 0.7) * facing)
    band = _inside(product.depth / np.maximum(width, 0.5 * product.die), draws.uniform(0.05, 0.35))
    thin = draws.chance(0.3) * draws.uniform(0.2, 0.85) * _sector(draws, product, 0.25, 0.8)
    return draws.strength(0.5) * band * (1 - thin)


def edge_loc(draws: Draws, product: Product) -> Floats:
    """Arc or blob at one sector of the edge: clamp or handling contact, incomplete edge-bead removal, chuck tilt."""
    arc_depth = np.maximum(draws.log_uniform(0.035, 0.3), draws.uniform(1.1, 2.0) * product.die)
    arc = _inside(product.depth / arc_depth, draws.uniform(0.08, 0.4)) * _sector(draws, product, 0.22, 1.1)
    direction, reach = draws.angle(), draws.uniform(0.8, 1.02)
    size = np.maximum(draws.log_uniform(0.09, 0.45), 1.8 * product.die)
    place = (reach * np.cos(direction), reach * np.sin(direction))
    # The long axis of a blob on the rim follows the rim.
    blob = _inside(
        _ellipse_distance(draws, product, place, size, draws.log_uniform(0.35, 1.0), direction + math.pi / 2),
        draws.log_uniform(0.06, 0.5),
    )
    return draws.strength(0.45) * np.where(draws.chance(0.5), arc, blob)


def loc(draws: Draws, product: Product) -> Floats:
    """Blob inside the wafer: a particle under the wafer, residue, a local hot spot.

    From four dies to a third of the wafer, round to streaky; one wafer in five has a second one.
    """
    first = _inner_blob(draws, product, 0.06, 0.4)
    second = _inner_blob(draws, product, 0.05, 0.16) * draws.chance(0.2)
    return draws.strength(0.45) * np.maximum(first, second)


def random(draws: Draws, product: Product) -> Floats:
    """Scattered fails over the wafer: a particle event or contamination; some drift over the wafer or come in rows."""
    level = draws.uniform(0.27, 0.6)
    drift = draws.uniform(0, 0.9) * draws.noise(product, 3)
    rows = draws.chance(0.15) * draws.uniform(0.3, 1.2) * _row_noise(draws, product)
    return _from_logit(np.log(level / (1 - level)) + drift + rows)


def near_full(draws: Draws, product: Product) -> Floats:
    """Almost all dies fail: a gross process error or test set-up. Some keep an island of good dies at the rim."""
    level = 1 - draws.log_uniform(0.003, 0.35)
    direction, reach = draws.angle(), draws.uniform(0.0, 1.1)
    place = (reach * np.cos(direction), reach * np.sin(direction))
    island = _inside(_ellipse_distance(draws, product, place, draws.uniform(0.1, 0.5), draws.uniform(0.5, 1)), 0.4)
    return level * (1 - draws.chance(0.45) * draws.uniform(0.3, 1.0) * island)


def shot_grid(draws: Draws, product: Product) -> Floats:
    """The same sites of every stepper field fail: a mask defect, lens heating or field-edge blading.

    Fields are 2 to 6 dies a side; either some dies of the field fail, or one border column or row of it.
    """
    columns, rows = draws.choice((2, 3, 4, 5, 6)), draws.choice((2, 3, 4, 5))
    column, row = _column_row(product)
    in_x = (column + np.floor(draws.unit() * columns)) % columns
    in_y = (row + np.floor(draws.unit() * rows)) % rows
    border = np.where(draws.chance(0.5), in_x == 0, in_y == 0)
    site = (in_x == np.floor(draws.unit() * columns)) & (in_y == np.floor(draws.unit() * rows))
    failing: Flags = np.where(draws.chance(0.5), border, site)
    return draws.uniform(0.45, 1.0) * failing * _window(draws, product)


def spokes(draws: Draws, product: Product) -> Floats:
    """Rays from the centre: radial striation of a spin coat, vacuum grooves of a chuck; some are bent like a swirl."""
    count = draws.choice((3, 4, 5, 6, 8, 10, 12))
    swirl = draws.chance(0.4) * draws.uniform(-2.5, 2.5)
    phase = (product.theta - draws.angle() + swirl * product.r) * count / 2
    # Distance to the nearest ray, along the circle.
    distance = np.abs(np.sin(phase)) * product.r * 2 / count
    width = np.maximum(draws.log_uniform(0.015, 0.06), draws.uniform(0.5, 0.8) * product.die)
    reach = (product.r > draws.uniform(0, 0.35)) & (product.r < draws.uniform(0.7, 1.3))
    return draws.uniform(0.45, 1.0) * _inside(distance / width, 0.25) * reach


def half_wafer(draws: Draws, product: Product) -> Floats:
    """One side of the wafer fails: a tilted or half-dipped wafer, a blocked nozzle, a probe card that lifted off."""
    direction = draws.angle()
    if draws.rng.random() < 0.3:
        direction = np.round(direction / (math.pi / 2)) * np.float32(math.pi / 2)
    along = product.x * np.cos(direction) + product.y * np.sin(direction)
    along = along + draws.uniform(0, 0.08) * draws.noise(product, 5)
    edge = (along - draws.uniform(-0.25, 0.35)) / draws.log_uniform(0.02, 0.35)
    return draws.uniform(0.4, 1.0) * _from_logit(4 * edge)


def checker(draws: Draws, product: Product) -> Floats:
    """Every second die or field fails: a two-site probe card or dual-die mask with one bad site."""
    column, row = _column_row(product)
    width, height = draws.choice((1, 1, 2, 3)), draws.choice((1, 1, 2, 3))
    parity: Floats = (np.floor(column / width) + np.floor(row / height) + np.floor(2 * draws.unit())) % 2
    return draws.uniform(0.5, 1.0) * parity * _window(draws, product)


def none(draws: Draws, product: Product) -> Floats:
    """No structure: background only."""
    return np.zeros((draws.wafers, product.cells.size), np.float32)


PATTERNS: dict[str, Pattern] = {
    "Center": center,
    "Donut": donut,
    "Edge-Loc": edge_loc,
    "Edge-Ring": edge_ring,
    "Loc": loc,
    "Near-full": near_full,
    "Random": random,
    "Scratch": scratch,
    "none": none,
    "Shot-Grid": shot_grid,
    "Slip-Lines": slip_lines,
    "Spokes": spokes,
    "Half-Wafer": half_wafer,
    "Checker": checker,
}


def _inner_blob(draws: Draws, product: Product, smallest: float, largest: float) -> Floats:
    """A blob of four dies or more, whose middle lies 12 to 88 % of the radius out."""
    direction, reach = draws.angle(), draws.uniform(0.12, 0.88)
    size = np.maximum(draws.log_uniform(smallest, largest), draws.uniform(1.3, 2.2) * product.die)
    place = (reach * np.cos(direction), reach * np.sin(direction))
    oblong = np.where(draws.chance(0.25), draws.uniform(0.2, 0.45), draws.uniform(0.55, 1.0))
    return _inside(_ellipse_distance(draws, product, place, size, oblong), draws.log_uniform(0.06, 0.6))


def _ellipse_distance(
    draws: Draws,
    product: Product,
    place: tuple[Floats, Floats],
    size: Floats,
    oblong: Floats,
    direction: Floats | None = None,
) -> Floats:
    """Distance of each die from a lumpy ellipse's middle, 1 on its outline.

    Args:
        draws: The wafers' draws.
        product: The die grid.
        place: Middle (x, y) in wafer radii.
        size: Long half axis in wafer radii.
        oblong: Short axis / long axis, (0, 1].
        direction: Direction of the long axis, radians; drawn when None.
    """
    direction = draws.angle() if direction is None else direction
    dx, dy = product.x - place[0], product.y - place[1]
    # Dies cannot show a waist thinner than themselves.
    short = np.maximum(size * oblong, 0.75 * product.die)
    along = (dx * np.cos(direction) + dy * np.sin(direction)) / size
    across = (dy * np.cos(direction) - dx * np.sin(direction)) / short
    distance = np.sqrt(along * along + across * across)
    return distance * np.exp(draws.uniform(0, 0.35) * draws.noise(product, 9))


def _inside(distance: Floats, softness: Floats | float) -> Floats:
    """1 well inside distance 1, 0 well outside, falling over about `softness` on either side."""
    return _from_logit((1 - distance) * (2 / softness))


def _from_logit(logit: Floats) -> Floats:
    """Logistic function by tanh, which is fast and never overflows."""
    curve: Floats = np.tanh(0.5 * logit)
    return 0.5 + 0.5 * curve


def _sector(draws: Draws, product: Product, narrowest: float, widest: float) -> Floats:
    """1 in a sector of the wafer whose half angle is `narrowest` to `widest` radians, 0 outside, soft between."""
    half = np.maximum(draws.log_uniform(narrowest, widest), 2.0 * product.die)
    away = np.abs((product.theta - draws.angle() + math.pi) % (2 * math.pi) - math.pi)
    return _inside(away / half, draws.uniform(0.1, 0.4))


def _window(draws: Draws, product: Product) -> Floats:
    """1 everywhere on two wafers of three; on the others only in a disc of at least half the radius."""
    direction, reach = draws.angle(), draws.uniform(0, 0.6)
    place = (reach * np.cos(direction), reach * np.sin(direction))
    part = _inside(_ellipse_distance(draws, product, place, draws.uniform(0.5, 0.9), draws.uniform(0.7, 1)), 0.2)
    return np.where(draws.chance(2 / 3), np.float32(1), part)


def _row_noise(draws: Draws, product: Product) -> Floats:
    """One normal value a die row, the same for all dies of it: what a prober's row-wise faults look like."""
    _, row = _column_row(product)
    rows = draws.rng.standard_normal((draws.wafers, product.mask.shape[0]), dtype=np.float32)
    return np.take(rows, row.astype(np.intp), axis=1)


def _column_row(product: Product) -> tuple[Floats, Floats]:
    """Grid column and row of each die."""
    row, column = np.divmod(product.cells, product.mask.shape[1])
    return column.astype(np.float32), row.astype(np.float32)
