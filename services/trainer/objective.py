"""What teaching aims at: where the classifier starts, what an epoch does to it, and how the tune wafers judge it.

`SinglePattern` is the softmax over classes of a wafer that shows one; `services.trainer.several` has the one of wafers
that show several patterns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from keras import ops
from numpy.typing import NDArray

from services.common.dataset import DatasetClass
from services.common.evaluation import confusion_matrix, macro_f1
from services.common.head import (
    Array,
    HeadState,
    class_weights,
    mean_loss,
    normal_offset,
    smooth_targets,
    train_epoch_on_copies,
)
from services.trainer.known_patterns import KnownPatterns, first_state
from services.trainer.teaching_set import Side


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the tune wafers say of an epoch.

    Attributes:
        loss: mean loss, without smoothing or weights.
        accuracy: share of wafers right.
        macro_f1: mean of the classes' F1.
        shifted: whether the objective's offset is added to the logits, because that is better or as good.
    """

    loss: float
    accuracy: float
    macro_f1: float
    shifted: bool = False


class Objective(Protocol):
    """What teaching aims at on the training wafers that it was made for.

    Attributes:
        chances: (N,) chance of each training wafer to be drawn in a pass of fine-tuning.
        offset: (outputs,) what may be added to the logits of a taught classifier; see `Judgement.shifted`.
        passes: passes over the training wafers that fine-tuning takes at least, better on the way or not: the small
            steps at its end gain most.
    """

    passes: int
    chances: NDArray[np.float64]
    offset: Array

    def first_state(self, embeddings: Array, pull: float) -> tuple[HeadState, dict[int, str]]:
        """Returns a classifier to start from and what it is drawn back to, and classes that pretraining knows by name.

        Args:
            embeddings: (N, D) of the training wafers.
            pull: how strongly; see `HeadState.at`.
        """

    def train_epoch(
        self,
        state: HeadState,
        copies: Array,
        batch_size: int,
        learning_rates: Iterator[float],
        random: np.random.Generator,
    ) -> tuple[float, float]:
        """Does one pass over the training wafers and returns mean loss and share right.

        Args:
            state: changed in place.
            copies: (N, copies, D) embeddings.
            batch_size: wafers a step.
            learning_rates: step size of each step.
            random: source of order and copies.
        """

    def targets(self, rows: NDArray[np.int64]) -> Array:
        """Returns what the logits of these training wafers are to become: (n, outputs)."""

    def loss(self, targets: Any, logits: Any) -> Any:
        """Returns the mean loss of tensors of targets and logits (n, outputs)."""

    def right(self, logits: Array, rows: NDArray[np.int64]) -> int:
        """Returns how many of these training wafers the logits (n, outputs) tell right."""

    def judge(self, logits: Array, side: Side) -> Judgement:
        """Returns what the wafers of a side say of their logits (N, outputs)."""


def normal_position(classes: Sequence[DatasetClass]) -> int | None:
    """Returns the position of the normal class, None where there is none."""
    return next((position for position, each in enumerate(classes) if each.normal), None)


class SinglePattern:
    """One class a wafer.

    Args:
        train: wafers to learn from.
        classes: classes of the data set.
        known: patterns that the network knows, or None.
    """

    passes = 1

    def __init__(self, train: Side, classes: Sequence[DatasetClass], known: KnownPatterns | None = None) -> None:
        self._labels, self._classes, self._known = train.labels, len(classes), known
        self.offset = normal_offset(train.labels, self._classes, normal_position(classes))
        self._weights = class_weights(train.labels, self._classes)
        chances = self._weights[train.labels].astype(np.float64)
        self.chances = chances / chances.sum()

    def first_state(self, embeddings: Array, pull: float) -> tuple[HeadState, dict[int, str]]:
        """Returns known weights where a class is a known pattern, else the class mean."""
        return first_state(embeddings, self._labels, self._classes, self._known, pull)

    def train_epoch(
        self,
        state: HeadState,
        copies: Array,
        batch_size: int,
        learning_rates: Iterator[float],
        random: np.random.Generator,
    ) -> tuple[float, float]:
        """Does one pass of softmax regression."""
        return train_epoch_on_copies(state, copies, self._labels, self._weights, batch_size, learning_rates, random)

    def targets(self, rows: NDArray[np.int64]) -> Array:
        """Returns smoothed one-hot targets."""
        return smooth_targets(self._labels[rows], self._classes)

    def loss(self, targets: Any, logits: Any) -> Any:
        """Returns the mean cross entropy."""
        return ops.mean(ops.categorical_crossentropy(targets, logits, from_logits=True))

    def right(self, logits: Array, rows: NDArray[np.int64]) -> int:
        """Returns how many have the highest logit at their class."""
        return int((logits.argmax(axis=1) == self._labels[rows]).sum())

    def judge(self, logits: Array, side: Side) -> Judgement:
        """Returns cross entropy, accuracy and macro-F1."""
        # The odds of normal wafers are a good guess, unless the tune wafers say otherwise.
        shifted = self._score(logits + self.offset, side) >= self._score(logits, side)
        told = logits + self.offset if shifted else logits
        return Judgement(
            loss=mean_loss(told, side.labels),
            accuracy=float((told.argmax(axis=1) == side.labels).mean()),
            macro_f1=self._score(told, side),
            shifted=shifted,
        )

    def _score(self, logits: Array, side: Side) -> float:
        return macro_f1(confusion_matrix(side.labels, logits.argmax(axis=1), self._classes))
