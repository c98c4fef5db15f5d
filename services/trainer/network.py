"""From die grids to answers: the Keras model that is taught, saved and exported.

dies -> planes -> trunk (in one or eight orientations) -> feature maps, embedding -> probabilities, novelty, heat map
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from services.common.head import LOGIT_SCALE, Head
from services.common.preprocessing import planes
from services.trainer.backbones import ORIENTATIONS
from services.trainer.embedding import PACKAGE, length_of, pooled_of, shares_of_peak, unit_length

NEIGHBOURS = 3
"""Nearest taught wafers whose mean distance says how new a wafer is."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the tune wafers decided; see `services.trainer.calibration`.

    Attributes:
        temperature: divisor of the logits.
        accept_threshold: least highest probability of an accepted answer.
        distance_scale: typical distance to the nearest taught wafers.
        doubt_scale: typical doubt, 1 - the sentry's highest probability of a class.
        novelty_threshold: sum of both, each in units of its scale, above which a wafer is unknown.
        bank: float32 (K, D), embeddings of taught wafers.
        sentry: classifier whose first outputs are the classes and whose others are patterns that nobody taught; see
            `services.trainer.outliers`. None: the classifier doubts itself.
        doubtful_lots: lots that were left out of the accept rule; see `services.trainer.calibration.doubtful_lots`.
    """

    temperature: float
    accept_threshold: float
    distance_scale: float
    doubt_scale: float
    novelty_threshold: float
    bank: NDArray[np.float32]
    sentry: Head | None = None
    doubtful_lots: tuple[str, ...] = ()


def embedding_model(trunk: keras.Model, orientations: int) -> keras.Model:
    """Returns the model from planes (N, size, size, 2) to embeddings (N, D), of length 1.

    Args:
        trunk: planes to feature maps and embedding.
        orientations: 8 to average over all orientations of the wafer, else 1.
    """
    planes = trunk.inputs[0]
    if orientations == 1:
        return keras.Model(planes, trunk.outputs[-1])
    turned = trunk(Turn(name="turn")(planes))[-1]
    return keras.Model(planes, averaged(turned, orientations)[0])


def taught_model(trunk: keras.Model, orientations: int, size: int, head: Head, calibration: Calibration) -> keras.Model:
    """Returns the model from dies uint8 (N, rows, columns) to the four outputs, by name.

    Args:
        trunk: planes to feature maps and embedding.
        orientations: 8 to average over all orientations of the wafer, else 1.
        size: cells along each side of the planes.
        head: classifier.
        calibration: temperature, thresholds and taught wafers.
    """
    answers = Answers(
        classes=len(head.bias),
        neighbours=min(NEIGHBOURS, len(calibration.bank)),
        bank=len(calibration.bank),
        rivals=None if calibration.sentry is None else len(calibration.sentry.bias) - len(head.bias),
        orientations=orientations,
        name="answers",
    )
    model = answering_model(trunk, orientations, size, answers)
    answers.teach(head, calibration, trunk.get_layer("embedding"))
    return model


def answering_model(trunk: keras.Model, orientations: int, size: int, answers: keras.layers.Layer) -> keras.Model:
    """Returns the model from dies uint8 (N, rows, columns) to what a layer answers to what the trunk sees.

    Args:
        trunk: planes to feature maps and embedding.
        orientations: 8 to show the layer each wafer in all orientations, one after the other (see `Turn`), else 1.
        size: cells along each side of the planes.
        answers: feature maps and embedding to the outputs by name.
    """
    dies = keras.Input((None, None), dtype="uint8", name="dies")
    wafer_planes = WaferPlanes(size, name="wafer_planes")(dies)
    seen = trunk(wafer_planes if orientations == 1 else Turn(name="turn")(wafer_planes))
    return keras.Model(dies, answers(seen), name="teachwafer")


@keras.saving.register_keras_serializable(package=PACKAGE)
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


@keras.saving.register_keras_serializable(package=PACKAGE)
class Turn(keras.layers.Layer):  # type: ignore[misc]
    """A batch (N, s, s, c) in all eight orientations, one after the other: (8 N, s, s, c)."""

    def call(self, batch: Any) -> Any:
        """Returns the batch in orientations 0 to 7."""
        return ops.concatenate([_orient(batch, each) for each in range(ORIENTATIONS)], axis=0)


@keras.saving.register_keras_serializable(package=PACKAGE)
class Answers(keras.layers.Layer):  # type: ignore[misc]
    """Feature maps and embedding, as a trunk returns them, to probabilities, novelty, embedding and heat map.

    * probabilities (N, classes): softmax of LOGIT_SCALE (e W + b) / temperature of the embedding e.
    * novelty (N,): (mean cosine distance to the nearest taught wafers / its scale + doubt / its scale) / threshold.
      Doubt is 1 - the highest probability of a class by the sentry, a second classifier that also knows patterns which
      nobody taught (see `services.trainer.outliers`). Neither finds all unknown patterns: those near a class are
      doubted, those far from all classes and from all simulated patterns are distant.
    * embedding (N, D).
    * heat (N, classes, h, w): what each place adds to the logit of the class, as far as that is positive (class
      activation map; Zhou et al., CVPR 2016), at the resolution of the finest map.

    Args:
        classes: number of classes.
        neighbours: nearest taught wafers that count, 1 to `bank`.
        bank: number of taught wafers to compare with.
        rivals: patterns that the sentry knows beside the classes; None without a sentry: the classifier doubts itself.
        orientations: 8 when the batch holds each wafer in eight orientations, one after the other (see `Turn`), over
            which embedding and heat map are averaged; else 1.
    """

    def __init__(
        self, classes: int, neighbours: int, bank: int, rivals: int | None = None, orientations: int = 1, **options: Any
    ) -> None:
        super().__init__(**options)
        self.classes, self.neighbours, self.bank_size = classes, neighbours, bank
        self.rivals, self.orientations = rivals, orientations

    def build(self, shapes: Any) -> None:
        """Makes the weights."""
        width = shapes[-1][-1]
        self.kernel = self.add_weight(shape=(width, self.classes), name="kernel", trainable=False)
        self.bias = self.add_weight(shape=(self.classes,), name="bias", trainable=False)
        self.bank = self.add_weight(shape=(self.bank_size, width), name="bank", trainable=False)
        if self.rivals is not None:
            sentry = self.classes + self.rivals
            self.sentry_kernel = self.add_weight(shape=(width, sentry), name="sentry_kernel", trainable=False)
            self.sentry_bias = self.add_weight(shape=(sentry,), name="sentry_bias", trainable=False)
        # Temperature, scale of the distance, scale of the doubt, threshold.
        self.scales = self.add_weight(shape=(4,), name="scales", initializer="ones", trainable=False)
        if len(shapes) > 2:
            # The whitening of the evidence, as the heat map needs it: matrix, mean, and both times the kernel.
            evidence = width - shapes[-2][-1]
            self.matrix = self.add_weight(shape=(evidence, evidence), name="matrix", trainable=False)
            self.mean = self.add_weight(shape=(evidence,), name="mean", trainable=False)
            self.places = self.add_weight(shape=(evidence, self.classes), name="places", trainable=False)
            self.offset = self.add_weight(shape=(self.classes,), name="offset", trainable=False)

    def teach(self, head: Head, calibration: Calibration, embedding: keras.layers.Layer) -> None:
        """Takes over a classifier, what the tune wafers decided, and the whitening of the trunk's embedding."""
        self.kernel.assign(head.kernel)
        self.bias.assign(head.bias)
        self.bank.assign(calibration.bank)
        if calibration.sentry is not None:
            self.sentry_kernel.assign(calibration.sentry.kernel)
            self.sentry_bias.assign(calibration.sentry.bias)
        self.scales.assign(
            [
                calibration.temperature,
                calibration.distance_scale,
                calibration.doubt_scale,
                calibration.novelty_threshold,
            ]
        )
        if hasattr(self, "places"):
            matrix, mean = np.array(embedding.matrix), np.array(embedding.mean)
            places = matrix @ head.kernel[: len(matrix)]
            for weight, value in (
                (self.matrix, matrix),
                (self.mean, mean),
                (self.places, places),
                (self.offset, mean @ places),
            ):
                weight.assign(value)

    def call(self, seen: Sequence[Any]) -> dict[str, Any]:
        """Returns the four outputs by name."""
        *maps, turned = seen
        embedding, length = averaged(turned, self.orientations)
        whitening = None
        if hasattr(self, "places"):
            whitening = Whitening(self.matrix, self.mean, self.places, self.offset)
        heat = turned_back(contributions(maps, self.kernel, whitening), length, self.orientations)
        logits = LOGIT_SCALE * (ops.matmul(embedding, self.kernel) + self.bias) / self.scales[0]
        probabilities = self.probabilities_of(logits)
        return {
            "probabilities": probabilities,
            "novelty": self._novelty(embedding, self.doubt_of(embedding, logits)),
            "embedding": embedding,
            "heat": self.heat_of(ops.transpose(ops.relu(LOGIT_SCALE * heat), (0, 3, 1, 2))),
        }

    def probabilities_of(self, logits: Any) -> Any:
        """Returns the probabilities (N, classes) of logits that are divided by the temperature."""
        return ops.softmax(logits, axis=-1)

    def doubt_of(self, embedding: Any, logits: Any) -> Any:
        """Returns how much an answer is doubted (N,), 0 to 1, from embedding and logits, divided by the temperature."""
        if self.rivals is None:
            return 1.0 - ops.max(ops.softmax(logits, axis=-1), axis=-1)
        sentry = ops.softmax(LOGIT_SCALE * (ops.matmul(embedding, self.sentry_kernel) + self.sentry_bias), axis=-1)
        return 1.0 - ops.max(sentry[:, : self.classes], axis=-1)

    def heat_of(self, heat: Any) -> Any:
        """Returns the heat of the classes (N, classes, h, w) from that of the columns of the kernel."""
        return heat

    def _novelty(self, embedding: Any, doubt: Any) -> Any:
        similarities = ops.matmul(embedding, ops.transpose(self.bank))
        nearest, _ = ops.top_k(similarities, self.neighbours)
        distance = ops.maximum(1.0 - ops.mean(nearest, axis=-1), 0.0)
        return (distance / self.scales[1] + doubt / self.scales[2]) / self.scales[3]

    def get_config(self) -> dict[str, Any]:
        """Returns what makes an equal layer."""
        return {
            "classes": self.classes,
            "neighbours": self.neighbours,
            "bank": self.bank_size,
            "rivals": self.rivals,
            "orientations": self.orientations,
            "name": self.name,
        }


