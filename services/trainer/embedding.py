"""From feature maps to the embedding: what is pooled, how it is whitened, and how both parts are joined.

The embedding has two parts of equal length. *Patterns* is the mean of the map of patterns that pretraining knows: the
surest way to tell known patterns apart. *Evidence* is everything else that the network saw, whitened: each direction is
divided by how much wafers of one class differ along it (the metric of linear discriminant analysis; Fisher, Annals of
Eugenics 7, 1936), so that classes which pretraining has never met lie apart as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

PACKAGE = "teachwafer"
"""Name under which layers are registered with Keras."""
_EPSILON = 1e-6
_PEAK_EPSILON = 1e-6
# Share of the mean variance that is added to each direction: without it, directions that hardly vary rule the distance.
_SHRINKAGE = 0.1


def pooled_of(maps: Sequence[Any]) -> list[Any]:
    """Returns feature maps pooled over the wafer: one vector (N, width) for evidence, one for patterns if there is one.

    Evidence is the mean of each channel of the fine and the coarse map, and the peak of each of the coarse one: its
    generalised mean of power 4 (Radenovic et al., TPAMI 2019), in which a small blob weighs more than in the mean.
    """
    if len(maps) == 1:
        return [ops.mean(maps[0], axis=(1, 2))]
    fine, coarse, patterns = maps
    means = [ops.mean(each, axis=(1, 2)) for each in (fine, coarse)]
    return [ops.concatenate([*means, peak_of(coarse)], axis=-1), ops.mean(patterns, axis=(1, 2))]


def peak_of(feature_map: Any) -> Any:
    """Returns the generalised mean of power 4 of each channel of a map (N, h, w, c) of values >= 0: (N, c)."""
    return ops.sqrt(ops.sqrt(ops.mean(ops.square(ops.square(feature_map)), axis=(1, 2)) + _PEAK_EPSILON))


def shares_of_peak(feature_map: Any, peak: Any) -> Any:
    """Returns what each place adds to the peak of its channel (N, h, w, c), in proportion to the power averaged.

    Their mean over the places is the peak.
    """
    peak = peak[:, None, None]
    return (ops.square(ops.square(feature_map)) + _PEAK_EPSILON) / (ops.square(peak) * peak)


def length_of(features: Any) -> Any:
    """Returns the lengths (N, 1) of features (N, D), a little over 0 for zeros."""
    return ops.sqrt(ops.sum(ops.square(features), axis=-1, keepdims=True)) + _EPSILON


def unit_length(features: Any) -> Any:
    """Returns features (N, D) scaled to length 1."""
    return features / length_of(features)


def is_whitened(trunk: keras.Model) -> bool:
    """Returns whether pretraining whitened the embedding of a trunk."""
    layer = trunk.get_layer("embedding")
    return hasattr(layer, "mean") and bool(np.any(layer.mean))


def whitening_of(
    features: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns the mean (W,) and the matrix (W, W) that whiten features.

    The mean is that of the class means; the matrix is the symmetric inverse root of the classes' mean covariance, with
    a tenth of its mean variance added to each direction.

    Args:
        features: (N, W) of length 1.
        labels: (N,) their classes, each with two wafers or more.
    """
    classes = [features[labels == each].astype(np.float64) for each in np.unique(labels)]
    mean = np.mean([each.mean(axis=0) for each in classes], axis=0)
    covariance = np.mean([np.cov(each.T, bias=True) for each in classes], axis=0)
    values, vectors = np.linalg.eigh(covariance)
    scale = (np.maximum(values, 0.0) / values.mean() + _SHRINKAGE) ** -0.5
    return mean.astype(np.float32), ((vectors * scale) @ vectors.T).astype(np.float32)


@keras.saving.register_keras_serializable(package=PACKAGE)
class Embedding(keras.layers.Layer):  # type: ignore[misc]
    """Feature maps to the embedding (N, D), of length 1: whitened evidence and patterns, each of equal length.

    Weights, not trainable: `mean` (W,) and `matrix` (W, W) of the whitening; see `whitening_of`. A network with one map
    has neither, and its embedding is the mean of the map.
    """

    def build(self, shapes: Any) -> None:
        """Makes the weights, of a whitening that changes nothing."""
        if len(shapes) > 1:
            # Fine, coarse, peaks of coarse; see `pooled_of`.
            self.width = shapes[0][-1] + 2 * shapes[1][-1]
            self.mean = self.add_weight(shape=(self.width,), name="mean", initializer="zeros", trainable=False)
            self.matrix = self.add_weight(
                shape=(self.width, self.width), name="matrix", initializer="identity", trainable=False
            )

    def call(self, maps: Sequence[Any]) -> Any:
        """Returns the embedding."""
        pooled = pooled_of(maps)
        if len(pooled) == 1:
            return unit_length(pooled[0])
        evidence, patterns = pooled
        return ops.concatenate([unit_length(self.whitened(evidence)), unit_length(patterns)], axis=-1) / np.sqrt(2.0)

    def whitened(self, evidence: Any) -> Any:
        """Returns pooled evidence (N, W), whitened."""
        return ops.matmul(unit_length(evidence) - self.mean, self.matrix)

    def compute_output_shape(self, shapes: Any) -> Any:
        """Returns the shape of the embedding."""
        widths = [shape[-1] for shape in shapes]
        return (shapes[0][0], widths[0] if len(widths) == 1 else sum(widths) + widths[1])
