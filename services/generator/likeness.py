"""How alike two sets of wafers are, as sets of embeddings (see `services.generator.embedding`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 3
"""Neighbours that span the ball around each wafer, as in the paper."""

Array = NDArray[np.float32]
_Doubles = NDArray[np.float64]


def precision_and_recall(real: Array, made: Array) -> tuple[float, float]:
    """Returns improved precision and recall (Kynkaanniemi et al., NeurIPS 2019).

    Around each wafer of a set lies a ball that reaches to its third nearest neighbour in the set. Precision is the
    share of made wafers inside some ball of a real one: do they look real? Recall is the share of real wafers inside
    some ball of a made one: is every kind of the class there?

    Args:
        real: (n, D) embeddings, n at least 2.
        made: (m, D) embeddings, m at least 2.
    """
    across = _distances(real, made)
    precise = (across <= _radii(real)[:, None]).any(axis=0)
    recalled = (across <= _radii(made)[None, :]).any(axis=1)
    return float(precise.mean()), float(recalled.mean())


def frechet_distance(real: Array, made: Array) -> float:
    """Returns the Frechet distance between normal distributions through two sets (Heusel et al., NeurIPS 2017).

    Twenty wafers span nineteen of the embedding's 384 directions; their plain covariance would call every other
    direction impossible and the distance would mostly count wafers. Both covariances are therefore shrunk towards a
    multiple of the identity, by the oracle-approximating share (Chen et al., IEEE TSP 58(10) 2010) of the smaller set:
    the same share for both, so that a set isn't told from the other by its size. All directions are kept, rather
    than the few principal ones of the real wafers, because what is wrong with a made wafer may lie in any other.

    Args:
        real: (n, D) embeddings, n at least 2.
        made: (m, D) embeddings, m at least 2.
    """
    covariances = [np.cov(each.astype(np.float64).T, bias=True) for each in (real, made)]
    fewer = int(len(made) < len(real))
    share = _shrinkage(covariances[fewer], min(len(real), len(made)))
    one, other = ((1 - share) * each + share * np.trace(each) / len(each) * np.eye(len(each)) for each in covariances)
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ other @ root)
    shift = real.mean(axis=0, dtype=np.float64) - made.mean(axis=0, dtype=np.float64)
    distance = shift @ shift + np.trace(one) + np.trace(other) - 2 * np.sqrt(np.maximum(product, 0)).sum()
    return float(max(distance, 0.0))


def _shrinkage(covariance: _Doubles, count: int) -> float:
    """Returns the oracle-approximating share of the identity for the covariance of so many wafers, 0 to 1."""
    width = len(covariance)
    squares, trace = float(np.square(covariance).sum()), float(np.trace(covariance))
    above = (1 - 2 / width) * squares + trace**2
    below = (count + 1 - 2 / width) * (squares - trace**2 / width)
    return 1.0 if below <= 0 else min(1.0, above / below)


def _distances(one: Array, other: Array) -> Array:
    squares = np.square(one).sum(1)[:, None] + np.square(other).sum(1)[None, :] - 2 * one @ other.T
    distances: Array = np.sqrt(np.maximum(squares, 0))
    return distances


def _radii(embeddings: Array) -> Array:
    """Returns (n,) distances to the third nearest other wafer, or to the farthest of fewer."""
    place = min(NEIGHBOURS, len(embeddings) - 1)
    # Place 0 is the wafer itself.
    radii: Array = np.partition(_distances(embeddings, embeddings), place, axis=1)[:, place]
    return radii
