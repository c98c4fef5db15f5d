"""The classifier on embeddings: softmax regression by AdamW (Loshchilov and Hutter, ICLR 2019), in plain NumPy.

Small enough that an epoch over hundreds of wafers takes milliseconds; a step through a graph runtime costs more than
the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.trainer.network import LOGIT_SCALE, Head

SMOOTHING = 0.02
"""Share of the target that is spread over all classes: one label in fifty of a fab is wrong."""
_DECAY = 1e-3
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8

Array = NDArray[np.float32]


@dataclass(slots=True)
class HeadState:
    """A classifier in the middle of its training.

    Attributes:
        weights: float32 (D + 1, classes), the last row the bias.
        mean: running mean of the gradient.
        square: running mean of its square.
        steps: steps done.
    """

    weights: Array
    mean: Array
    square: Array
    steps: int = 0

    @classmethod
    def at(cls, head: Head) -> HeadState:
        """Returns the state of a classifier before its first step."""
        weights = np.concatenate([head.kernel, head.bias[None]]).astype(np.float32)
        return cls(weights, np.zeros_like(weights), np.zeros_like(weights))

    @property
    def head(self) -> Head:
        """The classifier."""
        return Head(self.weights[:-1].copy(), self.weights[-1].copy())


def prototype_head(embeddings: Array, labels: NDArray[np.int64], classes: int) -> Head:
    """Returns the classifier that calls a wafer by the nearest class mean (Snell et al., NeurIPS 2017).

    With unit vectors m_c, |e - m_c|^2 = 2 - 2 e m_c: nearest is largest product. A start from which one epoch is
    enough for few wafers.

    Args:
        embeddings: (N, D) of length 1.
        labels: (N,) class of each.
        classes: number of classes; one without a wafer gets a zero column.
    """
    kernel = np.zeros((embeddings.shape[1], classes), np.float32)
    for each in range(classes):
        mean = embeddings[labels == each].mean(axis=0) if (labels == each).any() else np.zeros(len(kernel))
        kernel[:, each] = mean / max(float(np.linalg.norm(mean)), 1e-6)
    return Head(kernel, np.zeros(classes, np.float32))


def class_weights(labels: NDArray[np.int64], classes: int) -> Array:
    """Returns the weight of each class in the loss, proportional to 1 / sqrt(wafers), with mean 1 over the wafers.

    Half-way between counting wafers (rare classes are lost) and counting classes (few wafers of a rare class, some
    with wrong labels, rule).
    """
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    weights = np.where(counts > 0, 1.0 / np.sqrt(np.maximum(counts, 1.0)), 0.0)
    return np.asarray(weights * len(labels) / max(float((weights * counts).sum()), 1e-12), np.float32)


def train_epoch(
    state: HeadState,
    embeddings: Array,
    labels: NDArray[np.int64],
    weights: Array,
    batch_size: int,
    learning_rates: Iterator[float],
) -> tuple[float, float]:
    """Does one pass over wafers, in their order, and returns mean loss and share right.

    Args:
        state: changed in place.
        embeddings: (N, D).
        labels: (N,).
        weights: (classes,) weight of each class in the loss.
        batch_size: wafers a step.
        learning_rates: step size of each step.
    """
    loss, right = 0.0, 0
    for start in range(0, len(labels), batch_size):
        part, label = embeddings[start : start + batch_size], labels[start : start + batch_size]
        logits = np.float32(LOGIT_SCALE) * (part @ state.weights[:-1] + state.weights[-1])
        logs = log_softmax(logits)
        target = smooth_targets(label, logits.shape[1])
        weight = weights[label][:, None]
        loss += float(-(weight * target * logs).sum())
        right += int((logits.argmax(axis=1) == label).sum())
        error = np.float32(LOGIT_SCALE / len(part)) * weight * (np.exp(logs) - target)
        gradient = np.concatenate([part.T @ error, error.sum(axis=0, keepdims=True)])
        _step(state, gradient, next(learning_rates))
    return loss / len(labels), right / len(labels)


def train_epoch_on_copies(
    state: HeadState,
    copies: Array,
    labels: NDArray[np.int64],
    weights: Array,
    batch_size: int,
    learning_rates: Iterator[float],
    random: np.random.Generator,
) -> tuple[float, float]:
    """Does one pass over wafers in random order, each in one of its copies, and returns mean loss and share right.

    Args:
        state: changed in place.
        copies: (N, copies, D) embeddings.
        labels: (N,).
        weights: (classes,) weight of each class in the loss.
        batch_size: wafers a step.
        learning_rates: step size of each step.
        random: source of order and copies.
    """
    order = random.permutation(len(labels))
    chosen = copies[order, random.integers(0, copies.shape[1], len(labels))]
    return train_epoch(state, chosen, labels[order], weights, batch_size, learning_rates)


def mean_loss(logits: Array, labels: NDArray[np.int64]) -> float:
    """Returns the mean cross entropy, without smoothing or weights."""
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def log_softmax(logits: Array) -> Array:
    """Returns the logarithms of the probabilities of logits (N, classes)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), np.float32)


def smooth_targets(labels: NDArray[np.int64], classes: int) -> Array:
    """Returns one-hot targets (N, classes) with SMOOTHING spread over all classes."""
    return np.eye(classes, dtype=np.float32)[labels] * np.float32(1 - SMOOTHING) + np.float32(SMOOTHING / classes)


def _step(state: HeadState, gradient: Array, learning_rate: float) -> None:
    state.steps += 1
    state.mean += (1 - _BETA1) * (gradient - state.mean)
    state.square += (1 - _BETA2) * (gradient**2 - state.square)
    mean = state.mean / (1 - _BETA1**state.steps)
    square = state.square / (1 - _BETA2**state.steps)
    state.weights[:-1] *= np.float32(1 - learning_rate * _DECAY)
    state.weights -= np.float32(learning_rate) * mean / (np.sqrt(square) + _EPSILON)
