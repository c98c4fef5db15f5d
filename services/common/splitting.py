"""Who learns and who judges: wafers are put on three sides by lot.

Wafers of one lot look alike and often carry the same defect; with a random split three test defects out of four have a
sister with the same label in training, and the score says nothing about the next lot. A lot therefore stands on one
side only.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidArgumentError
from services.common.wafer_set import WaferSet


class Split(StrEnum):
    """Side on which a wafer stands.

    TRAIN teaches; TUNE chooses thresholds, temperature and the best epoch; TEST is locked: it only measures.
    """

    TRAIN = "train"
    TUNE = "tune"
    TEST = "test"


MIN_CLASS_WAFERS = 5
"""A class with fewer wafers stays in training: taking one away costs more than its measurement is worth."""

_SIDES = (Split.TRAIN, Split.TUNE, Split.TEST)
_TRAIN, _TUNE, _TEST = range(3)
_MAX_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class SplitReport:
    """What a split came to.

    Attributes:
        sides: side of each wafer, in the order given; strings equal to `Split` members.
        counts: wafers of each class on each side.
        lots: number of lots on each side.
        warnings: one sentence for each class that a side had to do without.
    """

    sides: NDArray[np.str_]
    counts: dict[str, dict[Split, int]]
    lots: dict[Split, int]
    warnings: tuple[str, ...]


def split_by_lot(
    labels: Sequence[str],
    lots: Sequence[str],
    seed: int = 0,
    tune: float = 0.15,
    test: float = 0.15,
    digests: Sequence[str] | None = None,
) -> NDArray[np.str_]:
    """Return only the sides of `split_report`."""
    return split_report(labels, lots, seed=seed, tune=tune, test=test, digests=digests).sides


def rows_that_teach(wafers: WaferSet, source: str) -> list[int]:
    """Return the wafers of one source that lie in training lots, split as `teachwafer train` splits the same file.

    What is pretrained on them alone has seen no wafer that measures.

    Args:
        wafers: a set with labels, lots and sources.
        source: name of the source.
    """
    labels, lots = wafers.labels or [], wafers.groups or []
    rows = [row for row, each in enumerate(wafers.sources or []) if each == source]
    sides = split_by_lot([labels[row] for row in rows], [lots[row] for row in rows], seed=0)
    return [row for row, side in zip(rows, sides, strict=True) if side == Split.TRAIN.value]


def split_report(
    labels: Sequence[str],
    lots: Sequence[str],
    seed: int = 0,
    tune: float = 0.15,
    test: float = 0.15,
    digests: Sequence[str] | None = None,
) -> SplitReport:
    """Put each lot on one side such that each class gets its share on each side where its lots allow.

    The same wafers get the same answer whatever their order. Greedy: first each class, the one with the fewest lots
    first, gets a lot for training, testing and tuning, in this order; then the largest lots first, each lot goes to
    the side where it lowers most the squared distance between the wanted and the reached share, summed over classes
    with equal weight; then single lots move as long as that lowers the distance.

    Args:
        labels: class of each wafer.
        lots: lot of each wafer, "" when unknown. A wafer without lot is a lot of its own.
        seed: another seed, another split.
        tune: share of each class for tuning, 0 to below 1.
        test: share of each class for the locked test; `tune` + `test` < 1.
        digests: content address of each wafer. With it, equal wafers without lot stay on one side; without it, wafers
            without lot are told apart by their label and their order.

    Raises:
        InvalidArgumentError: the lists differ in length or the shares are out of range.
    """
    _check(labels, lots, digests, tune, test)
    names, lot_of_wafer = np.unique(np.array(_lot_keys(labels, lots, digests), dtype=object), return_inverse=True)
    classes, class_of_wafer = np.unique(np.array(labels, dtype=object), return_inverse=True)
    wafers = np.zeros((len(names), len(classes)), np.int64)
    np.add.at(wafers, (lot_of_wafer, class_of_wafer), 1)
    side_of_lot = _assign(wafers, [_rank(str(name), seed) for name in names], (1 - tune - test, tune, test))
    sides = np.array([side.value for side in _SIDES])[side_of_lot[lot_of_wafer]]
    counts = np.stack([wafers[side_of_lot == side].sum(axis=0) for side in range(3)], axis=1)
    return SplitReport(
        sides=sides,
        counts={
            str(name): {side: int(count) for side, count in zip(_SIDES, row, strict=True)}
            for name, row in zip(classes, counts, strict=True)
        },
        lots={side: int((side_of_lot == index).sum()) for index, side in enumerate(_SIDES)},
        warnings=_warnings([str(name) for name in classes], wafers, counts, (1 - tune - test, tune, test)),
    )


def _check(labels: Sequence[str], lots: Sequence[str], digests: Sequence[str] | None, tune: float, test: float) -> None:
    for name, values in (("lots", lots), ("digests", digests)):
        if values is not None and len(values) != len(labels):
            raise InvalidArgumentError(
                f"Expected one of {name} for each of {len(labels)} wafers. Received: {len(values)}.", field=name
            )
    if not (0 <= tune < 1 and 0 <= test < 1 and tune + test < 1):
        raise InvalidArgumentError(
            f"Expected shares >= 0 for tuning and testing that leave some for training. Received: {tune} and {test}.",
            field="tune",
        )


def _lot_keys(labels: Sequence[str], lots: Sequence[str], digests: Sequence[str] | None) -> list[str]:
    """Return one key a lot; a NUL, which no lot name holds, keeps the made-up keys apart from real names."""
    seen: Counter[str] = Counter()
    keys = []
    for index, (label, lot) in enumerate(zip(labels, lots, strict=True)):
        if lot:
            keys.append(lot)
        elif digests is not None:
            keys.append(f"\0{digests[index]}")
        else:
            keys.append(f"\0{label}\0{seen[label]}")
            seen[label] += 1
    return keys


def _rank(name: str, seed: int) -> int:
    """Return the place of a lot among lots that are otherwise equal: the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:8], "big")


