"""Random parameters of a batch of wafers, alike within a lot."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.generator.simulator.geometry import Product

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]


class Draws:
    """Draws one value a wafer, so that wafers of a lot resemble one another.

    Wafers of a lot run through the same tools hours apart, so the same fault shows at nearly the same place and
    strength. Every draw has exactly the stated marginal law; within a lot the values lie in a band around a value of
    the lot. Half of the lots have a narrow band (a tool signature that repeats), the others a wide one.
    """

    def __init__(self, rng: np.random.Generator, lots: int, wafers_per_lot: int) -> None:
        """Prepares draws for `lots` lots of `wafers_per_lot` wafers each."""
        self.rng = rng
        self.lots = lots
        self.lot_of_wafer = np.repeat(np.arange(lots), wafers_per_lot)
        self.wafers = lots * wafers_per_lot
        self._band = np.where(rng.random(lots) < 0.5, 0.08, 1.5)

    def unit(self) -> Floats:
        """Returns (wafers, 1) values, uniform on [0, 1)."""
        position = self.rng.random(self.lots) * 2
        offset = (self.rng.random(self.wafers) - 0.5) * self._band[self.lot_of_wafer]
        # Folding a uniform point of a circle of length 2 keeps the law uniform and neighbours near.
        folded = np.abs((position[self.lot_of_wafer] + offset) % 2 - 1)
        return np.minimum(folded, np.float32(1 - 1e-7)).astype(np.float32)[:, None]

    def uniform(self, low: float, high: float) -> Floats:
        """Returns (wafers, 1) values, uniform on [low, high)."""
        return low + (high - low) * self.unit()

    def log_uniform(self, low: float, high: float) -> Floats:
        """Returns (wafers, 1) values whose logarithm is uniform between those of low and high, both above 0."""
        return np.exp(self.uniform(math.log(low), math.log(high)))

    def strength(self, weakest: float) -> Floats:
        """Returns (wafers, 1) kill rates from `weakest` to 1, more of them strong than faint."""
        return 1 - (1 - weakest) * self.unit() ** 2

    def angle(self) -> Floats:
        """Returns (wafers, 1) angles, uniform on the circle, radians in [-pi, pi)."""
        position = self.rng.random(self.lots)
        offset = (self.rng.random(self.wafers) - 0.5) * np.minimum(self._band, 1)[self.lot_of_wafer]
        turns = (position[self.lot_of_wafer] + offset) % 1
        return ((turns - 0.5) * 2 * math.pi).astype(np.float32)[:, None]

    def chance(self, share: float) -> Flags:
        """Returns (wafers, 1) booleans, true for that share of wafers."""
        return self.unit() < share

    def choice(self, values: Sequence[float]) -> Floats:
        """Returns (wafers, 1) picks from `values`, each equally likely."""
        return np.asarray(values, np.float32)[(self.unit() * len(values)).astype(np.intp)]

    def noise(self, product: Product, knots: int = 5) -> Floats:
        """Returns (wafers, dies) smooth random fields of mean 0 and deviation about 1, one a wafer.

        Smooth means: `knots` cells across the wafer, joined by Gaussian kernels.
        """
        coarse = self.rng.standard_normal((self.wafers, knots + 2, knots + 2), dtype=np.float32)
        down, across = (_kernel(side, knots) for side in product.mask.shape)
        fields = np.matmul(np.matmul(down, coarse), across.T)
        return np.take(fields.reshape(self.wafers, -1), product.cells, axis=1)

    def white(self, product: Product) -> Floats:
        """Returns (wafers, dies) independent values, uniform on [0, 1)."""
        return self.rng.random((self.wafers, product.cells.size), dtype=np.float32)


def _kernel(side: int, knots: int) -> Floats:
    """Returns (side, knots + 2) weights from knots to dies, each row of unit length."""
    at = (np.arange(side) + 0.5) / side * knots
    centers = np.arange(knots + 2) - 0.5
    weights = np.exp(-0.5 * ((at[:, None] - centers[None, :]) / 0.6) ** 2)
    lengths = np.linalg.norm(weights, axis=1, keepdims=True)
    return np.asarray(weights / lengths, np.float32)
