"""What the predictor answers on one wafer, free of the wire and of the runtime."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from services.common.model_manifest import ModelClass, ModelManifest
from services.common.pattern_sets import set_confidence, shown_classes
from services.common.task import Task

NOVELTY_OF_UNKNOWN = 1.0
"""Novelty above which a wafer is unlike anything taught; models are exported so that it is the same for all."""
STREAM_AGAIN = "Open the stream again and send what has no answer yet."
"""What the sender of a stream does when the predictor stops."""


Ranking = tuple[tuple[ModelClass, float], ...]
"""Classes and their probabilities, best first."""


class Decision(Enum):
    """What an answer is worth."""

    ACCEPTED = "accepted"
    NOT_SURE = "not sure"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """Answer on one wafer.

    Attributes:
        classes: Classes and their probabilities, best first; at least one.
        patterns: Those of them that the wafer shows, most probable first; none for a normal wafer.
        novelty: Distance from what was taught, 1.0 at the threshold of unknown.
        decision: What the answer is worth.
        heat: uint8 (rows, columns) of the wafer, 255 where it mattered most. None: not asked for.
        embedding: float32 (D,) of unit length. None: not asked for.
    """

    classes: Ranking
    patterns: Ranking
    novelty: float
    decision: Decision
    heat: NDArray[np.uint8] | None = None
    embedding: NDArray[np.float32] | None = None


def decide(manifest: ModelManifest, confidence: float, novelty: float) -> Decision:
    """Returns what an answer is worth.

    Args:
        manifest: Manifest of the model, with the threshold of accepted answers.
        confidence: Probability that the answer is right, 0 to 1; see `confidence_of`.
        novelty: Distance from what was taught.
    """
    if novelty > NOVELTY_OF_UNKNOWN:
        return Decision.UNKNOWN
    return Decision.ACCEPTED if confidence >= manifest.accept_threshold else Decision.NOT_SURE


def confidence_of(manifest: ModelManifest, probabilities: NDArray[np.float32]) -> list[float]:
    """Returns the probabilities that answers are right: of the best class, or of the whole set of patterns.

    An only-normal model has one class, and its threshold of accepted answers is 0: the novelty decides alone.

    Args:
        manifest: Manifest of the model.
        probabilities: float32 (N, C).
    """
    if manifest.task is Task.SEVERAL:
        sure = set_confidence(probabilities, _normal(manifest))
    else:
        sure = probabilities.max(axis=1)
    values: list[float] = sure.tolist()
    return values


def patterns_of(manifest: ModelManifest, probabilities: NDArray[np.float32]) -> list[Ranking]:
    """Returns the patterns that each wafer shows, most probable first: none for a normal one.

    Args:
        manifest: Manifest of the model.
        probabilities: float32 (N, C).
    """
    if manifest.task is Task.NORMAL:
        return [()] * len(probabilities)
    if manifest.task is Task.SINGLE:
        return [() if best[0][0].normal else best for best in rank(manifest, probabilities, 1)]
    shown = shown_classes(probabilities, _normal(manifest)).tolist()
    ranked = rank(manifest, probabilities, 0)
    ids = [{each.class_id for each, is_there in zip(manifest.classes, row, strict=True) if is_there} for row in shown]
    return [
        tuple(each for each in ranking if each[0].class_id in there and not each[0].normal)
        for ranking, there in zip(ranked, ids, strict=True)
    ]


def rank(manifest: ModelManifest, probabilities: NDArray[np.float32], top_k: int) -> list[Ranking]:
    """Returns the most probable classes of each wafer, best first; of equals the one that comes first in the model.

    Args:
        manifest: Manifest of the model.
        probabilities: float32 (N, C).
        top_k: Most classes to return; 0 returns all.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, : top_k or None]
    classes = manifest.classes
    return [
        tuple((classes[index], values[index]) for index in indices)
        for indices, values in zip(order.tolist(), probabilities.tolist(), strict=True)
    ]


def heat_on_dies(heat: NDArray[np.float32], dies: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns a heat map of a model on the grid of a wafer.

    Args:
        heat: float32 (h, w), at least 0, on the bounding box of the wafer's dies.
        dies: uint8 (rows, columns); at least one die.

    Returns:
        uint8 (rows, columns): 0 where there is no die, 255 on the hottest die; all 0 where the model shows no heat.
    """
    rows, columns = np.flatnonzero(dies.any(axis=1)), np.flatnonzero(dies.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    stretched = _between(heat.shape[0], bottom - top) @ heat @ _between(heat.shape[1], right - left).T
    whole = np.zeros(dies.shape, np.float32)
    whole[top:bottom, left:right] = np.maximum(stretched, 0)
    whole[dies == 0] = 0
    hottest = float(whole.max())
    if not np.isfinite(hottest) or hottest <= 0:
        return np.zeros(dies.shape, np.uint8)
    scaled: NDArray[np.uint8] = np.rint(whole * (255 / hottest)).astype(np.uint8)
    return scaled


def _normal(manifest: ModelManifest) -> list[bool]:
    return [each.normal for each in manifest.classes]


def _between(cells: int, dies: int) -> NDArray[np.float32]:
    """Returns float32 (dies, cells): weights that interpolate linearly between the centres of the cells."""
    position = np.clip((np.arange(dies) + 0.5) * cells / dies - 0.5, 0, cells - 1)
    weights: NDArray[np.float32] = np.maximum(1 - np.abs(position[:, None] - np.arange(cells)), 0).astype(np.float32)
    return weights
