"""Several patterns a wafer: one yes-or-no question for each pattern, all answered from the same embedding.

The classifier has an output for each pattern and none for the normal class: that a wafer is normal is the answer that
it shows no pattern. With independent questions the chance of it is the product of 1 - p over the patterns, so that the
normal class and the patterns never contradict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from services.common.dataset import DatasetClass
from services.common.evaluation import pattern_counts, pattern_f1
from services.common.head import LOGIT_SCALE, SMOOTHING, Array, Head, HeadState, adam_step
from services.common.pattern_sets import set_confidence
from services.trainer.calibration import calibration_of, neighbour_distance, temperature_of_least
from services.trainer.embedding import PACKAGE
from services.trainer.network import NEIGHBOURS, Answers, Calibration, answering_model
from services.trainer.objective import Judgement
from services.trainer.teaching_set import Side

# Logits at which a pattern's wafers and the others lie, on average, before the first step: 95 % sure.
_START_LOGIT = 3.0
_LEAST_SPREAD = 0.02


def pattern_columns(classes: Sequence[DatasetClass]) -> list[int]:
    """Returns the positions of the classes that are patterns: all but the normal one."""
    return [position for position, each in enumerate(classes) if not each.normal]


class SeveralPatterns:
    """One logistic regression a pattern.

    Rare patterns: the wafers with and without a pattern weigh 1 / sqrt(their number) each, half-way between counting
    wafers and counting answers. Weights alone would make rare patterns seem likelier than they are; the loss therefore
    sees the logit plus the logarithm of the ratio of the two weights, which cancels that (logit adjustment; Menon et
    al., ICLR 2021): the logit itself stays an estimate of the log-odds.

    Args:
        train: wafers to learn from.
        classes: classes of the data set.
    """

    # A set is right when all its patterns are: it still gains where a single class has long settled.
    passes = 6

    def __init__(self, train: Side, classes: Sequence[DatasetClass]) -> None:
        self._columns = pattern_columns(classes)
        self._shown = train.shown[:, self._columns]
        with_it = np.maximum(self._shown.sum(axis=0), 1).astype(np.float64)
        without = np.maximum((~self._shown).sum(axis=0), 1).astype(np.float64)
        # Mean 1 over the wafers of each question.
        scale = len(train) / (np.sqrt(with_it) + np.sqrt(without))
        self._with, self._without = (np.asarray(scale / np.sqrt(each), np.float32) for each in (with_it, without))
        self._shift = np.asarray(np.log(self._with / self._without), np.float32)
        self.chances = np.full(len(train), 1 / len(train))
        self.offset = np.zeros(len(self._columns), np.float32)

    def first_state(self, embeddings: Array, pull: float) -> tuple[HeadState, dict[int, str]]:
        """Returns the classifier that asks which of two means is nearer: that of wafers with or without a pattern."""
        kernel = np.zeros((embeddings.shape[1], len(self._columns)), np.float32)
        bias = np.zeros(len(self._columns), np.float32)
        for each, shown in enumerate(self._shown.T):
            if not shown.any() or shown.all():
                # Nothing to compare with: a constant answer.
                bias[each] = _START_LOGIT / LOGIT_SCALE * (1.0 if shown.any() else -1.0)
                continue
            there, absent = embeddings[shown].mean(axis=0), embeddings[~shown].mean(axis=0)
            direction = there - absent
            spread = max(float(direction @ direction), _LEAST_SPREAD)
            kernel[:, each] = direction * (2 * _START_LOGIT / LOGIT_SCALE / spread)
            bias[each] = -float((there + absent) @ kernel[:, each]) / 2
        return HeadState.at(Head(kernel, bias), pull), {}

    def train_epoch(
        self,
        state: HeadState,
        copies: Array,
        batch_size: int,
        learning_rates: Iterator[float],
        random: np.random.Generator,
    ) -> tuple[float, float]:
        """Does one pass of logistic regression, each wafer in one of its copies."""
        order = random.permutation(len(copies))
        chosen = copies[order, random.integers(0, copies.shape[1], len(copies))]
        loss, right, pull = 0.0, 0, np.float32(state.pull / len(copies))
        for start in range(0, len(order), batch_size):
            part, rows = chosen[start : start + batch_size], order[start : start + batch_size]
            logits = np.float32(LOGIT_SCALE) * (part @ state.weights[:-1] + state.weights[-1])
            targets, weights = self.targets(rows), np.where(self._shown[rows], self._with, self._without)
            shifted = logits + self._shift
            loss += float((weights * cross_entropy(shifted, targets)).sum())
            right += self.right(logits, rows)
            error = np.float32(LOGIT_SCALE / len(part)) * weights * (sigmoid(shifted) - targets)
            towards = part.T @ error + pull * (state.weights[:-1] - state.anchor)
            gradient = np.concatenate([towards, error.sum(axis=0, keepdims=True)])
            adam_step(state, gradient, next(learning_rates))
        return loss / len(order), right / len(order)

    def targets(self, rows: NDArray[np.int64]) -> Array:
        """Returns smoothed answers: 1 for a pattern that is shown, 0 for one that is not, up to SMOOTHING / 2."""
        return self._shown[rows].astype(np.float32) * np.float32(1 - SMOOTHING) + np.float32(SMOOTHING / 2)

    def loss(self, targets: Any, logits: Any) -> Any:
        """Returns the mean over the wafers of the weighted cross entropies, summed over the patterns."""
        weights = ops.where(targets > 0.5, self._with, self._without)
        shifted = logits + self._shift
        entropy = ops.softplus(shifted) - targets * shifted
        return ops.mean(ops.sum(weights * entropy, axis=-1))

    def right(self, logits: Array, rows: NDArray[np.int64]) -> int:
        """Returns how many wafers have every pattern right."""
        return int(((logits >= 0) == self._shown[rows]).all(axis=1).sum())

    def judge(self, logits: Array, side: Side) -> Judgement:
        """Returns cross entropy, share of whole sets right, and mean F1 of the patterns."""
        shown = side.shown[:, self._columns]
        called = logits >= 0
        return Judgement(
            loss=float(cross_entropy(logits, shown.astype(np.float32)).sum(axis=1).mean()),
            accuracy=float((called == shown).all(axis=1).mean()),
            macro_f1=pattern_f1(pattern_counts(shown, called)),
        )


def sigmoid(logits: Array) -> Array:
    """Returns 1 / (1 + exp(-logits)) without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)), np.float32)


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Returns -t log p - (1 - t) log(1 - p) of each question, p the sigmoid of its logit."""
    return np.asarray(np.maximum(logits, 0) - targets * logits + np.log1p(np.exp(-np.abs(logits))), np.float32)


def calibrate(head: Head, bank: Array, tune: Array, shown: NDArray[np.bool_], lots: Sequence[str]) -> Calibration:
    """Returns temperature, scales and thresholds; as `services.trainer.calibration.calibrate`, of whole sets.

    Args:
        head: taught classifier.
        bank: (K, D) embeddings of taught wafers.
        tune: (N, D) embeddings of the tune wafers, N >= 1.
        shown: (N, patterns) which patterns they show.
        lots: lot of each of them, "" when unknown.
    """
    logits = head.logits(tune)
    temperature = best_temperature(logits, shown)
    probabilities = sigmoid(logits / np.float32(temperature))
    confidence = set_confidence(probabilities, [False] * probabilities.shape[1])
    right = ((logits >= 0) == shown).all(axis=1)
    return calibration_of(temperature, neighbour_distance(tune, bank), 1.0 - confidence, confidence, right, lots, bank)


def best_temperature(logits: Array, shown: NDArray[np.bool_]) -> float:
    """Returns the divisor of the logits with the least cross entropy, all patterns together.

    As `services.trainer.calibration.best_temperature`, with the same two wafers that know nothing.
    """

    def cost(scaled: Array) -> float:
        ignorance = cross_entropy(scaled, np.full_like(scaled, 0.5)).sum(axis=1).mean() - scaled.shape[1] * math.log(2)
        return float(cross_entropy(scaled, shown.astype(np.float32)).sum()) + 0.5 * float(ignorance)

    return temperature_of_least(cost, logits)


def several_model(
    trunk: keras.Model, orientations: int, size: int, head: Head, calibration: Calibration, normal: int | None
) -> keras.Model:
    """Returns the model of several patterns; see `services.trainer.network.taught_model`.

    Args:
        trunk: planes to feature maps and embedding.
        orientations: 8 to average over all orientations of the wafer, else 1.
        size: cells along each side of the planes.
        head: classifier with an output for each pattern.
        calibration: temperature, thresholds and taught wafers.
        normal: position of the normal class among the classes, None where there is none.
    """
    answers = SeveralAnswers(
        classes=len(head.bias),
        neighbours=min(NEIGHBOURS, len(calibration.bank)),
        bank=len(calibration.bank),
        orientations=orientations,
        normal=normal,
        name="answers",
    )
    model = answering_model(trunk, orientations, size, answers)
    answers.teach(head, calibration, trunk.get_layer("embedding"))
    return model


@keras.saving.register_keras_serializable(package=PACKAGE)
class SeveralAnswers(Answers):
    """Feature maps to the answers of several patterns; what differs from `Answers` is named here.

    * probabilities (N, classes): a sigmoid for each pattern; for the normal class the product of 1 - p over them.
    * novelty (N,): its doubt is 1 - the probability of the whole set, the product of max(p, 1 - p).
    * heat (N, classes, h, w): of a pattern as ever; the normal class has none, because no place speaks for nothing.

    Args:
        classes: number of patterns.
        neighbours: nearest taught wafers that count, 1 to `bank`.
        bank: number of taught wafers to compare with.
        normal: position of the normal class among all classes, None where there is none.
        orientations: see `Answers`.
    """

    def __init__(
        self, classes: int, neighbours: int, bank: int, normal: int | None, orientations: int = 1, **options: Any
    ) -> None:
        super().__init__(classes, neighbours, bank, None, orientations, **options)
        self.normal = normal

    def probabilities_of(self, logits: Any) -> Any:
        """Returns the probabilities of all classes from the logits of the patterns."""
        none = ops.exp(-ops.sum(ops.softplus(logits), axis=-1, keepdims=True))
        return self._with_normal(ops.sigmoid(logits), none)

    def doubt_of(self, embedding: Any, logits: Any) -> Any:
        """Returns 1 - the probability of the whole set."""
        return 1.0 - ops.exp(-ops.sum(ops.softplus(-ops.abs(logits)), axis=-1))

    def heat_of(self, heat: Any) -> Any:
        """Returns the heat of all classes from that of the patterns."""
        return self._with_normal(heat, ops.zeros_like(heat[:, :1]))

    def _with_normal(self, patterns: Any, none: Any) -> Any:
        """Puts the normal class into its place among the patterns (N, patterns, ...)."""
        if self.normal is None:
            return patterns
        return ops.concatenate([patterns[:, : self.normal], none, patterns[:, self.normal :]], axis=1)

    def get_config(self) -> dict[str, Any]:
        """Returns what makes an equal layer."""
        config = {**super().get_config(), "normal": self.normal}
        del config["rivals"]
        return config
