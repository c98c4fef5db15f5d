"""Wafers of patterns that nobody taught, to learn what is unknown from: outlier exposure with simulated patterns.

Hendrycks, Mazeika and Dietterich, ICLR 2019, with the simulator as the source of outliers. A second classifier, the
sentry, learns the taught classes and beside them each simulated pattern that none of the classes claims. A wafer is as
new as the sentry's highest probability of a taught class is low.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.common.dataset import DatasetClass
from services.common.head import Array, Head, HeadState, prototype_head, teach_head
from services.common.preprocessing import planes_of
from services.common.wafer_set import read_wafer_set
from services.trainer.backbones import BackboneLibrary

MOST_WAFERS, LEAST_WAFERS = 100, 30
"""Simulated wafers of a pattern: twice as many as a class has training wafers, within these limits."""
_CLAIMING_SHARE = 1 / 3
_EPOCHS = 30
_BATCH = 64
_LEARNING_RATE = 1e-3


@dataclass(frozen=True, slots=True)
class Outliers:
    """Simulated wafers.

    Attributes:
        patterns: names of the patterns.
        planes: float16 (N, size, size, 2).
        labels: int64 (N,) index of the pattern.
    """

    patterns: tuple[str, ...]
    planes: NDArray[np.float16]
    labels: NDArray[np.int64]


def read_outliers(library: BackboneLibrary, size: int, wafers_per_class: float) -> Outliers:
    """Returns the simulated wafers that lie beside the weights.

    Args:
        library: where they lie.
        size: cells along each side of the planes.
        wafers_per_class: mean number of training wafers of a class.

    Raises:
        FailedPreconditionError: the file is missing or damaged.
    """
    wafers = read_wafer_set(library.check_outliers())
    patterns, labels = np.unique(np.array(wafers.labels or []), return_inverse=True)
    most = int(np.clip(2 * wafers_per_class, LEAST_WAFERS, MOST_WAFERS))
    rows = np.concatenate([np.flatnonzero(labels == each)[:most] for each in range(len(patterns))])
    planes = planes_of([wafers.grids[row] for row in rows], size).astype(np.float16)
    return Outliers(tuple(patterns.tolist()), planes, labels[rows].astype(np.int64))


def unclaimed(
    outliers: Outliers,
    embeddings: Array,
    classes: Sequence[DatasetClass],
    taught: Array,
    labels: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Returns which outliers (N,) show a pattern that none of the classes may be.

    A class with a canonical pattern claims that one. A class of the fab's own claims each pattern whose mean embedding
    is the nearest for a third of its wafers.

    Args:
        outliers: simulated wafers.
        embeddings: (N, D) their embeddings.
        classes: the classes.
        taught: (M, D) embeddings of taught wafers.
        labels: (M,) their classes.
    """
    claimed = {each.pattern for each in classes}
    looks = prototype_head(embeddings, outliers.labels, len(outliers.patterns)).logits(taught).argmax(axis=1)
    for index, each in enumerate(classes):
        if not each.pattern:
            shares = np.bincount(looks[labels == index], minlength=len(outliers.patterns)) / max(
                int((labels == index).sum()), 1
            )
            claimed |= {outliers.patterns[pattern] for pattern in np.flatnonzero(shares >= _CLAIMING_SHARE)}
    free = np.array([pattern not in claimed for pattern in outliers.patterns])
    return np.asarray(free[outliers.labels])


def teach_sentry(
    taught: Array, labels: NDArray[np.int64], outliers: Array, patterns: NDArray[np.int64], classes: int, seed: int
) -> Head:
    """Returns the classifier whose first outputs are the classes and whose others are the patterns of outliers.

    Args:
        taught: (M, D) embeddings of taught wafers.
        labels: (M,) their classes.
        outliers: (N, D) embeddings of unclaimed outliers; may be none.
        patterns: (N,) their patterns, any numbers.
        classes: number of classes.
        seed: seed of the order of the wafers.
    """
    embeddings = np.concatenate([taught, outliers])
    targets = np.concatenate([labels, classes + np.unique(patterns, return_inverse=True)[1]]).astype(np.int64)
    outputs = max(classes, int(targets.max()) + 1)
    state = HeadState.at(prototype_head(embeddings, targets, outputs))
    random = np.random.default_rng([seed, 6])
    return teach_head(state, embeddings[:, None], targets, _EPOCHS, _BATCH, _LEARNING_RATE, random)
