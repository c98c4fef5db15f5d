"""Command line of the simulator: writes a wafer set of simulated wafers."""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.common.task import NORMAL_PATTERN
from services.common.wafer_set import WaferSetWriter, read_wafer_set
from services.generator.simulator import PATTERNS, SimulatedClass, lay_over, simulate

SOURCE = "simulated"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    classes = [SimulatedClass((name,), options.wafers_per_class) for name in options.patterns]
    classes += _mixtures(options.mixed)
    started = time.perf_counter()
    made: Iterator[tuple[int, Sequence[NDArray[np.uint8]], list[str]]] = (
        _laid_over(options.onto, classes, options.seed)
        if options.onto
        else (
            (batch.class_index, list(batch.dies), batch.lots)
            for batch in simulate(classes, seed=options.seed, wafers_per_lot=options.wafers_per_lot)
        )
    )
    with WaferSetWriter(options.out) as writer:
        for index, grids, lots in made:
            writer.add(grids, [classes[index].label] * len(grids), lots, [SOURCE] * len(grids))
        writer.finish()
    seconds = time.perf_counter() - started
    print(f"{writer.wafers} wafers in {seconds:.1f} s ({writer.wafers / seconds:.0f} a second): {options.out}")
    return 0


def _laid_over(
    path: Path, classes: Sequence[SimulatedClass], seed: int
) -> Iterator[tuple[int, Sequence[NDArray[np.uint8]], list[str]]]:
    """Yields, class after class, its number, its patterns laid over wafers of a set, and the lots of the latter."""
    wafers = read_wafer_set(path)
    labels = wafers.labels or [NORMAL_PATTERN] * len(wafers)
    normal = [row for row, grid in enumerate(wafers.grids) if labels[row] == NORMAL_PATTERN and grid.any()]
    if not normal:
        raise SystemExit(
            f"Expected wafers labelled {NORMAL_PATTERN!r} in {path}. Received: {len(wafers)} of other labels."
        )
    for index, wanted in enumerate(classes):
        rows = np.random.default_rng([seed, index]).choice(normal, wanted.count)
        made = lay_over([wafers.grids[row] for row in rows], wanted.patterns, seed=[seed, index])
        yield index, made, [wafers.groups[row] if wafers.groups else "" for row in rows]


def _mixtures(count: int) -> list[SimulatedClass]:
    """Spreads `count` wafers over the 29 mixtures of MixedWM38 (Wang et al., IEEE TSM 33(4), 2020)."""
    combinations = [
        tuple(filter(None, names))
        for names in product(("", "Center", "Donut"), ("", "Edge-Loc", "Edge-Ring"), ("", "Loc"), ("", "Scratch"))
    ]
    mixed = [names for names in combinations if len(names) > 1]
    shares = [count // len(mixed) + (index < count % len(mixed)) for index in range(len(mixed))]
    return [SimulatedClass(names, share) for names, share in zip(mixed, shares, strict=True) if share]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.generator.simulator", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="wafer set to write (.npz)")
    parser.add_argument("--wafers-per-class", type=_count, default=2000, help="wafers of each pattern (2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (0)")
    parser.add_argument(
        "--patterns", nargs="+", choices=list(PATTERNS), default=list(PATTERNS), metavar="NAME", help="default: all"
    )
    parser.add_argument("--mixed", type=_count, default=0, metavar="N", help="wafers with several patterns (0)")
    parser.add_argument(
        "--onto",
        type=Path,
        metavar="SET",
        help="wafer set whose wafers labelled none lend geometry, background and lot; default: all simulated",
    )
    parser.add_argument("--wafers-per-lot", type=int, default=5, choices=range(1, 26), metavar="1..25", help="(5)")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more. Received: {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
