"""Scores of a classifier on labelled wafers, in plain NumPy; no other module computes them.

What they count depends on what the model tells (`services.common.task`): one function for each.

Sources: Wilson, JASA 22 (1927) for the interval of a share; Efron, Annals of Statistics 7 (1979) for the bootstrap,
here over whole lots because the wafers of a lot are no independent observations; Guo et al., ICML 2017 for the
expected calibration error; Hanley and McNeil, Radiology 143 (1982) for the area under the ROC curve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidArgumentError
from services.common.pattern_sets import set_confidence, shown_classes
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
        wafers: wafers of the class; of several patterns: that show it.
        lots: lots of those wafers.
        found: wafers of the class that were called so; of only normal: of another class than the normal one, those
            that were noticed.
        false_alarms: wafers of other classes that were called so; of only normal: 0 for another class.
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
        accuracy: share of wafers whose answer is right: the class, or the whole set of several patterns.
        classes: one score a class, in the order of the model's classes; of only normal: of the data set's.
        confusion: confusion[true][predicted], counts; empty unless a wafer has a single pattern.
        accepted_share: share of wafers that are accepted.
        accepted_error: share of accepted wafers whose answer is wrong; 0 when none is accepted.
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
    """Returns all scores of a model of a single pattern on a set of wafers.

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
    _check_lengths(count, labels, lots, accepted)
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
        expected_calibration_error=expected_calibration_error(probabilities.max(axis=1), right),
    )


def evaluate_several(
    probabilities: Probabilities,
    shown: NDArray[np.bool_],
    normal: Sequence[bool],
    lots: Sequence[str],
    accepted: NDArray[np.bool_],
    draws: int = BOOTSTRAP_DRAWS,
    seed: int = 0,
) -> Evaluation:
    """Returns all scores of a model of several patterns on a set of wafers.

    Each class is a yes-or-no question of its own; the normal class is told where no pattern is. macro_f1 is the mean of
    the patterns, without the normal class. A wafer is right when its whole set is; the calibration error compares how
    often that is so with the probability of the whole set.

    Args:
        probabilities: (N, classes), N >= 1.
        shown: (N, classes) what each wafer shows.
        normal: whether each class is the normal one.
        lots: lot of each wafer, "" when unknown.
        accepted: (N,) whether the model's answer is accepted.
        draws: draws of the bootstrap; 0 leaves macro_f1_interval at (macro_f1, macro_f1).
        seed: seed of the bootstrap.

    Raises:
        InvalidArgumentError: there is no wafer, or the arrays differ in length.
    """
    _check_lengths(len(probabilities), shown, lots, accepted)
    patterns = ~np.asarray(normal, np.bool_)
    called = shown_classes(probabilities, normal)
    counts = pattern_counts(shown, called)
    lot_numbers = number_lots(lots)
    right = (called == shown)[:, patterns].all(axis=1)
    return Evaluation(
        wafers=len(shown),
        lots=int(lot_numbers.max()) + 1,
        macro_f1=pattern_f1(counts[patterns]),
        macro_f1_interval=_bootstrap_pattern_f1(shown[:, patterns], called[:, patterns], lot_numbers, draws, seed),
        accuracy=float(right.mean()),
        classes=tuple(
            _score(int(found), int(alarms), int(found + missed), len(set(lot_numbers[shown[:, index]])))
            for index, (found, alarms, missed) in enumerate(counts)
        ),
        confusion=(),
        accepted_share=float(accepted.mean()),
        accepted_error=accepted_error(right, accepted),
        expected_calibration_error=expected_calibration_error(set_confidence(probabilities, normal), right),
        task=Task.SEVERAL,
    )


