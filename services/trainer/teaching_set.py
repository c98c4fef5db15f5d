"""The wafers of a data set version as teaching needs them: planes to learn from, grids to be judged on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from services.common.dataset import GENERATED, Dataset, DatasetClass, Split
from services.common.errors import DataLossError
from services.common.preprocessing import planes_of
from services.common.splitting import split_by_lot
from services.common.task import Task
from services.trainer.domain import SplitCaution, SplitCautionKind

_CHUNK = 1024
_HELD_OUT = 0.2


@dataclass(slots=True)
class Side:
    """The wafers of one side of the split, in the order of the data set.

    Attributes:
        planes: float16 (N, size, size, 2).
        labels: int64 (N,) index of the class; of the first one where a wafer shows several.
        shown: bool (N, classes) whether the wafer shows each class.
        lots: lot of each wafer.
        generated: bool (N,) whether the wafer was generated.
        ids: identifier of each wafer.
        parents: identifier of the wafer it was made from, "" for real ones.
        grids: uint8 (rows, columns) each.
    """

    planes: NDArray[np.float16]
    labels: NDArray[np.int64]
    shown: NDArray[np.bool_]
    lots: list[str] = field(default_factory=list)
    generated: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    ids: list[str] = field(default_factory=list)
    parents: list[str] = field(default_factory=list)
    grids: list[NDArray[np.uint8]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def chosen(self, rows: NDArray[np.int64]) -> Side:
        """Returns only these wafers."""
        return Side(
            planes=self.planes[rows],
            labels=self.labels[rows],
            shown=self.shown[rows],
            lots=[self.lots[row] for row in rows],
            generated=self.generated[rows],
            ids=[self.ids[row] for row in rows],
            parents=[self.parents[row] for row in rows],
            grids=[self.grids[row] for row in rows],
        )


@dataclass(frozen=True, slots=True)
class TeachingSet:
    """All wafers of a teaching.

    Attributes:
        classes: classes in the order of their indices.
        train: wafers to learn from.
        tune: wafers by which epoch, temperature and thresholds are chosen; at least one.
        test: locked test wafers; may be none.
        cautions: what a person should know about how the wafers are divided.
    """

    classes: tuple[DatasetClass, ...]
    train: Side
    tune: Side
    test: Side
    cautions: tuple[SplitCaution, ...]


def read_teaching_set(
    dataset: Dataset, generated: Sequence[Dataset], size: int, seed: int, task: Task = Task.SINGLE
) -> TeachingSet:
    """Reads a data set version and the wafers generated from it.

    Args:
        dataset: where classes and split come from.
        generated: data set versions that only add to training.
        size: cells along each side of the planes.
        seed: seed of the choice of tune wafers where the data set has none.
        task: what is to be taught; only normal needs no wafers of other classes on any side.

    Raises:
        DataLossError: a lot stands on two sides, or generated wafers stand outside of training.
    """
    classes = dataset.classes
    index = {each.class_id: position for position, each in enumerate(classes)}
    train, tune, test = (_read([dataset], side, index, size) for side in (Split.TRAIN, Split.TUNE, Split.TEST))
    cautions: list[SplitCaution] = []
    if not len(tune):
        train, tune, cautions = _hold_out(train, classes, seed)
    train = _joined(train, _read(generated, None, index, size), tune, test)
    check_sides(train, tune, test)
    cautions += _missing([each for each in classes if each.normal or task is not Task.NORMAL], classes, tune, test)
    return TeachingSet(classes, train, tune, test, tuple(cautions))


def check_sides(train: Side, tune: Side, test: Side) -> None:
    """Checks that nobody is judged by sisters of the wafers that were taught.

    Raises:
        DataLossError: a lot stands on two sides, or a generated wafer stands outside of training.
    """
    real = [lot for lot, generated in zip(train.lots, train.generated, strict=True) if not generated]
    sides = [set(real) - {""}, set(tune.lots) - {""}, set(test.lots) - {""}]
    shared = (sides[0] & sides[1]) | (sides[0] & sides[2]) | (sides[1] & sides[2])
    if shared:
        raise DataLossError(
            f"Expected each lot on one side of the split. Received: {len(shared)} lots on two, {min(shared)!r} for "
            "instance. Freeze the data set again."
        )
    if tune.generated.any() or test.generated.any():
        raise DataLossError("Expected generated wafers in training only. Freeze the data set again.")


def _read(datasets: Sequence[Dataset], split: Split | None, index: dict[str, int], size: int) -> Side:
    wafers = itertools.chain.from_iterable(dataset.iter_wafers(split) for dataset in datasets)
    side = Side(np.zeros((0, size, size, 2), np.float16), np.zeros(0, np.int64), np.zeros((0, len(index)), np.bool_))
    planes, shown, labels, generated = [side.planes], [side.shown], [], []
    while chunk := list(itertools.islice(wafers, _CHUNK)):
        planes.append(planes_of([wafer.dies for wafer in chunk], size).astype(np.float16))
        labels += [index[wafer.class_id] for wafer in chunk]
        shown.append(np.array([[each in wafer.class_ids for each in index] for wafer in chunk], np.bool_))
        generated += [wafer.origin in GENERATED for wafer in chunk]
        side.lots += [wafer.lot for wafer in chunk]
        side.ids += [wafer.wafer_id for wafer in chunk]
        side.parents += [wafer.parent_id for wafer in chunk]
        side.grids += [wafer.dies for wafer in chunk]
    side.planes, side.shown = np.concatenate(planes), np.concatenate(shown)
    side.labels = np.array(labels, np.int64)
    side.generated = np.array(generated, np.bool_)
    return side


def _hold_out(train: Side, classes: Sequence[DatasetClass], seed: int) -> tuple[Side, Side, list[SplitCaution]]:
    """Takes tune wafers out of training: by lot where lots allow it, else wafer by wafer."""
    real = np.flatnonzero(~train.generated)
    labels = [classes[train.labels[row]].class_id for row in real]
    sides = split_by_lot(labels, [train.lots[row] for row in real], seed=seed, tune=_HELD_OUT, test=0.0)
    held = set(real[sides == Split.TUNE.value].tolist())
    sentence = f"The data set has no tune wafers: {_HELD_OUT:.0%} of the training lots were kept aside instead."
    cautions = [SplitCaution(SplitCautionKind.TUNE_FROM_TRAINING, (), sentence)]
    random = np.random.default_rng(seed)
    alone = []
    for position, each in enumerate(classes):
        rows = real[train.shown[real, position]]
        if len(rows) >= 2 and not held & set(rows.tolist()):
            held |= set(random.permutation(rows)[: max(1, round(len(rows) * _HELD_OUT))].tolist())
            alone.append(each)
    if alone:
        sentence = (
            f"The wafers of {_names(alone)} come from too few lots: wafers of one lot stand on both sides, and the "
            "tune scores promise too much. Add wafers from other lots."
        )
        cautions.append(SplitCaution(SplitCautionKind.LOT_ON_BOTH_SIDES, _ids(alone), sentence))
    tune = train.chosen(np.array(sorted(held), np.int64))
    rest = train.chosen(np.array([row for row in range(len(train)) if row not in held], np.int64))
    # A lot that was cut through would be refused; its tune wafers stand for themselves.
    cut = set(tune.lots) & set(rest.lots)
    tune.lots = ["" if lot in cut else lot for lot in tune.lots]
    return rest, tune, cautions


def _joined(train: Side, generated: Side, tune: Side, test: Side) -> Side:
    """Adds generated wafers, without children of wafers that judge."""
    judges = {*tune.ids, *test.ids}
    if judges.intersection(train.parents):
        train = train.chosen(np.array([row for row, each in enumerate(train.parents) if each not in judges], np.int64))
    if not len(generated):
        return train
    kept = generated.chosen(
        np.array([row for row, each in enumerate(generated.parents) if each not in judges], np.int64)
    )
    return Side(
        planes=np.concatenate([train.planes, kept.planes]),
        labels=np.concatenate([train.labels, kept.labels]),
        shown=np.concatenate([train.shown, kept.shown]),
        lots=train.lots + kept.lots,
        generated=np.concatenate([train.generated, np.ones(len(kept), np.bool_)]),
        ids=train.ids + kept.ids,
        parents=train.parents + kept.parents,
        grids=train.grids + kept.grids,
    )


def _missing(
    needed: Sequence[DatasetClass], classes: Sequence[DatasetClass], tune: Side, test: Side
) -> list[SplitCaution]:
    """Returns a caution for each side that judges without wafers of a class that is needed."""
    cautions = []
    for kind, name, side in (
        (SplitCautionKind.NO_TUNE_WAFERS, "tune", tune),
        (SplitCautionKind.NO_TEST_WAFERS, "locked test", test),
    ):
        there = {each.class_id for position, each in enumerate(classes) if side.shown[:, position].any()}
        missing = [each for each in needed if each.class_id not in there]
        if missing and len(side):
            sentence = (
                f"There are no {name} wafers of {_names(missing)}: what is said of these classes is a guess. "
                "Add wafers from more lots."
            )
            cautions.append(SplitCaution(kind, _ids(missing), sentence))
    return cautions


def _names(classes: Sequence[DatasetClass]) -> str:
    return ", ".join(each.display_name for each in classes)


def _ids(classes: Sequence[DatasetClass]) -> tuple[str, ...]:
    return tuple(each.class_id for each in classes)
