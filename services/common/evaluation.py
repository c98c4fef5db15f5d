"""Scores of a classifier on labelled wafers, in plain NumPy; no other module computes them.

Sources: Wilson, JASA 22 (1927) for the interval of a share; Efron, Annals of Statistics 7 (1979) for the bootstrap,
here over whole lots because the wafers of a lot are no independent observations; Guo et al., ICML 2017 for the
expected calibration error; Hanley and McNeil, Radiology 143 (1982) for the area under the ROC curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidArgumentError
from services.common.task import Task

CALIBRATION_BINS = 15
"""Equal-width bins of confidence of the expected calibration error."""
BOOTSTRAP_DRAWS = 1000
"""Draws of lots of the bootstrap interval."""
_Z95 = 1.959963984540054

Labels = NDArray[np.int64]
Probabilities = NDArray[np.float32]


class Interval(NamedTuple):
    """A closed interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ClassScore:
    """Score of one class.

    Attributes:
        wafers: wafers of the class.
        lots: lots of those wafers.
        found: wafers of the class that were called so.
        false_alarms: wafers of other classes that were called so.
        recall: found / wafers, 0 without a wafer.
        recall_interval: 95 % Wilson interval of recall, (0, 1) without a wafer.
        precision: found / (found + false_alarms), 0 when nothing was called so.
        f1: harmonic mean of precision and recall.
    """

    wafers: int
    lots: int
    found: int
    false_alarms: int
    recall: float
    recall_interval: Interval
    precision: float
    f1: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of a model on a set of labelled wafers.

    Attributes:
        wafers: wafers scored.
        lots: lots they come from; a wafer without lot counts as one of its own.
        macro_f1: mean of the classes' F1; classes without a wafer are left out.
        macro_f1_interval: 95 % interval of macro_f1 by bootstrap over lots.
        accuracy: share of wafers whose class is right.
        classes: one score a class, in the order of the model's classes.
        confusion: confusion[true][predicted], counts.
        accepted_share: share of wafers that are accepted.
        accepted_error: share of accepted wafers whose class is wrong; 0 when none is accepted.
        expected_calibration_error: see `expected_calibration_error`.
        auroc: only normal: see `auroc`; 0 without wafers of both kinds, and for other tasks.
        task: what the model tells.
    """

    wafers: int
    lots: int
    macro_f1: float
    macro_f1_interval: Interval
    accuracy: float
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    accepted_share: float
    accepted_error: float
    expected_calibration_error: float
    auroc: float = 0.0
    task: Task = Task.SINGLE

    def to_json(self) -> dict[str, Any]:
        """Returns the scores as JSON values."""
        return asdict(self)


def evaluate(
    probabilities: Probabilities,
    labels: Labels,
    lots: Sequence[str],
    accepted: NDArray[np.bool_],
    draws: int = BOOTSTRAP_DRAWS,
    seed: int = 0,
) -> Evaluation:
    """Returns all scores of a set of wafers.

    Args:
        probabilities: (N, classes), N >= 1.
        labels: (N,) index of the true class.
        lots: lot of each wafer, "" when unknown.
        accepted: (N,) whether the model's answer is accepted (neither unknown nor not sure).
        draws: draws of the bootstrap; 0 leaves macro_f1_interval at (macro_f1, macro_f1).
        seed: seed of the bootstrap.

    Raises:
        InvalidArgumentError: there is no wafer, or the arrays differ in length.
    """
    count, classes = probabilities.shape
    if not count or not count == len(labels) == len(lots) == len(accepted):
        raise InvalidArgumentError(
            "Expected at least one wafer, and one label, lot and decision for each. "
            f"Received: {count} wafers, {len(labels)} labels, {len(lots)} lots, {len(accepted)} decisions."
        )
    predicted = probabilities.argmax(axis=1)
    matrix = confusion_matrix(labels, predicted, classes)
    lot_numbers = number_lots(lots)
    right = predicted == labels
    return Evaluation(
        wafers=count,
        lots=int(lot_numbers.max()) + 1,
        macro_f1=macro_f1(matrix),
        macro_f1_interval=bootstrap_macro_f1(labels, predicted, lot_numbers, classes, draws, seed),
        accuracy=float(right.mean()),
        classes=tuple(_class_score(matrix, each, len(set(lot_numbers[labels == each]))) for each in range(classes)),
        confusion=tuple(tuple(int(value) for value in row) for row in matrix),
        accepted_share=float(accepted.mean()),
        accepted_error=accepted_error(right, accepted),
        expected_calibration_error=expected_calibration_error(probabilities, labels),
    )


def confusion_matrix(labels: Labels, predicted: Labels, classes: int) -> NDArray[np.int64]:
    """Returns counts (classes, classes): row the true class, column the predicted one."""
    flat = np.bincount(np.asarray(labels) * classes + np.asarray(predicted), minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def class_f1(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns F1 = 2 TP / (2 TP + FP + FN) of each class, (..., classes); 0 where nothing is right.

    Args:
        confusion: counts (..., classes, classes), row the true class.
    """
    found = np.diagonal(confusion, axis1=-2, axis2=-1)
    both = confusion.sum(axis=-1) + confusion.sum(axis=-2)
    return np.asarray(np.divide(2.0 * found, both, out=np.zeros(found.shape), where=both > 0))


