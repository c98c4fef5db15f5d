"""What the tune wafers decide after teaching: temperature, when an answer is accepted, when a wafer is unknown.

All of it is chosen on the tune wafers alone and fixed before a test wafer is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from services.common.head import Array, Head, log_softmax, mean_loss
from services.trainer.network import NEIGHBOURS, Calibration

ACCEPTED_ERROR = 0.01
"""Largest share of accepted answers that may be wrong."""
KNOWN_SHARE = 0.99
"""Share of wafers of known classes that must not be called unknown."""
BANK_WAFERS = 1000
"""Most taught wafers that a new one is compared with."""

# A threshold that meets 1 % on some lots gives more on others. WM-811K, half of the tune lots deciding, the other half
# judging, mean of 300 draws: margin 0.6 gives 1.05 % real error, 0.8 gives 1.2 %, 1.0 gives 1.4 %.
_LOT_MARGIN = 0.6
# Lots whose labels are doubted are left out of that rule (see `doubtful_lots`). In one of the 33 tune lots of WM-811K,
# 26 wafers called Random carry the label none: 27 of the 41 sure answers that were wrong. With it the rule accepts 70 %
# of the wafers of other lots, 0.4 % of them wrong (mean of the 300 draws); without it 88 %, 0.85 % of them wrong.
_SURE = 0.9
_DOUBTED = 1e-3
_ENOUGH_LOTS, _MOST_DOUBTED = 10, 0.1
# With fewer tune wafers the rule above says nothing; then an answer must at least be this sure.
_LEAST_SURE = 0.9
TEMPERATURES = np.geomspace(0.25, 8.0, 101)
"""Divisors of the logits to choose from."""


def calibrate(
    head: Head, sentry: Head, bank: Array, tune: Array, labels: NDArray[np.int64], lots: Sequence[str]
) -> Calibration:
    """Returns temperature, scales and thresholds.

    Args:
        head: taught classifier.
        sentry: classifier that also knows patterns which nobody taught; see `services.trainer.outliers`.
        bank: (K, D) embeddings of taught wafers; see `bank_rows`.
        tune: (N, D) embeddings of the tune wafers, N >= 1.
        labels: (N,) their classes.
        lots: lot of each of them, "" when unknown.
    """
    logits = head.logits(tune)
    temperature = best_temperature(logits, labels)
    confidence = np.exp(log_softmax(logits / np.float32(temperature))).max(axis=1)
    doubt = 1.0 - np.exp(log_softmax(sentry.logits(tune)))[:, : logits.shape[1]].max(axis=1)
    right = logits.argmax(axis=1) == labels
    return calibration_of(temperature, neighbour_distance(tune, bank), doubt, confidence, right, lots, bank, sentry)


def calibration_of(
    temperature: float,
    distance: Array,
    doubt: Array,
    confidence: Array,
    right: NDArray[np.bool_],
    lots: Sequence[str],
    bank: Array,
    sentry: Head | None = None,
) -> Calibration:
    """Returns scales and thresholds from what the tune wafers got.

    Args:
        temperature: divisor of the logits.
        distance: (N,) distance of each tune wafer to the nearest taught wafers.
        doubt: (N,) its doubt.
        confidence: (N,) probability of its answer.
        right: (N,) whether its answer is right.
        lots: lot of each tune wafer, "" when unknown.
        bank: (K, D) embeddings of taught wafers.
        sentry: see `Calibration`.
    """
    distance_scale, doubt_scale = max(float(distance.mean()), 1e-3), max(float(doubt.mean()), 1e-2)
    raw = distance / distance_scale + doubt / doubt_scale
    threshold = upper_quantile(raw, KNOWN_SHARE)
    doubted = doubtful_lots(confidence, right, lots)
    accept = accept_threshold_of(confidence, right, raw <= threshold, lots, doubted)
    return Calibration(temperature, accept, distance_scale, doubt_scale, threshold, bank, sentry, tuple(doubted))


def doubtful_lots(confidence: Array, right: NDArray[np.bool_], lots: Sequence[str]) -> list[str]:
    """Returns lots that contradict sure answers so often that their labels are in doubt.

    With the rate of such contradictions in the other lots, as many or more are expected by chance in fewer than one of
    a thousand data sets (Poisson). Needs ten lots, and doubts none where more than one in ten differ so: then it is the
    model that is wrong.

    Args:
        confidence: (N,) probability of each wafer's answer.
        right: (N,) whether its label says the same.
        lots: lot of each wafer, "" when unknown.
    """
    names, lot = np.unique(np.array(lots, dtype=str), return_inverse=True)
    if len(names) < _ENOUGH_LOTS:
        return []
    sure = confidence >= _SURE
    answers = np.bincount(lot, sure, len(names))
    wrong = np.bincount(lot, sure & ~right, len(names))
    rates = (wrong.sum() - wrong + 1) / (answers.sum() - answers + 1)
    chances = [_poisson_tail(int(count), float(mean)) for count, mean in zip(wrong, rates * answers, strict=True)]
    doubted = [
        str(name) for name, chance in zip(names, chances, strict=True) if name and chance < _DOUBTED / len(names)
    ]
    return doubted if len(doubted) <= len(names) * _MOST_DOUBTED else []


def _poisson_tail(count: int, mean: float) -> float:
    """Returns the chance of `count` or more events where `mean` are expected."""
    if not count:
        return 1.0
    terms = [math.exp(each * math.log(mean) - mean - math.lgamma(each + 1)) for each in range(count)]
    return max(0.0, 1.0 - math.fsum(terms))


def best_temperature(logits: Array, labels: NDArray[np.int64]) -> float:
    """Returns the divisor of the logits with the least cross entropy (Guo et al., ICML 2017).

    With few wafers, all of them right, the best would be 0: two wafers are added that know nothing (the logarithm of
    a certain answer is worth as much as it costs there), which vanishes among many.
    """

    def cost(scaled: Array) -> float:
        ignorance = -float(log_softmax(scaled).mean(axis=1).mean()) - math.log(logits.shape[1])
        return mean_loss(scaled, labels) * len(labels) + 0.5 * ignorance

    return temperature_of_least(cost, logits)


def temperature_of_least(cost: Callable[[Array], float], logits: Array) -> float:
    """Returns the divisor of the logits (N, outputs) at which the cost of the scaled ones is least."""
    costs = [cost(np.asarray(logits / np.float32(temperature), np.float32)) for temperature in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmin(costs))])


def accept_threshold_of(
    confidence: Array, right: NDArray[np.bool_], known: NDArray[np.bool_], lots: Sequence[str], doubted: Sequence[str]
) -> float:
    """Returns the `accept_threshold` of the tune wafers that decide it: those called known, of lots not in doubt.

    Args:
        confidence: (N,) highest probability of each tune wafer.
        right: (N,) whether the class is right.
        known: (N,) whether it is not called unknown.
        lots: lot of each of them, "" when unknown.
        doubted: see `doubtful_lots`.
    """
    judges = known & ~np.isin(np.array(lots, dtype=object), doubted)
    return accept_threshold(confidence[judges], right[judges])


def accept_threshold(confidence: Array, right: NDArray[np.bool_]) -> float:
    """Returns the least highest probability from which on answers are accepted.

    The lowest one at which (wrong + 1) / (accepted + 1), a share that counts one error more than was seen, stays below
    ACCEPTED_ERROR with a margin for new lots. Fewer tune wafers than that can show: surer than every wrong answer, and
    at least 0.9.

    Args:
        confidence: (N,) highest probability of each tune wafer.
        right: (N,) whether the class is right.
    """
    order = np.argsort(-confidence, kind="stable")
    wrong = np.cumsum(~right[order])
    accepted = np.arange(1, len(order) + 1)
    good = np.flatnonzero((wrong + 1) / (accepted + 1) <= ACCEPTED_ERROR * _LOT_MARGIN)
    if len(good):
        return float(np.clip(confidence[order[good[-1]]], 0.0, 1.0))
    worst = float(confidence[~right].max()) if (~right).any() else 0.0
    return float(min(max(_LEAST_SURE, np.nextafter(np.float32(worst), np.float32(2.0))), 1.0))


def upper_quantile(values: Array, share: float) -> float:
    """Returns a threshold that a further value exceeds with a chance of at most 1 - share.

    The ceil((N + 1) share)-th smallest value (Vovk et al., split conformal prediction); with fewer values than that
    needs, the largest and a fifth of the spread to the median more.
    """
    ordered = np.sort(values)
    rank = math.ceil((len(ordered) + 1) * share)
    if rank <= len(ordered):
        return float(ordered[rank - 1])
    return float(ordered[-1] + 0.2 * (ordered[-1] - np.median(ordered)) + 1e-3)


def neighbour_distance(embeddings: Array, bank: Array) -> Array:
    """Returns the mean cosine distance (N,) of embeddings to their nearest taught wafers; as in the graph."""
    count = min(NEIGHBOURS, len(bank))
    parts = []
    for start in range(0, len(embeddings), 2048):
        similarities = embeddings[start : start + 2048] @ bank.T
        nearest = np.partition(similarities, len(bank) - count, axis=1)[:, len(bank) - count :]
        parts.append(np.maximum(1.0 - nearest.mean(axis=1), 0.0))
    return np.concatenate(parts)


def bank_rows(labels: NDArray[np.int64], generated: NDArray[np.bool_], classes: int, seed: int) -> NDArray[np.int64]:
    """Returns training wafers to compare new ones with: real ones first, as many of each class as there are places.

    Args:
        labels: (N,) classes of the training wafers.
        generated: (N,) whether each was generated.
        classes: number of classes.
        seed: seed of the choice.
    """
    shuffled = np.random.default_rng([seed, 5]).permutation(len(labels))
    shuffled = shuffled[np.argsort(generated[shuffled], kind="stable")]
    queues = [shuffled[labels[shuffled] == each] for each in range(classes)]
    counts = np.zeros(classes, np.int64)
    # Small classes are taken whole; the others share what they leave.
    places = min(BANK_WAFERS, len(labels))
    for each in sorted(range(classes), key=lambda each: len(queues[each])):
        left = int((counts == 0).sum())
        counts[each] = min(len(queues[each]), (places - int(counts.sum())) // max(left, 1))
    return np.sort(np.concatenate([queue[:count] for queue, count in zip(queues, counts, strict=True)]))
