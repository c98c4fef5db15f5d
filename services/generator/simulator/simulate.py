"""Simulates wafers: products, lots, background yield and patterns, put together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.common.wafer_map import FAIL, NO_DIE, PASS
from services.generator.simulator.draws import Draws, Floats
from services.generator.simulator.geometry import Product, product_of, random_product
from services.generator.simulator.patterns import PATTERNS

DEFAULT_WAFERS_PER_LOT = 5
_LOTS_PER_PRODUCT = 8
_DIES_PER_BATCH = 400_000
_PRODUCT_STREAM, _WAFER_STREAM = 1, 2
# Nine dies in a row that fail for sure, where every eighth die fails anyway, reach 8.
_VISIBLE = 8.0
_LEAST_BACKGROUND = 0.05


Range = tuple[float, float]
"""Smallest and largest value."""


@dataclass(frozen=True)
class SimulatedClass:
    """Wafers to simulate of one pattern or of several laid over one another.

    Attributes:
        patterns: Names out of `PATTERNS`.
        count: Wafers.
        strength: Range of a factor on what the patterns kill, above 0 to 1; None leaves it alone.
    """

    patterns: tuple[str, ...]
    count: int
    strength: Range | None = None

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
    sides: Range | None = None,
    aspect: Range | None = None,
    background: Range | None = None,
    skip: int = 0,
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
        sides: Mean of rows and columns of products of many sizes; None takes the spread of `random_product`.
        aspect: Rows / columns of products of many sizes; None likewise.
        background: Share of dies that fail without a pattern, 0 to below 1; None takes that of `background_yield`.
        skip: Batches to leave out at the beginning, which then cost little.
    """
    left_out = 0
    for class_index, wanted in enumerate(classes):
        made = number = 0
        while made < wanted.count:
            rng = np.random.default_rng((seed, _PRODUCT_STREAM, number))
            product = random_product(rng, rows, columns, sides, aspect)
            lots = _lots_of(product, wafers_per_lot)
            kept = min(wanted.count - made, lots * wafers_per_lot)
            if left_out < skip:
                left_out += 1
            else:
                draws = Draws(np.random.default_rng((seed, _WAFER_STREAM, class_index, number)), lots, wafers_per_lot)
                dies = simulate_batch(draws, product, wanted.patterns, wanted.strength, background)
                yield SimulatedBatch(
                    class_index,
                    product,
                    dies[:kept],
                    [f"S{seed}-{class_index}-{number}-{lot}" for lot in draws.lot_of_wafer[:kept]],
                    [wafer % wafers_per_lot + 1 for wafer in range(kept)],
                )
            made += kept
            number += 1


def simulate_batch(
    draws: Draws,
    product: Product,
    patterns: Sequence[str],
    strength: Range | None = None,
    background: Range | None = None,
) -> NDArray[np.uint8]:
    """Simulates the wafers of a batch.

    A die passes when it survives the background and each pattern, independently: the yield of a die is the product of
    its layers' yields. Where the background would hide a pattern, it is thinned until a trained eye can see it: nobody
    could have labelled the wafer otherwise.

    Returns:
        (wafers, rows, columns) uint8 die grids.
    """
    yielded = background_yield(draws, product)
    if background is not None:
        yielded = _with_fail_rate(yielded, draws.uniform(*background))
    kills = [PATTERNS[name](draws, product) for name in patterns]
    if strength is not None:
        kills = [kill * draws.uniform(*strength) for kill in kills]
    for kill in kills:
        yielded **= _thinning(yielded, kill)
    for kill in kills:
        yielded *= 1 - kill
    failed = _with_probe_neighbours(draws, product, draws.white(product) > yielded)
    dies = np.full((draws.wafers, product.mask.size), NO_DIE, np.uint8)
    dies[:, product.cells] = np.where(failed, np.uint8(FAIL), np.uint8(PASS))
    return dies.reshape(draws.wafers, *product.mask.shape)