class Whitening(NamedTuple):
    """The whitening of the evidence (see `services.trainer.embedding`) as the heat map needs it.

    Attributes:
        matrix: (W, W), and
        mean: (W,) of the trunk's embedding.
        places: matrix times the kernel's rows of evidence.
        offset: mean times places.
    """

    matrix: Any
    mean: Any
    places: Any
    offset: Any


def averaged(embedding: Any, orientations: int) -> tuple[Any, Any]:
    """Returns the mean embedding (N, D), of length 1, and its length (N, 1) before it was scaled to 1.

    Args:
        embedding: (orientations N, D) of length 1.
        orientations: 8, or 1: nothing is averaged then.
    """
    if orientations == 1:
        return embedding, None
    mean = ops.mean(ops.reshape(embedding, (orientations, -1, embedding.shape[-1])), axis=0)
    length = length_of(mean)
    return mean / length, length


def contributions(maps: Sequence[Any], kernel: Any, whitening: Whitening | None) -> Any:
    """Returns what each place adds to the product of the embedding and a kernel: (N, h, w, columns), finest map.

    The mean over the places is the product.

    Args:
        maps: feature maps of the wafers.
        kernel: (D, columns), or (N, 1, D, columns) where each wafer has one of its own; the whitening's `places` and
            `offset` then are (N, 1, W, columns) and (N, 1, 1, columns).
        whitening: None where there is one map.
    """
    pooled = pooled_of(maps)
    lengths = [length_of(each)[:, None, None] for each in pooled]
    if whitening is None:
        return ops.matmul(maps[0], kernel) / lengths[0]
    fine, coarse, patterns = maps
    evidence = pooled[0]
    whitened = length_of(ops.matmul(unit_length(evidence) - whitening.mean, whitening.matrix))[:, None, None]
    shared = shares_of_peak(coarse, evidence[:, -coarse.shape[-1] :])
    start, heat = 0, -whitening.offset / whitened
    for each in (fine, coarse, shared):
        places = whitening.places[..., start : start + each.shape[-1], :]
        start += each.shape[-1]
        heat = heat + _spread(ops.matmul(each, places) / (lengths[0] * whitened), fine.shape[1])
    heat = heat + _spread(ops.matmul(patterns, kernel[..., start:, :]) / lengths[1], fine.shape[1])
    return heat / float(np.sqrt(2.0))


def turned_back(heat: Any, length: Any, orientations: int) -> Any:
    """Returns heat maps (orientations N, h, h, c), each turned back and averaged as the embedding was: (N, h, h, c).

    Args:
        heat: heat maps, see `contributions`.
        length: length of the mean embedding, see `averaged`.
        orientations: 8, or 1: nothing is averaged then.
    """
    if orientations == 1:
        return heat
    side, channels = heat.shape[1], heat.shape[3]
    parts = ops.reshape(heat, (orientations, -1, side, side, channels))
    return sum(_orient_back(parts[each], each) for each in range(orientations)) / orientations / length[:, None, None]


def _spread(places: Any, side: int) -> Any:
    """Returns a map (N, h, h, c) in the resolution of a finer one, `side` a multiple of h."""
    factor = side // places.shape[1]
    return ops.repeat(ops.repeat(places, factor, axis=1), factor, axis=2) if factor > 1 else places


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
