"""The classifier on embeddings: softmax regression by Adam (Kingma and Ba, ICLR 2015), in plain NumPy.

It starts at the class means and is drawn back to them, strongly by few wafers and hardly by many: five wafers a class
say where a class lies, but not which of hundreds of directions matter. Small enough that an epoch over hundreds of
wafers takes milliseconds; a step through a graph runtime costs more than the arithmetic.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LOGIT_SCALE = 12.0
"""Factor between the product with the unit embedding and the logit, so that weights of about 1 can be sure."""
SMOOTHING = 0.02
"""Share of the target that is spread over all classes: one label in fifty of a fab is wrong."""
RATE, RATE_STEPS = 20.0, 300
"""The first step is so many times the learning rate, which suits a deep network, when there are at most RATE_STEPS
steps: this problem is convex, and a classifier short of its minimum is half taught. With more steps it is shorter in
proportion, down to the learning rate, so that however long, about the same way is gone: farther out the classifier
grows sure of labels that are wrong."""
ANCHOR_WAFERS = 30.0
"""The classifier is drawn to the class means as if so many wafers had asked for it."""
NORMAL_ODDS = 5.0
"""A wafer without a pattern is at least so many times as frequent as one of a pattern, whatever was uploaded: who
teaches with as many of each means to show the patterns, not how often they occur."""
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Head:
    """A linear classifier on the embedding; logits are LOGIT_SCALE (e W + b).

    Attributes:
        kernel: float32 (D, classes).
        bias: float32 (classes,).
    """

    kernel: NDArray[np.float32]
    bias: NDArray[np.float32]

    def logits(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the logits (N, classes) of embeddings (N, D)."""
        return np.float32(LOGIT_SCALE) * (embeddings @ self.kernel + self.bias)

    def shifted(self, offset: NDArray[np.float32]) -> Head:
        """Returns the classifier whose logits are higher by an offset (classes,)."""
        return Head(self.kernel, (self.bias + offset / np.float32(LOGIT_SCALE)).astype(np.float32))


@dataclass(slots=True)
class HeadState:
    """A classifier in the middle of its training.

    Attributes:
        weights: float32 (D + 1, classes), the last row the bias.
        mean: running mean of the gradient.
        square: running mean of its square.
        anchor: float32 (D, classes), the kernel that it is drawn back to.
        pull: how strongly, in wafers; see ANCHOR_WAFERS.
        steps: steps done.
    """

    weights: Array
    mean: Array
    square: Array
    anchor: Array
    pull: float
    steps: int = 0

    @classmethod
    def at(cls, head: Head, pull: float = ANCHOR_WAFERS) -> HeadState:
        """Returns the state of a classifier before its first step, drawn back to where it is now.

        Args:
            head: the classifier.
            pull: how strongly; 0 for embeddings that are not whitened, in which nearness says little.
        """
        weights = np.concatenate([head.kernel, head.bias[None]]).astype(np.float32)
        return cls(weights, np.zeros_like(weights), np.zeros_like(weights), weights[:-1].copy(), pull)

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


def normal_offset(labels: NDArray[np.int64], classes: int, normal: int | None) -> Array:
    """Returns what is added to the logits (classes,) so that normal wafers are expected at NORMAL_ODDS at least.

    The logarithm of what the weighted wafers lack of these odds (logit adjustment; Menon et al., ICLR 2021); 0 where
    they show normal wafers as often or more, and without a normal class.

    Args:
        labels: (N,) classes of the training wafers.
        classes: number of classes.
        normal: index of the class without a pattern, or None.
    """
    offset = np.zeros(classes, np.float32)
    if normal is None or classes < 2:
        return offset
    mass = class_weights(labels, classes) * np.bincount(labels, minlength=classes)
    others = np.delete(mass, normal)
    if mass[normal] > 0 and others.any():
        offset[normal] = max(0.0, float(np.log(NORMAL_ODDS * others[others > 0].mean() / mass[normal])))
    return offset


def cosine(highest: float, begin: int, steps: int) -> Iterator[float]:
    """Yields step sizes from step `begin` on, falling to a hundredth along a half cosine of `steps` steps."""
    for step in itertools.count(begin):
        share = min(step / max(steps, 1), 1.0)
        yield highest * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


def step_sizes(learning_rate: float, begin: int, steps: int) -> Iterator[float]:
    """Yields the step sizes of the classifier from step `begin` on, `steps` in all; see RATE."""
    return cosine(learning_rate * max(1.0, RATE * RATE_STEPS / max(steps, RATE_STEPS)), begin, steps)


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
    pull = np.float32(state.pull / len(labels))
    for start in range(0, len(labels), batch_size):
        part, label = embeddings[start : start + batch_size], labels[start : start + batch_size]
        logits = np.float32(LOGIT_SCALE) * (part @ state.weights[:-1] + state.weights[-1])
        logs = log_softmax(logits)
        target = smooth_targets(label, logits.shape[1])
        weight = weights[label][:, None]
        loss += float(-(weight * target * logs).sum())
        right += int((logits.argmax(axis=1) == label).sum())
        error = np.float32(LOGIT_SCALE / len(part)) * weight * (np.exp(logs) - target)
        towards = part.T @ error + pull * (state.weights[:-1] - state.anchor)
        gradient = np.concatenate([towards, error.sum(axis=0, keepdims=True)])
        adam_step(state, gradient, next(learning_rates))
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


def teach_head(
    state: HeadState,
    copies: Array,
    labels: NDArray[np.int64],
    epochs: int,
    batch_size: int,
    learning_rate: float,
    random: np.random.Generator,
) -> Head:
    """Does all passes over wafers and returns the classifier of the last.

    Args:
        state: where it starts; changed in place.
        copies: (N, copies, D) embeddings.
        labels: (N,).
        epochs: passes.
        batch_size: wafers a step.
        learning_rate: see `step_sizes`.
        random: source of order and copies.
    """
    weights = class_weights(labels, state.weights.shape[1])
    rates = step_sizes(learning_rate, 0, epochs * math.ceil(len(labels) / batch_size))
    for _ in range(epochs):
        train_epoch_on_copies(state, copies, labels, weights, batch_size, rates, random)
    return state.head


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


def adam_step(state: HeadState, gradient: Array, learning_rate: float) -> None:
    """Moves a classifier by the gradient (D + 1, classes) of its weights, about a learning rate far."""
    state.steps += 1
    state.mean += (1 - _BETA1) * (gradient - state.mean)
    state.square += (1 - _BETA2) * (gradient**2 - state.square)
    mean = state.mean / (1 - _BETA1**state.steps)
    square = state.square / (1 - _BETA2**state.steps)
    state.weights -= np.float32(learning_rate) * mean / (np.sqrt(square) + _EPSILON)
