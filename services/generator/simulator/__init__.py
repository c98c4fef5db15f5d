"""A parametric wafer simulator: whole lots of wafer maps with known patterns, from first principles.

What one wafer is made of: a product's die grid (`geometry`), background yield loss (`simulate.background_yield`), and
patterns as kill probabilities over the wafer (`patterns`, `strokes`), with parameters that wafers of a lot share
(`draws`). Everything is vectorised over the wafers of a batch and deterministic by seed.

Command line: `python -m services.generator.simulator --out SET.npz --wafers-per-class 2000 --seed 0`.
"""

from services.generator.simulator.geometry import Product
from services.generator.simulator.patterns import PATTERNS
from services.generator.simulator.simulate import (
    DEFAULT_WAFERS_PER_LOT,
    Range,
    SimulatedBatch,
    SimulatedClass,
    lay_over,
    simulate,
)

__all__ = [
    "DEFAULT_WAFERS_PER_LOT",
    "PATTERNS",
    "Product",
    "Range",
    "SimulatedBatch",
    "SimulatedClass",
    "lay_over",
    "simulate",
]