def lay_over(
    backgrounds: Sequence[NDArray[np.uint8]], patterns: Sequence[str], *, seed: Sequence[int]
) -> list[NDArray[np.uint8]]:
    """Lays patterns over wafers, real ones for instance: their geometry and background, with a pattern they never had.

    Fails of the background are thinned where they would hide a pattern, as in `simulate_batch`.

    Args:
        backgrounds: uint8 (rows, columns) die grids, each with a die.
        patterns: Names out of `PATTERNS`.
        seed: Seed of everything random.

    Returns:
        uint8 (rows, columns) die grids, one a background, in order.
    """
    places: dict[tuple[tuple[int, ...], bytes], list[int]] = {}
    for index, dies in enumerate(backgrounds):
        places.setdefault((dies.shape, (dies != NO_DIE).tobytes()), []).append(index)
    made: list[NDArray[np.uint8]] = [np.zeros(0, np.uint8)] * len(backgrounds)
    for number, indices in enumerate(places.values()):
        product = product_of(backgrounds[indices[0]] != NO_DIE)
        draws = Draws(np.random.default_rng([*seed, number]), len(indices), 1)
        failed = np.stack([backgrounds[index].reshape(-1)[product.cells] == FAIL for index in indices])
        survival = np.repeat(1 - failed.mean(axis=1, keepdims=True), product.cells.size, axis=1)
        kills = [PATTERNS[name](draws, product) for name in patterns]
        for kill in kills:
            failed &= draws.white(product) < _thinning(survival, kill)
        for kill in kills:
            failed |= draws.white(product) < kill
        dies = np.full((len(indices), product.mask.size), NO_DIE, np.uint8)
        dies[:, product.cells] = np.where(failed, np.uint8(FAIL), np.uint8(PASS))
        for index, grid in zip(indices, dies.reshape(-1, *product.mask.shape), strict=True):
            made[index] = grid
    return made


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


def _with_fail_rate(survival: Floats, rate: Floats) -> Floats:
    """Returns survival probabilities of the same shape over the wafer, of which a given share fails on average.

    Args:
        survival: (wafers, dies), above 0 and below 1.
        rate: (wafers, 1) shares that shall fail, 0 to below 1.
    """
    wanted = np.log1p(-rate)
    power = wanted / np.log(survival.mean(axis=1, keepdims=True))
    # The mean of a power is not the power of the mean; each round closes most of the gap.
    for _ in range(4):
        reached = np.log((survival**power).mean(axis=1, keepdims=True))
        power = power * np.where(reached < 0, wanted / np.minimum(reached, -1e-9), 1)
    scaled: Floats = survival**power
    return scaled


def _thinning(survival: Floats, kill: Floats) -> Floats:
    """Returns the (wafers, 1) power of the background's survival at which a pattern stands out, at most 1.

    A pattern stands out by the signal-to-noise ratio of the filter that is matched to it, the fails that it adds
    weighed by its own shape against the spread of the background's fails; few fails a wafer leave that ratio growing
    with 1 / sqrt(background).
    """
    weighed = kill * kill
    signal = (weighed * survival).sum(axis=1, keepdims=True)
    spread = np.sqrt((weighed * survival * (1 - survival)).sum(axis=1, keepdims=True))
    power: Floats = np.clip((signal / np.maximum(_VISIBLE * spread, 1e-6)) ** 2, _LEAST_BACKGROUND, 1)
    return np.where(signal > 0, power, np.float32(1))


def _with_probe_neighbours(draws: Draws, product: Product, failed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Lets a fail drag its right neighbour along on some lots, as multi-site probing does."""
    dragged = np.flatnonzero(draws.chance(0.12)[:, 0])
    if dragged.size:
        adjacent = np.diff(product.cells) == 1
        rate = draws.rng.uniform(0.02, 0.15)
        hit = draws.rng.random((dragged.size, product.cells.size - 1), dtype=np.float32) < rate
        failed[dragged, 1:] |= failed[dragged, :-1] & hit & adjacent
    return failed


def _lots_of(product: Product, wafers_per_lot: int) -> int:
    """Lots of a product that fit into one batch's memory."""
    return max(1, min(_LOTS_PER_PRODUCT, _DIES_PER_BATCH // (product.cells.size * wafers_per_lot)))