def _assign(wafers: NDArray[np.int64], ranks: Sequence[int], shares: tuple[float, float, float]) -> NDArray[np.int64]:
    """Return the side, 0 to 2, of each lot.

    Args:
        wafers: (lots, classes) number of wafers.
        ranks: tie-break of each lot.
        shares: wanted shares of train, tune and test.
    """
    lots, classes = wafers.shape
    totals = np.maximum(wafers.sum(axis=0), 1)
    fractions = wafers / totals
    wanted = np.array(shares)[:, None]
    closed = wanted[:, 0] == 0
    side_of_lot = np.full(lots, -1, np.int64)
    reached = np.zeros((3, classes))

    def place(lot: int, side: int) -> None:
        side_of_lot[lot] = side
        reached[side] += fractions[lot]

    small = (wafers.sum(axis=0) < MIN_CLASS_WAFERS) | ((wafers > 0).sum(axis=0) < 2)
    for lot in np.flatnonzero((wafers[:, small] > 0).any(axis=1)).tolist():
        place(lot, _TRAIN)
    for lot, side in _seats(wafers, ranks, shares, side_of_lot, small):
        place(lot, side)
    free: list[int] = np.flatnonzero(side_of_lot < 0).tolist()
    rest = sorted(free, key=lambda lot: (-float(fractions[lot].max()), ranks[lot]))
    for lot in rest:
        place(lot, int(np.argmin(_costs(reached - wanted, fractions[lot], closed))))
    _improve(side_of_lot, reached, fractions, wanted, closed, rest)
    return side_of_lot


def _seats(
    wafers: NDArray[np.int64],
    ranks: Sequence[int],
    shares: tuple[float, float, float],
    side_of_lot: NDArray[np.int64],
    small: NDArray[np.bool_],
) -> list[tuple[int, int]]:
    """Return lots that give each class a place in training, testing and tuning, in this order, as far as they last."""
    taken = side_of_lot.copy()
    seats = []
    for index in sorted(np.flatnonzero(~small), key=lambda index: (int((wafers[:, index] > 0).sum()), int(index))):
        of_class = np.flatnonzero(wafers[:, index] > 0)
        for side in (_TRAIN, _TEST, _TUNE):
            free = of_class[taken[of_class] < 0]
            if shares[side] == 0 or (taken[of_class] == side).any() or not len(free):
                continue
            # The lot nearest to the wanted number of wafers: a seat must not swallow most of a class.
            target = shares[side] * wafers[:, index].sum()
            if side == _TRAIN:
                lot = min(free, key=lambda lot: (-wafers[lot, index], ranks[lot]))
            else:
                lot = min(free, key=lambda lot: (abs(wafers[lot, index] - target), ranks[lot]))
            taken[lot] = side
            seats.append((int(lot), side))
    return seats


def _costs(distance: NDArray[np.float64], lot: NDArray[np.float64], closed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return by how much the summed squared distance grows when the lot joins each side; infinite if it is closed."""
    return np.where(closed, np.inf, (lot * (2 * distance + lot)).sum(axis=1))


def _improve(
    side_of_lot: NDArray[np.int64],
    reached: NDArray[np.float64],
    fractions: NDArray[np.float64],
    wanted: NDArray[np.float64],
    closed: NDArray[np.bool_],
    movable: Sequence[int],
) -> None:
    for _ in range(_MAX_ROUNDS):
        moved = False
        for lot in movable:
            old = int(side_of_lot[lot])
            reached[old] -= fractions[lot]
            costs = _costs(reached - wanted, fractions[lot], closed)
            best = int(np.argmin(costs))
            # A margin against endless swaps of equally good sides through rounding.
            new = best if costs[best] < costs[old] - 1e-12 else old
            reached[new] += fractions[lot]
            side_of_lot[lot] = new
            moved |= new != old
        if not moved:
            return


def _warnings(
    classes: Sequence[str],
    wafers: NDArray[np.int64],
    counts: NDArray[np.int64],
    shares: tuple[float, float, float],
) -> tuple[str, ...]:
    warnings = []
    for index, name in enumerate(classes):
        lots = int((wafers[:, index] > 0).sum())
        total = int(wafers[:, index].sum())
        missing = [
            side.value
            for side in (Split.TUNE, Split.TEST)
            if shares[_SIDES.index(side)] > 0 and counts[index, _SIDES.index(side)] == 0
        ]
        if counts[index, _TRAIN] == 0:
            missing.insert(0, Split.TRAIN.value)
        if missing:
            warnings.append(
                f"Class {name!r} has {total} wafers in {lots} lots: none of them for {' or '.join(missing)}. "
                f"Add wafers of this class from other lots to measure it."
            )
    return tuple(warnings)
