"""Only normal wafers: a wafer is as unusual as it is far from the normal ones that are known.

Nothing is taught by gradient steps: the pretrained embedding is the whole knowledge, and new wafers are compared with a
bank of normal ones (nearest neighbours; Bergman, Cohen and Hoshen, arXiv 2002.10445, 2020). That is why so few wafers
are enough, and why wafers can be told as unusual whose pattern nobody has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from services.common.evaluation import number_lots
from services.common.head import Array
from services.trainer.calibration import BANK_WAFERS, neighbour_distance, upper_quantile
from services.trainer.embedding import PACKAGE
from services.trainer.network import NEIGHBOURS, Whitening, answering_model, averaged, contributions, turned_back

NORMAL_SHARE = 0.95
"""Share of normal wafers that must not be called unknown. Some wafers that people called normal show a pattern, and
they stretch the threshold. With 1,000 normal wafers of WM-811K and other lots as judges, 0.95 notices 97 % of the
wafers with a pattern (mean of eight) and doubts 3.5 % of the normal ones; 0.98 notices 83 % and doubts 0.5 %."""
LEAST_DISTANCE = 0.01
"""Least distance at which a wafer may be called unknown: a few failed dies more or less are no pattern, even where all
normal wafers are equal."""

# With this many distances five lie above the threshold; with fewer it is a matter of luck.
_ENOUGH_DISTANCES = 100
_KNOTS = 64
# Fastest fall of the probability over the distance: rounding of the embedding must not move it by more than 1e-4.
_STEEPEST = 100.0


@dataclass(frozen=True, slots=True)
class NormalCalibration:
    """What normal wafers decided.

    Attributes:
        threshold: distance above which a wafer is unknown.
        distances: float32 (K,) rising distances, and
        shares: float32 (K,) probability at each of them, falling from 1; see `normal_probability`.
        bank: float32 (B, D), embeddings of known normal wafers.
    """

    threshold: float
    distances: Array
    shares: Array
    bank: Array


def bank_of_normal(rows: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Returns which of the normal training wafers new ones are compared with: all, or BANK_WAFERS of them."""
    return np.sort(np.random.default_rng([seed, 5]).permutation(rows)[:BANK_WAFERS])


def calibrate_normal(bank: Array, lots: Sequence[str], tune: Array) -> NormalCalibration:
    """Returns threshold and probabilities from distances of normal wafers.

    Where the tune wafers are too few to tell what one wafer in twenty does, the wafers of the bank judge, too, each
    without the wafers of its own lot. That is fair because nothing was fitted to them.

    Args:
        bank: (B, D) embeddings of known normal wafers, B >= 1.
        lots: lot of each of them, "" when unknown.
        tune: (N, D) embeddings of normal tune wafers; N may be 0.
    """
    distances = neighbour_distance(tune, bank) if len(tune) else np.zeros(0, np.float32)
    if len(distances) < _ENOUGH_DISTANCES:
        distances = np.concatenate([distances, distances_across_lots(bank, lots)])
    threshold = max(upper_quantile(distances, NORMAL_SHARE), LEAST_DISTANCE) if len(distances) else LEAST_DISTANCE
    return NormalCalibration(threshold, *_knots(distances), bank)


def distances_across_lots(bank: Array, lots: Sequence[str]) -> Array:
    """Returns the mean distance of wafers of a bank to their nearest ones of other lots.

    Args:
        bank: (B, D) embeddings.
        lots: lot of each wafer; one without lot is a lot of its own.

    Returns:
        float32, one for each wafer that has enough of other lots: NEIGHBOURS, or as many as the bank has beside it.
    """
    numbers = number_lots(lots)
    similarities = np.where(numbers[:, None] == numbers, -np.inf, bank @ bank.T)
    count = min(NEIGHBOURS, len(bank) - 1)
    nearest = np.sort(similarities, axis=1)[:, len(bank) - count :] if count else np.zeros((0, 1))
    nearest = nearest[np.isfinite(nearest).all(axis=1)]
    return np.asarray(np.maximum(1.0 - nearest.mean(axis=1), 0.0), np.float32)


def normal_probability(distance: Array, calibration: NormalCalibration) -> Array:
    """Returns the probability that a normal wafer lies at least as far out (N,): a split-conformal p-value.

    With n distances of normal wafers, k of them at least as large, it is (k + 1) / (n + 1) (Vovk, Gammerman and Shafer,
    2005), with straight lines in between: of new normal wafers a share of at most p gets a figure of p or less. It
    falls with the distance and is no chance of being right, which nobody can know without wafers that are not normal: a
    normal wafer in the middle of its kind gets 0.5, and no wafer gets less than 1 / (n + 1). Where distances lie closer
    together than rounding allows for, it falls more slowly and errs towards normal.

    Args:
        distance: (N,) distances to the bank.
        calibration: what normal wafers decided.
    """
    return np.asarray(np.interp(distance, calibration.distances, calibration.shares), np.float32)


def _knots(distances: Array) -> tuple[Array, Array]:
    """Returns at most _KNOTS + 1 distances, rising, and the probability at each."""
    ordered, count = np.sort(distances).astype(np.float64), len(distances)
    ranks = np.unique(np.linspace(0, max(count - 1, 0), min(count, _KNOTS)).round().astype(np.int64))
    shares = [float(count - rank + 1) / (count + 1) for rank in ranks]
    places = [float(ordered[rank]) for rank in ranks]
    # Farther out than all of them; without any, nothing is known but that it is a wafer.
    shares.append(1 / (count + 1))
    places.append(places[-1] if places else 0.0)
    for place in range(1, len(places)):
        places[place] = max(places[place], places[place - 1] + (shares[place - 1] - shares[place]) / _STEEPEST)
    return np.array(places, np.float32), np.array(shares, np.float32)