def macro_f1(confusion: NDArray[np.int64]) -> float:
    """Returns the mean F1 of the classes that have a wafer; 0 without any."""
    there = confusion.sum(axis=1) > 0
    return float(class_f1(confusion)[there].mean()) if there.any() else 0.0


def wilson_interval(found: int, wafers: int) -> Interval:
    """Returns the 95 % Wilson score interval of a share.

    With p = found / n and z = 1.96: (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).
    """
    if not wafers:
        return Interval(0.0, 1.0)
    share, z2 = found / wafers, _Z95**2
    centre = share + z2 / (2 * wafers)
    half = _Z95 * np.sqrt(share * (1 - share) / wafers + z2 / (4 * wafers**2))
    scale = 1 + z2 / wafers
    return Interval(float(max(0.0, (centre - half) / scale)), float(min(1.0, (centre + half) / scale)))


def bootstrap_macro_f1(
    labels: Labels,
    predicted: Labels,
    lots: NDArray[np.int64],
    classes: int,
    draws: int = BOOTSTRAP_DRAWS,
    seed: int = 0,
) -> Interval:
    """Returns the 95 % percentile interval of macro-F1 when lots are drawn with replacement.

    Args:
        labels: (N,) true classes.
        predicted: (N,) predicted classes.
        lots: (N,) number of each wafer's lot, 0 to lots - 1; see `number_lots`.
        classes: number of classes.
        draws: number of draws.
        seed: seed of the draws.
    """
    count = int(lots.max()) + 1
    # A confusion matrix a lot, kept as a list of (lot, cell) pairs: most lots touch few cells.
    pairs, wafers = np.unique(lots * classes**2 + labels * classes + predicted, return_counts=True)
    lot_of_pair, cell_of_pair = pairs // classes**2, pairs % classes**2
    random = np.random.default_rng(seed)
    scores = np.empty(max(draws, 1))
    if not draws:
        score = macro_f1(confusion_matrix(labels, predicted, classes))
        return Interval(score, score)
    for draw in range(draws):
        times = np.bincount(random.integers(0, count, count), minlength=count)
        flat = np.bincount(cell_of_pair, weights=wafers * times[lot_of_pair], minlength=classes**2)
        scores[draw] = macro_f1(flat.reshape(classes, classes))
    low, high = np.percentile(scores, (2.5, 97.5))
    return Interval(float(low), float(high))


def number_lots(lots: Sequence[str]) -> NDArray[np.int64]:
    """Returns a number for each wafer's lot, from 0 without gaps; a wafer without lot is a lot of its own."""
    keys = [lot or f"\0{index}" for index, lot in enumerate(lots)]
    return np.unique(np.array(keys, dtype=object), return_inverse=True)[1].astype(np.int64)


def expected_calibration_error(probabilities: Probabilities, labels: Labels, bins: int = CALIBRATION_BINS) -> float:
    """Returns the sum over equal-width bins of confidence of (wafers in bin / N) |accuracy - mean confidence|."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    # Bins are (low, high]; a confidence of exactly 0 belongs to the first.
    bin_of = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(bin_of, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def accepted_error(right: NDArray[np.bool_], accepted: NDArray[np.bool_]) -> float:
    """Returns the share of accepted wafers whose class is wrong; 0 when none is accepted."""
    return float((~right[accepted]).mean()) if accepted.any() else 0.0


def auroc(known: NDArray[np.floating[Any]], unknown: NDArray[np.floating[Any]]) -> float:
    """Returns the chance that an unknown wafer has a higher novelty than a known one; ties count half.

    Equals the area under the ROC curve (the Mann-Whitney statistic).

    Args:
        known: novelty of wafers of known classes, at least one.
        unknown: novelty of wafers of other classes, at least one.
    """
    if not len(known) or not len(unknown):
        raise InvalidArgumentError("Expected known and unknown wafers. Received: none of one kind.")
    order = np.sort(known)
    below = np.searchsorted(order, unknown, side="left")
    not_above = np.searchsorted(order, unknown, side="right")
    return float((below + not_above).sum() / (2.0 * len(known) * len(unknown)))


def _class_score(confusion: NDArray[np.int64], index: int, lots: int) -> ClassScore:
    found = int(confusion[index, index])
    wafers = int(confusion[index].sum())
    called = int(confusion[:, index].sum())
    return ClassScore(
        wafers=wafers,
        lots=lots,
        found=found,
        false_alarms=called - found,
        recall=found / wafers if wafers else 0.0,
        recall_interval=wilson_interval(found, wafers),
        precision=found / called if called else 0.0,
        f1=float(class_f1(confusion)[index]),
    )
