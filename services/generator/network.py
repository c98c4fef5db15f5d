"""The network of the learned generator, and the prior that it starts from.

A small U-Net (Ronneberger et al., MICCAI 2015) sees some dies of a wafer and says for each other die how probably it
failed. It is convolutional with one attention layer over the coarsest map (Vaswani et al., NeurIPS 2017), so that the
same weights serve a canvas of any size: products differ in their die grids, and a canvas of one size for all would make
small products slow and thin large ones out more than need be.

The prior is this network pretrained on wafers of many classes and products (`services.generator.pretrain`); it is told
which patterns a wafer shows, where they have a canonical name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from services.common.errors import DataLossError, FailedPreconditionError
from services.common.files import file_sha256
from services.common.shipped import shipped_file, write_index
from services.common.wafer_map import FAIL, NO_DIE
from services.generator.canvas import PLANES, planes
from services.generator.simulator import PATTERNS

PRIOR_FOLDER = Path(__file__).parent / "pretrained"
"""Folder of the prior, its index and its model card."""
PRIOR_NAME = "wafer-prior.npz"
"""File of the prior's weights, float16, in the order of `die_network`."""
SHOWN = tuple(PATTERNS)
"""Patterns that the network can be told of; a pattern without a canonical name is none of them."""
_WIDTHS = (24, 48, 80)
_SHARE_NOISE = 0.1

Floats = NDArray[np.float32]


def die_network() -> keras.Model:
    """Returns the network with random weights.

    Returns:
        Model from planes (N, side, side, 7), side a multiple of 8, and shown patterns (N, patterns) of 0 and 1, to
        logits of failing (N, side, side, 1). At the start they are those of the share that is asked for.
    """
    layers = keras.layers
    seen = keras.Input((None, None, PLANES), name="seen")
    shown = keras.Input((len(SHOWN),), name="shown")
    told = layers.Dense(48, activation="silu", name="told")(shown)
    # Two by two dies become channels first: each die keeps its own, and no costly layer runs at full size.
    x = _Fold(name="fold")(seen)
    skips = []
    for level, width in enumerate(_WIDTHS):
        if level:
            skips.append(x)
        x = layers.Conv2D(width, 3, strides=2 if level else 1, padding="same", name=f"down{level}")(x)
        x = layers.Activation("silu")(layers.Add()([x, _everywhere(told, width, f"told{level}")]))
        if level < len(_WIDTHS) - 1:
            x = _residual(x, width, f"down{level}_residual")
    # The whole wafer at once: what shape the known dies point to.
    x = layers.Add(name="attended")(
        [x, layers.MultiHeadAttention(2, 32, attention_axes=(1, 2), name="attention")(x, x)]
    )
    x = _residual(x, _WIDTHS[-1], "coarse_a")
    x = _residual(x, _WIDTHS[-1], "coarse_b")
    for level in reversed(range(len(skips))):
        x = layers.Conv2DTranspose(_WIDTHS[level], 2, strides=2, name=f"up{level}")(x)
        x = layers.Add()([x, skips[level]])
        x = _residual(x, _WIDTHS[level], f"up{level}_residual")
    x = layers.Conv2D(4, 1, kernel_initializer="zeros", name="dies")(x)
    return keras.Model([seen, shown], layers.Add(name="logits")([_Unfold(name="unfold")(x), seen[..., -1:]]))


def shown_patterns(patterns: Iterable[str]) -> Floats:
    """Returns (patterns,) 1 for each pattern that is shown, 0 for the others and for unknown names."""
    names = set(patterns)
    return np.array([name in names for name in SHOWN], np.float32)


def load_prior(folder: Path = PRIOR_FOLDER) -> keras.Model:
    """Returns the network with the weights of the prior.

    Raises:
        FailedPreconditionError: The file is missing or damaged.
    """
    try:
        path = shipped_file(folder, PRIOR_NAME, "Install this release again, or run `make pretrain-generator`.")
    except DataLossError as error:
        raise FailedPreconditionError(error.message, reason="PRIOR_UNAVAILABLE") from error
    network = die_network()
    with np.load(path, allow_pickle=False) as archive:
        network.set_weights([archive[f"w{index:03d}"].astype(np.float32) for index in range(len(network.weights))])
    return network


