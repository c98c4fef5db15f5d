"""From die grids to answers: the Keras model that is taught, saved and exported.

dies -> planes -> trunk (in one or eight orientations) -> feature maps -> embedding -> probabilities, novelty, heat map
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from services.common.preprocessing import planes
from services.trainer.backbones import ORIENTATIONS

LOGIT_SCALE = 12.0
"""Factor between the product with the unit embedding and the logit, so that weights of about 1 can be sure."""
NEIGHBOURS = 3
"""Nearest taught wafers whose mean distance says how new a wafer is."""
_EPSILON = 1e-6
_PEAK_EPSILON = 1e-6
_PACKAGE = "teachwafer"


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


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the tune wafers decided; see `services.trainer.calibration`.

    Attributes:
        temperature: divisor of the logits.
        accept_threshold: least highest probability of an accepted answer.
        distance_scale: typical distance to the nearest taught wafers.
        doubt_scale: typical 1 - highest probability.
        novelty_threshold: sum of both, each in units of its scale, above which a wafer is unknown.
        bank: float32 (K, D), embeddings of taught wafers.
    """

    temperature: float
    accept_threshold: float
    distance_scale: float
    doubt_scale: float
    novelty_threshold: float
    bank: NDArray[np.float32]


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


def embedding_of(maps: Sequence[Any]) -> Any:
    """Returns the embedding of feature maps (N, D), of length 1: evidence and patterns, each scaled to equal length."""
    return _joined(pooled_of(maps))


def unit_length(features: Any) -> Any:
    """Returns features (N, D) scaled to length 1."""
    return features / _length(features)


def embedding_model(trunk: keras.Model, orientations: int) -> keras.Model:
    """Returns the model from planes (N, size, size, 2) to embeddings (N, D).

    Args:
        trunk: planes to feature maps.
        orientations: 8 to average over all orientations of the wafer, else 1.
    """
    return keras.Model(trunk.inputs[0], embedding_of(_maps_of(trunk, trunk.inputs[0], orientations)))


def taught_model(trunk: keras.Model, orientations: int, size: int, head: Head, calibration: Calibration) -> keras.Model:
    """Returns the model from dies uint8 (N, rows, columns) to the four outputs, by name.

    Args:
        trunk: planes to feature maps.
        orientations: 8 to average over all orientations of the wafer, else 1.
        size: cells along each side of the planes.
        head: classifier.
        calibration: temperature, thresholds and taught wafers.
    """
    dies = keras.Input((None, None), dtype="uint8", name="dies")
    maps = _maps_of(trunk, WaferPlanes(size, name="wafer_planes")(dies), orientations)
    answers = Answers(
        classes=len(head.bias),
        neighbours=min(NEIGHBOURS, len(calibration.bank)),
        bank=len(calibration.bank),
        name="answers",
    )
    model = keras.Model(dies, answers(maps), name="teachwafer")
    answers.teach(head, calibration)
    return model


def _maps_of(trunk: keras.Model, wafer_planes: Any, orientations: int) -> list[Any]:
    if orientations == 1:
        return list(trunk(wafer_planes))
    turned = trunk(Turn(name="turn")(wafer_planes))
    return [TurnBack(name=f"turn_back_{index}")(each) for index, each in enumerate(turned)]


