"""A classifier taught on real wafers that says whether generated ones show their class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.common.dataset import GENERATED, Dataset, Split
from services.common.head import (
    Array,
    Head,
    HeadState,
    class_weights,
    log_softmax,
    prototype_head,
    step_sizes,
    train_epoch,
)
from services.generator.embedding import WaferEmbedding

MOST_TAUGHT = 100
"""Most wafers of each class that the classifier learns from."""
FLOOR_QUANTILE = 0.05
"""Share of the real wafers of a class that a generated wafer must be surer than."""
_EPOCHS, _BATCH, _LEARNING_RATE, _FOLDS = 20, 16, 1e-3, 5
_STREAM = 31

Wafers = tuple[list[NDArray[np.uint8]], list[str], list[str]]
"""Die grids, classes and lots."""


class Recogniser:
    """Says how probably wafers show each class.

    What it says of the real wafers themselves comes from classifiers that were taught without their lots.

    Args:
        embeddings: (n, D) of real training wafers.
        labels: (n,) their classes; every class has a wafer.
        lots: Their lots.
        classes: Number of classes, 2 at least.
        seed: Seed of everything random.
    """

    def __init__(
        self, embeddings: Array, labels: NDArray[np.int64], lots: Sequence[str], classes: int, seed: int
    ) -> None:
        self._head = taught_head(embeddings, labels, classes, (seed, _STREAM))
        apart = _apart(embeddings, labels, lots, classes, seed)
        own = apart[np.arange(len(labels)), labels]
        right = apart.argmax(axis=1) == labels
        self.recognised = [float(right[labels == each].mean()) for each in range(classes)]
        """Share of the real wafers of each class that are recognised."""
        self.floors = [min(0.5, float(np.quantile(own[labels == each], FLOOR_QUANTILE))) for each in range(classes)]
        """Least probability of its class that a wafer must have to count as one of it, at most a half."""

    def probabilities(self, embeddings: Array) -> Array:
        """Returns the probabilities (n, classes) of embeddings (n, D)."""
        return np.exp(log_softmax(self._head.logits(embeddings)))


def taught_head(embeddings: Array, labels: NDArray[np.int64], classes: int, seed: Sequence[int]) -> Head:
    """Returns a classifier taught on embeddings (n, D); see `services.common.head`.

    Args:
        embeddings: (n, D) of length 1.
        labels: (n,) their classes.
        classes: Number of classes.
        seed: Seed of the order of the wafers.
    """
    random = np.random.default_rng(seed)
    state = HeadState.at(prototype_head(embeddings, labels, classes))
    weights = class_weights(labels, classes)
    rates = step_sizes(_LEARNING_RATE, 0, _EPOCHS * math.ceil(len(labels) / _BATCH))
    for _ in range(_EPOCHS):
        order = random.permutation(len(labels))
        train_epoch(state, embeddings[order], labels[order], weights, _BATCH, rates)
    return state.head


def recogniser_of(dataset: Dataset, embedding: WaferEmbedding, seed: int) -> tuple[Recogniser | None, dict[str, int]]:
    """Returns a classifier taught on the real training wafers of a data set version, and the number of each class.

    Wafers that show several patterns teach nothing here. None where fewer than two classes have wafers.

    Args:
        dataset: The data set version.
        embedding: What it sees.
        seed: Seed of everything random.
    """
    grids, names, lots = real_wafers(dataset, (Split.TRAIN,), MOST_TAUGHT)
    numbers = {class_id: number for number, class_id in enumerate(dict.fromkeys(names))}
    if len(numbers) < 2:
        return None, numbers
    labels = np.array([numbers[name] for name in names])
    return Recogniser(embedding.embed(grids), labels, lots, len(numbers), seed), numbers


def real_wafers(dataset: Dataset, sides: Sequence[Split], most: int) -> Wafers:
    """Returns die grids, classes and lots of real wafers that show one pattern, at most so many of a class.

    Args:
        dataset: The data set version.
        sides: Sides that they stand on.
        most: Most wafers of a class; of more, an even sample. Wafers of a class come one after the other.
    """
    by_class: dict[str, list[tuple[NDArray[np.uint8], str]]] = {}
    for side in sides:
        for wafer in dataset.iter_wafers(side):
            if not wafer.also and wafer.origin not in GENERATED:
                by_class.setdefault(wafer.class_id, []).append((wafer.dies, wafer.lot))
    chosen = [
        (wafers[place], name) for name, wafers in by_class.items() for place in even_places(len(wafers), most).tolist()
    ]
    return [dies for (dies, _), _ in chosen], [name for _, name in chosen], [lot for (_, lot), _ in chosen]


def even_places(count: int, most: int) -> NDArray[np.intp]:
    """Returns at most so many positions spread evenly over `count`."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.intp))


def _apart(embeddings: Array, labels: NDArray[np.int64], lots: Sequence[str], classes: int, seed: int) -> Array:
    """Returns probabilities (n, classes) by classifiers that were taught without the wafers' lots."""
    names, groups = np.unique(np.array(lots), return_inverse=True)
    # Wafers without a lot are lots of their own.
    groups = np.where(np.array(lots) == "", len(names) + np.arange(len(groups)), groups)
    _, groups = np.unique(groups, return_inverse=True)
    folds = np.random.default_rng((seed, _STREAM, 1)).permutation(groups.max() + 1)[groups] % _FOLDS
    result = np.zeros((len(labels), classes), np.float32)
    for fold in np.unique(folds):
        judged = folds == fold
        # A single lot can only judge itself.
        taught = ~judged if not judged.all() else judged
        head = taught_head(embeddings[taught], labels[taught], classes, (seed, _STREAM, 2, int(fold)))
        result[judged] = np.exp(log_softmax(head.logits(embeddings[judged])))
    return result
