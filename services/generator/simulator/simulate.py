"""Simulates wafers: products, lots, background yield and patterns, put together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.common.wafer_map import FAIL, NO_DIE, PASS
from services.generator.simulator.draws import Draws, Floats
from services.generator.simulator.geometry import Product, random_product
from services.generator.simulator.patterns import PATTERNS

DEFAULT_WAFERS_PER_LOT = 5
_LOTS_PER_PRODUCT = 8
_DIES_PER_BATCH = 400_000
_PRODUCT_STREAM, _WAFER_STREAM = 1, 2


@dataclass(frozen=True)
class SimulatedClass:
    """Wafers to simulate of one pattern or of several laid over one another.

    Attributes:
        patterns: Names out of `PATTERNS`.
        count: Wafers.
    """

    patterns: tuple[str, ...]
    count: int

    @property
    def label(self) -> str:
        """Label of the wafers: the names in alphabetical order, joined by `+`."""
        return "+".join(sorted(self.patterns))


@dataclass(frozen=True, eq=False)
class SimulatedBatch:
    """Wafers of one product and one class.

    Attributes:
        class_index: Position of the class in what was asked for.
        product: Their product.
        dies: (wafers, rows, columns) uint8 die grids.
        lots: Lot id of each wafer.
        slots: Slot of each wafer in its lot, from 1.
    """

    class_index: int
    product: Product
    dies: NDArray[np.uint8]
    lots: list[str]
    slots: list[int]


def simulate(
    classes: Sequence[SimulatedClass],
    *,
    seed: int = 0,
    wafers_per_lot: int = DEFAULT_WAFERS_PER_LOT,
    rows: int = 0,
    columns: int = 0,
) -> Iterator[SimulatedBatch]:
    """Simulates the wafers of each class in turn, a batch at a time.

    The same arguments give the same wafers. The products do not depend on the class: all classes run through the same
    sequence of products, so that no size of grid gives a class away.

    Args:
        classes: What to simulate.
        seed: Seed of everything random, 0 to 2^32-1.
        wafers_per_lot: Wafers that share a lot, at least 1.
        rows: Die rows; 0 draws products of many sizes.
        columns: Die columns; 0 exactly when `rows` is 0.
    """
    for class_index, wanted in enumerate(classes):
        made = number = 0
        while made < wanted.count:
            product = random_product(np.random.default_rng((seed, _PRODUCT_STREAM, number)), rows, columns)
            lots = _lots_of(product, wafers_per_lot)
            draws = Draws(np.random.default_rng((seed, _WAFER_STREAM, class_index, number)), lots, wafers_per_lot)
            dies = simulate_batch(draws, product, wanted.patterns)
            kept = min(wanted.count - made, draws.wafers)
            yield SimulatedBatch(
                class_index,
                product,
                dies[:kept],
                [f"S{seed}-{class_index}-{number}-{lot}" for lot in draws.lot_of_wafer[:kept]],
                [wafer % wafers_per_lot + 1 for wafer in range(kept)],
            )
            made += kept
            number += 1


def simulate_batch(draws: Draws, product: Product, patterns: Sequence[str]) -> NDArray[np.uint8]:
    """Simulates the wafers of a batch.

    A die passes when it survives the background and each pattern, independently: the yield of a die is the product of
    its layers' yields.

    Returns:
        (wafers, rows, columns) uint8 die grids.
    """
    yielded = background_yield(draws, product)
    for name in patterns:
        yielded *= 1 - PATTERNS[name](draws, product)
    failed = _with_probe_neighbours(draws, product, draws.white(product) > yielded)
    dies = np.full((draws.wafers, product.mask.size), NO_DIE, np.uint8)
    dies[:, product.cells] = np.where(failed, np.uint8(FAIL), np.uint8(PASS))
    return dies.reshape(draws.wafers, *product.mask.shape)


def background_yield(draws: Draws, product: Product) -> Floats:
    """Returns the (wafers, dies) probability that a die survives what is no pattern.

    Yield is exp(-A D) with the defect density D varying over wafer, lot and place (compound Poisson: Murphy, Proc. IEEE
    52, 1964; clustering as in Stapper, IBM J. Res. Dev. 27(6), 1983): a lot level, a factor for each wafer, a smooth
    field over the wafer, a tool fingerprint common to the lot (tilt and bowl), and a rise over the outermost dies. The
    level rises with the side of the die, not its area: small dies come from denser processes (in WM-811K about 13 %
    fail at 26 dies a side and 4 % at 100).
    """
    level = draws.rng.lognormal(np.log(1.3 * product.die), 0.7, draws.lots)[draws.lot_of_wafer]
    density = np.clip(level * draws.rng.gamma(12, 1 / 12, draws.wafers), 0.001, 0.27).astype(np.float32)[:, None]
    clusters = draws.uniform(0, 0.5) * draws.noise(product, 6)
    tilt = draws.uniform(0, 0.4) * np.cos(product.theta - draws.angle()) * product.r
    bowl = draws.uniform(-0.3, 0.5) * (product.r * product.r - 0.5)
    edge = draws.chance(0.6) * draws.uniform(0.03, 0.4) * np.exp(-(product.depth / product.die - 0.5) * 1.4)
    survival: Floats = np.exp(-density * np.exp(clusters + tilt + bowl) - edge)
    return survival


def _with_probe_neighbours(draws: Draws, product: Product, failed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Lets a fail drag its right neighbour along on some lots, as multi-site probing does."""
    dragged = np.flatnonzero(draws.chance(0.25)[:, 0])
    if dragged.size:
        adjacent = np.diff(product.cells) == 1
        rate = draws.rng.uniform(0.02, 0.25)
        hit = draws.rng.random((dragged.size, product.cells.size - 1), dtype=np.float32) < rate
        failed[dragged, 1:] |= failed[dragged, :-1] & hit & adjacent
    return failed


def _lots_of(product: Product, wafers_per_lot: int) -> int:
    """Lots of a product that fit into one batch's memory."""
    return max(1, min(_LOTS_PER_PRODUCT, _DIES_PER_BATCH // (product.cells.size * wafers_per_lot)))
