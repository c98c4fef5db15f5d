"""A classifier taught on real wafers that says whether generated ones show their class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from services.common.dataset import DatasetWafer
from services.common.head import Array, Head, HeadState, log_softmax, prototype_head, teach_head
from services.generator.embedding import WaferEmbedding
from services.generator.real_wafers import even_sample

MOST_TAUGHT = 100
"""Most wafers of each class that the classifier learns from."""
FLOOR_QUANTILE = 0.05
"""Share of the real wafers of a class that a generated wafer must be surer than."""
_EPOCHS, _BATCH, _LEARNING_RATE, _FOLDS = 20, 16, 1e-3, 5
_STREAM = 31


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
    return teach_head(state, embeddings[:, None], labels, _EPOCHS, _BATCH, _LEARNING_RATE, random)


def recogniser_of(
    real: Mapping[str, Sequence[DatasetWafer]], embedding: WaferEmbedding, seed: int
) -> tuple[Recogniser | None, dict[str, int]]:
    """Returns a classifier taught on real training wafers, and the number of each class.

    None where fewer than two classes have wafers.

    Args:
        real: Real training wafers of each class.
        embedding: What it sees.
        seed: Seed of everything random.
    """
    grids, names, lots = even_sample(real, MOST_TAUGHT)
    numbers = {class_id: number for number, class_id in enumerate(real)}
    if len(numbers) < 2:
        return None, numbers
    labels = np.array([numbers[name] for name in names])
    return Recogniser(embedding.embed(grids), labels, lots, len(numbers), seed), numbers


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