def evaluate_normal(
    novelty: NDArray[np.float32],
    labels: Labels,
    normal: Sequence[bool],
    lots: Sequence[str],
    draws: int = BOOTSTRAP_DRAWS,
    seed: int = 0,
) -> Evaluation:
    """Returns all scores of a model that was taught on normal wafers alone.

    A wafer is called normal, and accepted, where its novelty is at most 1. macro_f1 is the mean of the two answers
    "normal" and "not normal", the second only with wafers of other classes. The calibration error is 0: the probability
    of such a model is the share of normal wafers that are as far out, and not a chance of being right.

    Args:
        novelty: (N,), N >= 1.
        labels: (N,) index of the class.
        normal: whether each class is the normal one.
        lots: lot of each wafer, "" when unknown.
        draws: draws of the bootstrap; 0 leaves macro_f1_interval at (macro_f1, macro_f1).
        seed: seed of the bootstrap.

    Raises:
        InvalidArgumentError: there is no wafer, or the arrays differ in length.
    """
    called_normal = novelty <= 1.0
    _check_lengths(len(novelty), labels, lots, called_normal)
    is_normal = np.asarray(normal, np.bool_)[labels]
    lot_numbers = number_lots(lots)
    # Two classes: normal 0, anything else 1.
    truth, called = (~is_normal).astype(np.int64), (~called_normal).astype(np.int64)
    right = truth == called
    scores = []
    for index, each in enumerate(normal):
        own = labels == index
        alarms = int((called_normal & ~is_normal).sum()) if each else 0
        scores.append(_score(int((own & right).sum()), alarms, int(own.sum()), len(set(lot_numbers[own]))))
    return Evaluation(
        wafers=len(labels),
        lots=int(lot_numbers.max()) + 1,
        macro_f1=macro_f1(confusion_matrix(truth, called, 2)),
        macro_f1_interval=bootstrap_macro_f1(truth, called, lot_numbers, 2, draws, seed),
        accuracy=float(right.mean()),
        classes=tuple(scores),
        confusion=(),
        accepted_share=float(called_normal.mean()),
        accepted_error=accepted_error(right, called_normal),
        expected_calibration_error=0.0,
        auroc=auroc(novelty[is_normal], novelty[~is_normal]) if 0 < is_normal.sum() < len(is_normal) else 0.0,
        task=Task.NORMAL,
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


def pattern_counts(shown: NDArray[np.bool_], called: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns counts (patterns, 3): found, false alarms, missed.

    Args:
        shown: (N, patterns) what each wafer shows.
        called: (N, patterns) what it is said to show.
    """
    return np.stack([(shown & called).sum(axis=0), (~shown & called).sum(axis=0), (shown & ~called).sum(axis=0)], 1)


def pattern_f1(counts: NDArray[np.floating[Any]] | NDArray[np.int64]) -> float:
    """Returns the mean F1 of the patterns that a wafer shows; 0 without any.

    Args:
        counts: (patterns, 3), see `pattern_counts`.
    """
    found, alarms, missed = counts.T
    there = found + missed > 0
    return float((2 * found[there] / (2 * found + alarms + missed)[there]).mean()) if there.any() else 0.0


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

    def score(times: NDArray[np.int64]) -> float:
        flat = np.bincount(cell_of_pair, weights=wafers * times[lot_of_pair], minlength=classes**2)
        return macro_f1(flat.reshape(classes, classes))

    return _bootstrap(score, count, draws, seed)


def _bootstrap(score: Callable[[NDArray[np.int64]], float], lots: int, draws: int, seed: int) -> Interval:
    """Returns the 95 % percentile interval of a score when lots are drawn with replacement.

    Args:
        score: score when each lot (lots,) counts so many times.
        lots: number of lots.
        draws: number of draws; 0: the score of the lots as they are, twice.
        seed: seed of the draws.
    """
    if not draws:
        whole = score(np.ones(lots, np.int64))
        return Interval(whole, whole)
    random = np.random.default_rng(seed)
    scores = [score(np.bincount(random.integers(0, lots, lots), minlength=lots)) for _ in range(draws)]
    low, high = np.percentile(scores, (2.5, 97.5))
    return Interval(float(low), float(high))


def number_lots(lots: Sequence[str]) -> NDArray[np.int64]:
    """Returns a number for each wafer's lot, from 0 without gaps; a wafer without lot is a lot of its own."""
    keys = [lot or f"\0{index}" for index, lot in enumerate(lots)]
    return np.unique(np.array(keys, dtype=object), return_inverse=True)[1].astype(np.int64)


def expected_calibration_error(
    confidence: NDArray[np.floating[Any]], right: NDArray[np.bool_], bins: int = CALIBRATION_BINS
) -> float:
    """Returns the sum over equal-width bins of confidence of (wafers in bin / N) |share right - mean confidence|.

    Args:
        confidence: (N,) probability that each answer is right, N >= 1.
        right: (N,) whether it is.
        bins: number of bins.
    """
    confidence = confidence.astype(np.float64)
    # Bins are (low, high]; a confidence of exactly 0 belongs to the first.
    bin_of = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(bin_of, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(right))


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
    return _score(found, int(confusion[:, index].sum()) - found, int(confusion[index].sum()), lots)


def _score(found: int, false_alarms: int, wafers: int, lots: int) -> ClassScore:
    called = found + false_alarms
    return ClassScore(
        wafers=wafers,
        lots=lots,
        found=found,
        false_alarms=false_alarms,
        recall=found / wafers if wafers else 0.0,
        recall_interval=wilson_interval(found, wafers),
        precision=found / called if called else 0.0,
        f1=2 * found / (wafers + called) if found else 0.0,
    )


def _bootstrap_pattern_f1(
    shown: NDArray[np.bool_], called: NDArray[np.bool_], lots: NDArray[np.int64], draws: int, seed: int
) -> Interval:
    """Returns the 95 % percentile interval of the patterns' mean F1 when lots are drawn with replacement."""
    count = int(lots.max()) + 1
    kinds = np.stack([shown & called, ~shown & called, shown & ~called], axis=2).reshape(len(shown), -1)
    by_lot = np.zeros((count, kinds.shape[1]))
    np.add.at(by_lot, lots, kinds)
    return _bootstrap(lambda times: pattern_f1((times @ by_lot).reshape(-1, 3)), count, draws, seed)


def _check_lengths(
    count: int, labels: Sequence[Any] | NDArray[Any], lots: Sequence[str], accepted: NDArray[np.bool_]
) -> None:
    if not count or not count == len(labels) == len(lots) == len(accepted):
        raise InvalidArgumentError(
            "Expected at least one wafer, and one label, lot and decision for each. "
            f"Received: {count} wafers, {len(labels)} labels, {len(lots)} lots, {len(accepted)} decisions."
        )
