"""Patterns drawn as thin strokes over the die grid: scratches and slip lines.

A stroke kills the dies that it passes through, so it is followed point by point, finer than a die, instead of by a
distance: it stays one die wide on any product and never skips a corner.
"""

import math
from dataclasses import dataclass

import numpy as np

from services.generator.simulator.draws import Draws, Flags, Floats
from services.generator.simulator.geometry import Product


@dataclass(frozen=True, eq=False)
class _Path:
    """One stroke a wafer; all arrays (wafers, 1), lengths in wafer radii, angles in radians."""

    x: Floats
    y: Floats
    heading: Floats
    length: Floats
    bend: Floats
    kill: Floats


def scratch(draws: Draws, product: Product) -> Floats:
    """Line or arc across dies: robot blade, cassette, CMP debris, probe-card drag.

    Most are one die wide and 10 to 50 % of the diameter long, straight or bent with the polishing head; many start
    at the edge (handling) and one in four runs along the rows or columns (probing). Some are dashed, one in three is
    two dies wide, and one wafer in four has up to three more, parallel or as a fan (rare bristle or pad marks).
    """
    first = _scratch_path(draws, product)
    killed = np.zeros((draws.wafers, product.mask.size), np.float32)
    gaps = draws.chance(0.2) * draws.uniform(0.15, 0.4)
    _stamp(killed, draws, product, first, gaps)
    thick = draws.chance(1 / 3)
    beside = _beside(first, product.die)
    _stamp(killed, draws, product, beside, gaps, drawn=thick)
    several, fan = draws.chance(0.25), draws.chance(0.4)
    for number in range(1, 4):
        path = _companion(draws, product, first, number, fan)
        _stamp(killed, draws, product, path, gaps, drawn=several & draws.chance(1.1 - 0.25 * number))
    return np.take(killed, product.cells, axis=1)


def slip_lines(draws: Draws, product: Product) -> Floats:
    """Straight short lines at the edge in bundles at four-fold places: slip along <110> under thermal stress.

    (100) silicon slips first where the hoop stress at the rim is largest, at four places 90 degrees apart, and the
    lines run along the two <110> directions (parallel and square to the notch axis); see S. M. Hu, J. Appl. Phys.
    70(6), 1991. Some wafers show one or two of the four places only.
    """
    killed = np.zeros((draws.wafers, product.mask.size), np.float32)
    start, kill = draws.choice((0.0, math.pi / 4)), draws.strength(0.6)
    length = np.maximum(draws.log_uniform(0.12, 0.5), 4 * product.die)
    spacing = np.maximum(draws.uniform(0.05, 0.12), 2 * product.die)
    for quarter in range(4):
        place = start + quarter * math.pi / 2 + draws.uniform(-0.15, 0.15)
        shown = draws.chance(0.75) if quarter else draws.chance(1.0)
        along = np.round(place / (math.pi / 2) + 2e-3) * np.float32(math.pi / 2)
        inward = along + math.pi
        for line in range(-2, 3):
            shift = line * spacing
            x = np.cos(place) * 0.99 - np.sin(along) * shift
            y = np.sin(place) * 0.99 + np.cos(along) * shift
            path = _Path(x, y, inward, length * draws.uniform(0.5, 1.2), np.zeros_like(x), kill)
            _stamp(killed, draws, product, path, np.float32(0.1) * kill, drawn=shown & draws.chance(0.75))
    return np.take(killed, product.cells, axis=1)


def _scratch_path(draws: Draws, product: Product) -> _Path:
    """Draws where the first scratch starts, where it heads and how long it is."""
    from_edge = draws.chance(0.4)
    around, reach = draws.angle(), np.where(from_edge, 1.0, np.sqrt(draws.uniform(0, 0.7)))
    # From the edge it heads inward within 70 degrees, from inside anywhere.
    heading = np.where(from_edge, around + math.pi + draws.uniform(-1.2, 1.2), draws.angle())
    squared = np.round(heading / (math.pi / 2)) * (math.pi / 2)
    heading = np.where(draws.chance(0.25), squared, heading).astype(np.float32)
    length = np.where(draws.chance(0.2), draws.uniform(0.6, 1.7), draws.log_uniform(0.26, 0.95))
    length = np.maximum(length, draws.uniform(6, 9) * product.die).astype(np.float32)
    bend = np.where(draws.chance(0.5), draws.uniform(-1.6, 1.6), draws.uniform(-0.15, 0.15)).astype(np.float32)
    # The place drawn is the start of a scratch from the edge, the middle of one inside.
    back = np.where(from_edge, 0, length / 2)
    x = reach * np.cos(around) - back * np.cos(heading)
    y = reach * np.sin(around) - back * np.sin(heading)
    return _Path(x, y, heading, length, bend, draws.strength(0.65))


def _beside(path: _Path, distance: float) -> _Path:
    """The same stroke one die aside."""
    x = path.x - np.sin(path.heading) * distance
    y = path.y + np.cos(path.heading) * distance
    return _Path(x, y, path.heading, path.length, path.bend, path.kill)


def _companion(draws: Draws, product: Product, first: _Path, number: int, fan: Flags) -> _Path:
    """A further stroke: spread from the first one's start like a fan, or parallel to it."""
    spread = draws.uniform(0.12, 0.4) * (number if number < 3 else -1)
    aside = np.where(fan, 0, spread * 0.8 + 2 * product.die * np.sign(spread))
    shifted = _beside(first, 1.0)
    x = first.x + (shifted.x - first.x) * aside
    y = first.y + (shifted.y - first.y) * aside
    heading = first.heading + np.where(fan, spread, draws.uniform(-0.08, 0.08))
    return _Path(x, y, heading, first.length * draws.uniform(0.5, 1.1), first.bend, first.kill)


def _stamp(
    killed: Floats, draws: Draws, product: Product, path: _Path, gaps: Floats, drawn: Flags | None = None
) -> None:
    """Writes a stroke's kill probability into the cells that it passes.

    Args:
        killed: (wafers, rows * columns) kill probability, changed in place.
        draws: The wafers' draws.
        product: The die grid.
        path: The strokes.
        gaps: (wafers, 1) share of the stroke that leaves no mark, in pieces of a few dies.
        drawn: (wafers, 1) which wafers have the stroke; None means all.
    """
    wafers = np.arange(draws.wafers) if drawn is None else np.flatnonzero(drawn[:, 0])
    if not wafers.size:
        return
    length = path.length[wafers]
    steps = math.ceil(float(length.max()) / (0.45 * min(product.die_width, product.die_height))) + 1
    at = np.linspace(0, 1, steps, dtype=np.float32)[None, :] * length
    wobble = draws.rng.normal(0, 0.05) * np.sin(at * 9)
    heading = path.heading[wafers] + path.bend[wafers] * at + wobble
    step = length / max(1, steps - 1)
    x = path.x[wafers] + np.cumsum(np.cos(heading), axis=1) * step
    y = path.y[wafers] + np.cumsum(np.sin(heading), axis=1) * step
    cells = product.cell_of(x, y)
    pieces = max(1, steps // 8)
    marks = draws.rng.random((wafers.size, pieces), dtype=np.float32) >= gaps[wafers]
    kept = (cells >= 0) & np.take(marks, np.arange(steps) * pieces // steps, axis=1)
    kill = np.broadcast_to(path.kill[wafers], cells.shape)
    rows = np.broadcast_to(wafers[:, None], cells.shape)
    killed[rows[kept], cells[kept]] = np.maximum(killed[rows[kept], cells[kept]], kill[kept])
