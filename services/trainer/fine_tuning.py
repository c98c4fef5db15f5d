"""Teaching the whole network: gradient steps on trunk and classifier together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from numpy.typing import NDArray

from services.common.head import LOGIT_SCALE, Head

TRUNK_RATE = 0.3
"""Step size of the pretrained trunk, relative to that of the classifier: it knows wafers already."""
_WEIGHT_DECAY = 1e-3


class FineTuner:
    """A trunk and a classifier that learn together.

    Batch normalisation keeps its pretrained statistics: those of a batch of a few wafers are noise.

    Args:
        trunk: planes to feature maps and embedding; changed in place.
        head: where the classifier starts.
        loss: mean loss of tensors of targets and logits (n, outputs).
    """

    def __init__(self, trunk: keras.Model, head: Head, loss: Callable[[Any, Any], Any]) -> None:
        self._trunk, self._loss = trunk, loss
        self._kernel = keras.Variable(head.kernel, name="kernel")
        self._bias = keras.Variable(head.bias, name="bias")
        self._weights = [*trunk.trainable_variables, self._kernel, self._bias]
        self._optimizers = [keras.optimizers.AdamW(0.0, weight_decay=_WEIGHT_DECAY) for _ in range(2)]
        for optimizer, variables in zip(self._optimizers, self._groups(self._weights), strict=True):
            optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
            optimizer.build(variables)
        shape = trunk.inputs[0].shape[1:]
        signature = [
            tf.TensorSpec((None, *shape), tf.float32),
            tf.TensorSpec((None, head.bias.shape[0]), tf.float32),
        ]
        self._function = tf.function(self._gradient_step, input_signature=signature)

    def step(
        self, planes: NDArray[np.float32], targets: NDArray[np.float32], learning_rate: float
    ) -> tuple[float, NDArray[np.float32]]:
        """Does one step and returns the mean loss of the batch and its logits (n, outputs), as they were before it.

        Args:
            planes: float32 (n, size, size, 2).
            targets: float32 (n, outputs), what the loss compares the logits with.
            learning_rate: step size of the classifier; the trunk's is TRUNK_RATE of it.
        """
        for optimizer, factor in zip(self._optimizers, (TRUNK_RATE, 1.0), strict=True):
            optimizer.learning_rate = learning_rate * factor
        loss, logits = self._function(tf.constant(planes), tf.constant(targets))
        return float(loss), np.asarray(logits)

    @property
    def head(self) -> Head:
        """The classifier as it is now."""
        return Head(np.array(self._kernel), np.array(self._bias))

    def state(self) -> list[NDArray[Any]]:
        """Returns copies of everything that steps change; see `restore`."""
        return [np.array(variable) for variable in self._variables()]

    def restore(self, state: list[NDArray[Any]]) -> None:
        """Goes back to a state."""
        for variable, value in zip(self._variables(), state, strict=True):
            variable.assign(value)

    def _variables(self) -> list[Any]:
        return [*self._weights, *(each for optimizer in self._optimizers for each in optimizer.variables)]

    def _groups(self, values: list[Any]) -> tuple[list[Any], list[Any]]:
        return values[:-2], values[-2:]

    def _gradient_step(self, planes: Any, targets: Any) -> Any:
        with tf.GradientTape() as tape:
            embedding = self._trunk(planes, training=False)[-1]
            logits = LOGIT_SCALE * (ops.matmul(embedding, self._kernel) + self._bias)
            loss = self._loss(targets, logits)
        gradients = tape.gradient(loss, [each.value for each in self._weights])
        groups = zip(self._optimizers, self._groups(gradients), self._groups(self._weights), strict=True)
        for optimizer, gradient, variables in groups:
            optimizer.apply_gradients(zip(gradient, variables, strict=True))
        return loss, logits
