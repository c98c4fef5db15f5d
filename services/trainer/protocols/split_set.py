"""Labelled wafers of one source, split by lot as `teachwafer train` splits the same file: nobody judges its sisters."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidArgumentError
from services.common.splitting import Split, split_by_lot
from services.common.task import NORMAL_PATTERN
from services.common.wafer_map import dies_sha256
from services.common.wafer_set import WaferSet

NORMAL = NORMAL_PATTERN
"""Label of wafers without a pattern."""
SPLIT_SEED = 0
"""Seed of the split; the shipped networks were pretrained on the training lots of this one."""

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SplitSet:
    """Labelled wafers and the side on which each stands; every list has one entry a wafer.

    Attributes:
        grids: uint8 (rows, columns) each.
        names: labels as they were given; `+` joins several patterns.
        labels: int64 (N,) index into `classes`.
        lots: lots, "" when unknown.
        digests: content address of each wafer's dies.
        sides: (N,) values of `Split`.
        classes: different labels, sorted.
    """

    grids: Sequence[NDArray[np.uint8]]
    names: list[str]
    labels: Rows
    lots: list[str]
    digests: list[str]
    sides: NDArray[np.str_]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, *sides: Split) -> Rows:
        """Returns the positions of the wafers on these sides."""
        return np.flatnonzero(np.isin(self.sides, [each.value for each in sides]))

    def grids_of(self, rows: Rows) -> list[NDArray[np.uint8]]:
        """Returns the dies of some wafers."""
        return [self.grids[row] for row in rows]

    def lots_of(self, rows: Rows) -> list[str]:
        """Returns the lots of some wafers."""
        return [self.lots[row] for row in rows]

    def index(self, name: str) -> int:
        """Returns the index of a class.

        Raises:
            InvalidArgumentError: no wafer is of this class.
        """
        if name not in self.classes:
            raise InvalidArgumentError(
                f"Expected one of the classes {', '.join(self.classes)}. Received: {name[:100]!r}.", field="classes"
            )
        return self.classes.index(name)

    def chosen(self, rows: Rows) -> SplitSet:
        """Returns only these wafers, on the sides where they stand; classes without a wafer are gone."""
        names = [self.names[row] for row in rows]
        classes = tuple(sorted(set(names)))
        return replace(
            self,
            grids=self.grids_of(rows),
            names=names,
            labels=np.array([classes.index(name) for name in names], np.int64),
            lots=self.lots_of(rows),
            digests=[self.digests[row] for row in rows],
            sides=self.sides[rows],
            classes=classes,
        )

    def without(self, names: Collection[str]) -> SplitSet:
        """Returns the wafers that are of none of these classes."""
        for name in names:
            self.index(name)
        return self.chosen(np.array([row for row, name in enumerate(self.names) if name not in names], np.int64))


def split_set(wafers: WaferSet, source: str = "") -> SplitSet:
    """Splits a wafer set by lot.

    Args:
        wafers: wafers with labels; lots where they are known.
        source: only wafers of this source; "" takes all.

    Raises:
        InvalidArgumentError: there are no labels, or fewer than two classes.
    """
    sources = wafers.sources or [""] * len(wafers.grids)
    rows = [row for row, each in enumerate(sources) if source in ("", each)]
    if wafers.labels is None or len({wafers.labels[row] for row in rows}) < 2:
        raise InvalidArgumentError(
            f"Expected wafers of at least two classes. Received: {len(rows)} wafers"
            f"{f' of source {source!r}' if source else ''}, {'with one class or none' if rows else 'none to read'}."
        )
    names = [wafers.labels[row] for row in rows]
    lots = [(wafers.groups or [""] * len(wafers.grids))[row] for row in rows]
    grids = [wafers.grids[row] for row in rows]
    digests = [dies_sha256(grid) for grid in grids]
    sides = split_by_lot(names, lots, seed=SPLIT_SEED, digests=digests)
    classes = tuple(sorted(set(names)))
    labels = np.array([classes.index(name) for name in names], np.int64)
    return SplitSet(grids, names, labels, lots, digests, sides, classes)


def check_judges(wafers: SplitSet) -> None:
    """Checks that there are locked test wafers of each class.

    Raises:
        InvalidArgumentError: a class has none.
    """
    there = set(wafers.labels[wafers.rows(Split.TEST)].tolist())
    missing = [name for index, name in enumerate(wafers.classes) if index not in there]
    if missing:
        raise InvalidArgumentError(
            f"Expected wafers of each class in lots that can be held back. Received: none of {', '.join(missing)}. "
            "Add wafers of these classes from other lots, or leave the classes out."
        )


def first_of_each(rows: Rows, labels: Rows, classes: int, most: int | Sequence[int]) -> Rows:
    """Returns the first rows of each class, class after class.

    Args:
        rows: positions of wafers, in the order in which they are taken.
        labels: class of every wafer, by position.
        classes: number of classes.
        most: most wafers of a class; one number for all, or one a class.
    """
    limits = [most] * classes if isinstance(most, int) else most
    return np.concatenate([rows[labels[rows] == index][: limits[index]] for index in range(classes)])