def normal_model(trunk: keras.Model, orientations: int, size: int, calibration: NormalCalibration) -> keras.Model:
    """Returns the model from dies uint8 (N, rows, columns) to the four outputs, by name; see `NormalAnswers`.

    Args:
        trunk: planes to feature maps and embedding.
        orientations: 8 to average over all orientations of the wafer, else 1.
        size: cells along each side of the planes.
        calibration: threshold, probabilities and known wafers.
    """
    answers = NormalAnswers(
        bank=len(calibration.bank), knots=len(calibration.shares), orientations=orientations, name="answers"
    )
    model = answering_model(trunk, orientations, size, answers)
    answers.teach(calibration, trunk.get_layer("embedding"))
    return model


@keras.saving.register_keras_serializable(package=PACKAGE)
class NormalAnswers(keras.layers.Layer):  # type: ignore[misc]
    """Feature maps and embedding, as a trunk returns them, to probability, novelty, embedding and heat map.

    * probabilities (N, 1): see `normal_probability`.
    * novelty (N,): mean cosine distance to the nearest known wafers / threshold.
    * embedding (N, D).
    * heat (N, 1, h, w): what each place adds to the distance, as far as that is positive. With the mean m of the
      nearest known wafers and an embedding e of length 1 the distance 1 - e m is the product e (e - m): the heat map of
      a class whose weights are e - m.

    Args:
        bank: number of known wafers.
        knots: number of distances with a probability.
        orientations: see `services.trainer.network.Answers`.
    """

    def __init__(self, bank: int, knots: int, orientations: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.bank_size, self.knots, self.orientations = bank, knots, orientations

    def build(self, shapes: Any) -> None:
        """Makes the weights."""
        width = shapes[-1][-1]
        self.bank = self.add_weight(shape=(self.bank_size, width), name="bank", trainable=False)
        self.distances = self.add_weight(shape=(self.knots,), name="distances", trainable=False)
        self.shares = self.add_weight(shape=(self.knots,), name="shares", trainable=False)
        self.threshold = self.add_weight(shape=(), name="threshold", initializer="ones", trainable=False)
        if len(shapes) > 2:
            # The whitening of the evidence, as the heat map needs it.
            evidence = width - shapes[-2][-1]
            self.matrix = self.add_weight(shape=(evidence, evidence), name="matrix", trainable=False)
            self.mean = self.add_weight(shape=(evidence,), name="mean", trainable=False)

    def teach(self, calibration: NormalCalibration, embedding: keras.layers.Layer) -> None:
        """Takes over known wafers, what normal wafers decided, and the whitening of the trunk's embedding."""
        self.bank.assign(calibration.bank)
        self.distances.assign(calibration.distances)
        self.shares.assign(calibration.shares)
        self.threshold.assign(calibration.threshold)
        if hasattr(self, "matrix"):
            self.matrix.assign(np.array(embedding.matrix))
            self.mean.assign(np.array(embedding.mean))

    def call(self, seen: Sequence[Any]) -> dict[str, Any]:
        """Returns the four outputs by name."""
        *maps, turned = seen
        embedding, length = averaged(turned, self.orientations)
        similarities = ops.matmul(embedding, ops.transpose(self.bank))
        nearest, places = ops.top_k(similarities, min(NEIGHBOURS, self.bank_size))
        distance = ops.maximum(1.0 - ops.mean(nearest, axis=-1), 0.0)
        away = embedding - ops.mean(ops.take(self.bank, places, axis=0), axis=1)
        heat = turned_back(self.contributions_of(maps, away), length, self.orientations)
        return {
            "probabilities": self._probability(distance)[:, None],
            "novelty": distance / self.threshold,
            "embedding": embedding,
            "heat": ops.transpose(ops.relu(heat), (0, 3, 1, 2)),
        }

    def contributions_of(self, maps: Sequence[Any], away: Any) -> Any:
        """Returns what each place adds to the product of the embedding and a vector of each wafer (N, D)."""
        kernel = ops.concatenate([away] * self.orientations, axis=0)
        whitening = None
        if hasattr(self, "matrix"):
            places = ops.matmul(kernel[:, : self.mean.shape[0]], ops.transpose(self.matrix))
            offset = ops.sum(places * self.mean, axis=-1)[:, None, None, None]
            whitening = Whitening(self.matrix, self.mean, places[:, None, :, None], offset)
        return contributions(maps, kernel[:, None, :, None], whitening)

    def _probability(self, distance: Any) -> Any:
        """Interpolates as a sum of ramps, one from each distance to the next."""
        if self.knots == 1:
            return ops.zeros_like(distance) + self.shares[0]
        begin, length = self.distances[:-1], self.distances[1:] - self.distances[:-1]
        done = ops.clip((distance[:, None] - begin) / length, 0.0, 1.0)
        return self.shares[0] - ops.sum(done * (self.shares[:-1] - self.shares[1:]), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Returns what makes an equal layer."""
        return {"bank": self.bank_size, "knots": self.knots, "orientations": self.orientations, "name": self.name}