def save_prior(network: keras.Model, folder: Path) -> str:
    """Writes the weights as float16 and enters them into the index; returns the SHA-256 of the file."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {f"w{index:03d}": weights.astype(np.float16) for index, weights in enumerate(network.get_weights())}
    np.savez_compressed(folder / PRIOR_NAME, allow_pickle=False, **arrays)
    digest = file_sha256(folder / PRIOR_NAME)
    write_index(folder, PRIOR_NAME, digest)
    return digest


def question(drawn: NDArray[np.uint8], rng: np.random.Generator) -> tuple[Floats, NDArray[np.bool_], NDArray[np.bool_]]:
    """Hides some dies of wafers, any share of them.

    Args:
        drawn: (n, side, side) die grids on their canvas.
        rng: Source of everything random.

    Returns:
        What the network sees (n, side, side, 7), which dies failed and which it is asked for (n, side, side).
    """
    known = rng.random(drawn.shape, dtype=np.float32) < rng.random((len(drawn), 1, 1), dtype=np.float32)
    failed = drawn == FAIL
    asked = (drawn != NO_DIE) & ~known
    share = (failed & asked).sum(axis=(1, 2)) / np.maximum(asked.sum(axis=(1, 2)), 1)
    # About the share only: whoever makes wafers asks for a share that no wafer has exactly.
    share = share * np.exp(rng.normal(0, _SHARE_NOISE, len(drawn)))
    return planes(drawn, known, share), failed, asked


TrainStep = Callable[[Floats, Floats, NDArray[np.bool_], NDArray[np.bool_], float], float]
"""Planes, shown patterns, failed dies, dies that are asked for, learning rate to loss."""


def train_step(network: keras.Model, optimizer: keras.optimizers.Optimizer) -> TrainStep:
    """Returns a compiled step that lowers the cross entropy of the dies that are asked for and returns it."""
    weights = network.trainable_variables

    def step(seen: tf.Tensor, shown: tf.Tensor, failed: tf.Tensor, asked: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = network([seen, shown], training=True)[..., 0]
            entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=failed, logits=logits)
            loss = tf.reduce_sum(entropy * asked) / tf.maximum(tf.reduce_sum(asked), 1.0)
        gradients, _ = tf.clip_by_global_norm(tape.gradient(loss, weights), 1.0)
        optimizer.learning_rate.assign(rate)
        optimizer.apply(gradients, weights)
        return loss

    compiled = tf.function(step, jit_compile=False)

    def run(seen: Floats, shown: Floats, failed: NDArray[np.bool_], asked: NDArray[np.bool_], rate: float) -> float:
        arguments = (seen, shown, failed.astype(np.float32), asked.astype(np.float32), np.float32(rate))
        return float(compiled(*(tf.convert_to_tensor(each) for each in arguments)))

    return run


def _residual(x: Any, width: int, name: str) -> Any:
    y = keras.layers.Conv2D(width, 3, padding="same", activation="silu", name=name)(x)
    return keras.layers.Add()([x, y])


def _everywhere(told: Any, width: int, name: str) -> Any:
    return keras.layers.Reshape((1, 1, width))(keras.layers.Dense(width, name=name)(told))


@keras.saving.register_keras_serializable(package="teachwafer")
class _Fold(keras.layers.Layer):  # type: ignore[misc]
    """(N, h, w, c) to (N, h / 2, w / 2, 4 c): two by two cells become one with all their channels."""

    def call(self, x: Any) -> Any:
        return tf.nn.space_to_depth(x, 2)

    def compute_output_shape(self, shape: Any) -> Any:
        return (shape[0], None, None, 4 * shape[-1])


@keras.saving.register_keras_serializable(package="teachwafer")
class _Unfold(keras.layers.Layer):  # type: ignore[misc]
    """The reverse of `_Fold`."""

    def call(self, x: Any) -> Any:
        return tf.nn.depth_to_space(x, 2)

    def compute_output_shape(self, shape: Any) -> Any:
        return (shape[0], None, None, shape[-1] // 4)