@keras.saving.register_keras_serializable(package=_PACKAGE)
class WaferPlanes(keras.layers.Layer):  # type: ignore[misc]
    """Dies uint8 (N, rows, columns) to planes float32 (N, size, size, 2).

    Args:
        size: cells along each side.
    """

    def __init__(self, size: int, **options: Any) -> None:
        super().__init__(autocast=False, **options)
        self.size = size

    def call(self, dies: Any) -> Any:
        """Returns the planes."""
        return planes(dies, self.size, ops)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape of the planes."""
        return (input_shape[0], self.size, self.size, 2)

    def get_config(self) -> dict[str, Any]:
        """Returns what makes an equal layer."""
        return {"size": self.size, "name": self.name}


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Turn(keras.layers.Layer):  # type: ignore[misc]
    """A batch (N, s, s, c) in all eight orientations, one after the other: (8 N, s, s, c)."""

    def call(self, batch: Any) -> Any:
        """Returns the batch in orientations 0 to 7."""
        return ops.concatenate([_orient(batch, each) for each in range(ORIENTATIONS)], axis=0)


@keras.saving.register_keras_serializable(package=_PACKAGE)
class TurnBack(keras.layers.Layer):  # type: ignore[misc]
    """The inverse of `Turn` on feature maps, averaged over the orientations: (8 N, h, h, c) to (N, h, h, c)."""

    def call(self, maps: Any) -> Any:
        """Returns the mean of the maps, each turned back."""
        side, channels = maps.shape[1], maps.shape[3]
        parts = ops.reshape(maps, (ORIENTATIONS, -1, side, side, channels))
        return sum(_orient_back(parts[each], each) for each in range(ORIENTATIONS)) / float(ORIENTATIONS)


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Answers(keras.layers.Layer):  # type: ignore[misc]
    """Feature maps, coarsest last, to probabilities, novelty, embedding and heat map.

    * probabilities (N, classes): softmax of LOGIT_SCALE (e W + b) / temperature of the embedding e.
    * novelty (N,): (mean cosine distance to the nearest taught wafers / its scale + (1 - highest probability) / its
      scale) / threshold. Neither finds all unknown patterns: those between two known classes make the classifier
      doubt, those far from all are often answered with confidence.
    * embedding (N, D).
    * heat (N, classes, h, w): what each place adds to the logit of the class, as far as that is positive (class
      activation map; Zhou et al., CVPR 2016), at the resolution of the finest map.

    Args:
        classes: number of classes.
        neighbours: nearest taught wafers that count, 1 to `bank`.
        bank: number of taught wafers to compare with.
    """

    def __init__(self, classes: int, neighbours: int, bank: int, **options: Any) -> None:
        super().__init__(**options)
        self.classes, self.neighbours, self.bank_size = classes, neighbours, bank

    def build(self, shapes: Any) -> None:
        """Makes the weights."""
        widths = [shape[-1] for shape in shapes]
        # Fine, coarse, peaks of coarse, patterns; see `pooled_of`.
        width = widths[0] if len(widths) == 1 else sum(widths) + widths[1]
        self.kernel = self.add_weight(shape=(width, self.classes), name="kernel", trainable=False)
        self.bias = self.add_weight(shape=(self.classes,), name="bias", trainable=False)
        self.bank = self.add_weight(shape=(self.bank_size, width), name="bank", trainable=False)
        # Temperature, scale of the distance, scale of the doubt, threshold.
        self.scales = self.add_weight(shape=(4,), name="scales", initializer="ones", trainable=False)

    def teach(self, head: Head, calibration: Calibration) -> None:
        """Takes over a classifier and what the tune wafers decided."""
        self.kernel.assign(head.kernel)
        self.bias.assign(head.bias)
        self.bank.assign(calibration.bank)
        self.scales.assign(
            [
                calibration.temperature,
                calibration.distance_scale,
                calibration.doubt_scale,
                calibration.novelty_threshold,
            ]
        )

    def call(self, maps: Sequence[Any]) -> dict[str, Any]:
        """Returns the four outputs by name."""
        pooled = pooled_of(maps)
        embedding = _joined(pooled)
        logits = LOGIT_SCALE * (ops.matmul(embedding, self.kernel) + self.bias)
        probabilities = ops.softmax(logits / self.scales[0], axis=-1)
        return {
            "probabilities": probabilities,
            "novelty": self._novelty(embedding, probabilities),
            "embedding": embedding,
            "heat": self._heat(maps, pooled),
        }

    def _novelty(self, embedding: Any, probabilities: Any) -> Any:
        similarities = ops.matmul(embedding, ops.transpose(self.bank))
        nearest, _ = ops.top_k(similarities, self.neighbours)
        distance = ops.maximum(1.0 - ops.mean(nearest, axis=-1), 0.0)
        doubt = 1.0 - ops.max(probabilities, axis=-1)
        return (distance / self.scales[1] + doubt / self.scales[2]) / self.scales[3]

    def _heat(self, maps: Sequence[Any], pooled: Sequence[Any]) -> Any:
        lengths = [_length(each)[:, None, None] for each in pooled]
        parts = [(maps[0], lengths[0])]
        if len(maps) > 1:
            fine, coarse, patterns = maps
            peak = pooled[0][:, None, None, -coarse.shape[-1] :]
            # The places of a channel share its peak in proportion to the power that the peak averages.
            shared = (ops.square(ops.square(coarse)) + _PEAK_EPSILON) / (ops.square(peak) * peak)
            parts = [(fine, lengths[0]), (coarse, lengths[0]), (shared, lengths[0]), (patterns, lengths[1])]
        side, start, heat = maps[0].shape[1], 0, 0.0
        for each, length in parts:
            kernel = self.kernel[start : start + each.shape[-1]]
            start += each.shape[-1]
            factor = side // each.shape[1]
            part = ops.matmul(each, kernel) / length
            heat = heat + ops.repeat(ops.repeat(part, factor, axis=1), factor, axis=2)
        scale = LOGIT_SCALE / float(np.sqrt(len(pooled)))
        return ops.transpose(ops.relu(scale * heat), (0, 3, 1, 2))

    def get_config(self) -> dict[str, Any]:
        """Returns what makes an equal layer."""
        return {"classes": self.classes, "neighbours": self.neighbours, "bank": self.bank_size, "name": self.name}


def _joined(pooled: Sequence[Any]) -> Any:
    """Returns pooled vectors side by side, each scaled to equal length, together of length 1."""
    return ops.concatenate([unit_length(each) for each in pooled], axis=-1) / float(np.sqrt(len(pooled)))


def _length(features: Any) -> Any:
    """Returns the lengths (N, 1) of features (N, D), a little over 0 for zeros."""
    return ops.sqrt(ops.sum(ops.square(features), axis=-1, keepdims=True)) + _EPSILON


def _orient(batch: Any, orientation: int) -> Any:
    """Returns a batch in one orientation; the same numbering as `services.trainer.augmentation.orient`."""
    if orientation & 4:
        batch = ops.transpose(batch, (0, 2, 1, 3))
    if orientation & 1:
        batch = batch[:, ::-1]
    if orientation & 2:
        batch = batch[:, :, ::-1]
    return batch


def _orient_back(batch: Any, orientation: int) -> Any:
    if orientation & 2:
        batch = batch[:, :, ::-1]
    if orientation & 1:
        batch = batch[:, ::-1]
    if orientation & 4:
        batch = ops.transpose(batch, (0, 2, 1, 3))
    return batch
