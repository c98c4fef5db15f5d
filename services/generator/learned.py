"""A learned generator: a small variational autoencoder taught on the wafers of one class.

Encoder and decoder (Kingma and Welling, arXiv 1312.6114) work on a 48 x 48 canvas of fail shares; the decoder's answer is
a fail probability for each cell. A new wafer starts from a training wafer, its parent: the parent's code is drawn from its
posterior, moved part of the way towards the code of a similar wafer, decoded, resampled to the parent's die grid and drawn
die by die. So it has a parent, a lot and a legal die grid, and is not the parent.

Everything random comes from (seed, step or wafer number), so that teaching goes on from a checkpoint exactly as if it had
never stopped, and the same seed gives the same wafers on the same machine.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from services.generator.canvas import ORIENTATIONS, SIDE, from_canvas, oriented, to_canvas
from services.generator.realism import fail_fraction

LATENT = 48
BATCH = 32
MOST_PARENTS = 4096
"""Most wafers that are taught; of more, an even sample."""
CHECKPOINT_STEPS = 50
"""Steps between two checkpoints."""
_LEARNING_RATE = 2e-3
_CODE_WEIGHT = 0.3
_NEIGHBOURS = 6
_NOISE = 0.75
_LOWEST = 0.004
_TEACH_STREAM, _MAKE_STREAM = 11, 12


@dataclass(frozen=True, slots=True)
class Taught:
    """Where teaching stands.

    Attributes:
        step: Steps done.
        steps: Steps to do.
        loss: Mean loss over the steps since the last report.
    """

    step: int
    steps: int
    loss: float


def default_steps(parents: int) -> int:
    """Returns how many steps to teach for a number of wafers: more wafers have more to tell."""
    return int(np.clip(180 + parents // 2, 200, 420))


class LearnedGenerator:
    """Learns one class and makes wafers of it.

    Args:
        parents: uint8 die grids of the class's training wafers.
        seed: Seed of everything random.
    """

    def __init__(self, parents: Sequence[NDArray[np.uint8]], seed: int, pattern: str = "") -> None:
        chosen = np.unique(np.linspace(0, len(parents) - 1, min(len(parents), MOST_PARENTS)).astype(np.intp))
        self.parents = chosen
        """Positions of the parents that are taught and may be chosen in `make`."""
        self._seed = seed
        self._grids = [parents[index] for index in chosen]
        self._fractions = np.array([fail_fraction(grid) for grid in self._grids])
        self._canvas = to_canvas(self._grids)
        keras.utils.set_random_seed(seed % 2**32)
        self._encoder, self._decoder = _encoder(), _decoder(self._mean_logit())
        self._optimizer = keras.optimizers.Adam(_LEARNING_RATE)
        self._optimizer.build(self._weights())
        self._step = 0
        self._neighbours: NDArray[np.intp] | None = None

    def teach(self, steps: int, report: Callable[[Taught], None], checkpoint: Path | None = None) -> None:
        """Teaches up to a number of steps in all; goes on from the checkpoint where there is one.

        Args:
            steps: Steps in all.
            report: Called after every 5 steps and at the end; may raise to stop.
            checkpoint: File to save to every 50 steps. None: nowhere.
        """
        if checkpoint is not None and checkpoint.exists():
            self._load(checkpoint)
        train_step = _train_step(self._encoder, self._decoder, self._optimizer)
        losses: list[float] = []
        while self._step < steps:
            rng = np.random.default_rng((self._seed, _TEACH_STREAM, self._step))
            batch = oriented(
                self._canvas[rng.integers(0, len(self._canvas), BATCH)], rng.integers(0, ORIENTATIONS, BATCH)
            )
            noise = rng.standard_normal((BATCH, LATENT), dtype=np.float32)
            # Cosine from full rate to a twentieth; the code term grows over the first third, so that codes form first.
            done = self._step / steps
            rate = _LEARNING_RATE * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))
            losses.append(
                float(train_step(batch, noise, np.float32(rate), np.float32(_CODE_WEIGHT * min(1, 3 * done))))
            )
            self._step += 1
            if self._step % 5 == 0 or self._step == steps:
                report(Taught(self._step, steps, float(np.mean(losses))))
                losses.clear()
            if checkpoint is not None and self._step % CHECKPOINT_STEPS == 0:
                self._save(checkpoint)

    def make(self, first: int, parents: NDArray[np.intp], attempt: int = 0) -> list[NDArray[np.uint8]]:
        """Makes one wafer for each given parent.

        Args:
            first: Number of the first wafer among all that are made; with the seed it fixes what is random.
            parents: (n,) positions of parents in `self.parents`.
            attempt: 1, 2, ... for other wafers instead of ones that were thrown out.
        """
        rng = np.random.default_rng((self._seed, _MAKE_STREAM, first, attempt))
        count = len(parents)
        orientations = rng.integers(0, ORIENTATIONS, count)
        similar = self._similar(parents, rng)
        way = rng.uniform(0.05, 0.5, count).astype(np.float32)
        mean, log_variance = self._codes(parents, orientations)
        other, _ = self._codes(similar, orientations)
        noise = rng.standard_normal(mean.shape, dtype=np.float32)
        code = mean + way[:, None] * (other - mean) + np.exp(0.5 * log_variance) * noise
        probability = keras.ops.convert_to_numpy(keras.ops.sigmoid(self._decoder(code, training=False)))
        probability = np.clip(probability[..., 0], _LOWEST, 1 - _LOWEST)
        # How much fails follows from the two wafers between which the new one lies, with some spread.
        fractions = self._fractions[parents] + way * (self._fractions[similar] - self._fractions[parents])
        fractions = np.clip(fractions * np.exp(rng.normal(0, 0.08, count)), 0, 1)
        return [
            from_canvas(probability[index], self._grids[parent], float(fractions[index]), rng, _NOISE)
            for index, parent in enumerate(parents)
        ]

    def _codes(
        self, parents: NDArray[np.intp], orientations: NDArray[np.intp]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns means and log variances, (n, 48) each, of parents in orientations."""
        codes = self._encoder(oriented(self._canvas[parents], orientations), training=False)
        mean, log_variance = np.split(keras.ops.convert_to_numpy(codes), 2, axis=1)
        return mean, log_variance

    def _similar(self, parents: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
        """Picks for each parent one of the wafers that look most like it; itself when it is the only one."""
        if self._neighbours is None:
            small = self._canvas[..., 0].reshape(-1, SIDE // 4, 4, SIDE // 4, 4).mean(axis=(2, 4))
            flat = small.reshape(len(small), -1)
            squares = (flat * flat).sum(1)
            nearest = min(_NEIGHBOURS, len(flat) - 1)
            found = [
                np.argsort(squares - 2 * flat[start : start + 256] @ flat.T, axis=1)[:, : nearest + 1]
                for start in range(0, len(flat), 256)
            ]
            self._neighbours = np.concatenate(found)
        column = rng.integers(min(1, self._neighbours.shape[1] - 1), self._neighbours.shape[1], len(parents))
        return self._neighbours[parents, column]

    def _mean_logit(self) -> float:
        share = float(np.clip(self._fractions.mean(), 0.01, 0.99))
        return math.log(share / (1 - share))

    def _weights(self) -> list[keras.Variable]:
        return [*self._encoder.trainable_variables, *self._decoder.trainable_variables]

    def _state(self) -> list[keras.Variable]:
        return [*self._weights(), *self._optimizer.variables]

    def _save(self, path: Path) -> None:
        """Writes all weights and the optimizer; renamed into place, so that a reader never sees half of it."""
        partial = path.with_suffix(".partial.npz")
        arrays = {f"v{index}": keras.ops.convert_to_numpy(value) for index, value in enumerate(self._state())}
        np.savez(partial, step=self._step, **arrays)  # type: ignore[arg-type]
        partial.replace(path)

    def _load(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as saved:
            for index, value in enumerate(self._state()):
                value.assign(saved[f"v{index}"])
            self._step = int(saved["step"])


def device_name() -> str:
    """Returns the device that teaching runs on, for people."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "CPU"
    return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU"))


def _encoder() -> keras.Model:
    """Canvas (48, 48, 2) to mean and log variance of its code, (96,)."""
    layers = keras.layers
    canvas = keras.Input((SIDE, SIDE, 2))
    x = canvas
    for channels in (16, 32, 64):
        x = layers.Conv2D(channels, 3, strides=2, padding="same", activation="silu")(x)
    x = layers.Flatten()(x)
    x = layers.Dense(128, activation="silu")(x)
    return keras.Model(canvas, layers.Dense(2 * LATENT, kernel_initializer="zeros")(x))


def _decoder(mean_logit: float) -> keras.Model:
    """Code (48,) to the logit of the fail probability, (48, 48, 1), starting from the class's mean."""
    layers = keras.layers
    code = keras.Input((LATENT,))
    x = layers.Dense(128, activation="silu")(code)
    x = layers.Dense(6 * 6 * 64, activation="silu")(x)
    x = layers.Reshape((6, 6, 64))(x)
    for channels in (48, 32, 16):
        x = layers.Conv2DTranspose(channels, 4, strides=2, padding="same", activation="silu")(x)
    start = keras.initializers.Constant(mean_logit)
    return keras.Model(code, layers.Conv2D(1, 3, padding="same", bias_initializer=start)(x))


def _train_step(
    encoder: keras.Model, decoder: keras.Model, optimizer: keras.optimizers.Optimizer
) -> Callable[[NDArray[np.float32], NDArray[np.float32], np.float32, np.float32], tf.Tensor]:
    """Returns a compiled step: cross entropy of the valid cells plus the weighted code term, both per wafer."""
    weights = [*encoder.trainable_variables, *decoder.trainable_variables]

    @tf.function(jit_compile=False)
    def step(batch: tf.Tensor, noise: tf.Tensor, rate: tf.Tensor, code_weight: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            mean, log_variance = tf.split(encoder(batch, training=True), 2, axis=1)
            logits = decoder(mean + tf.exp(0.5 * log_variance) * noise, training=True)[..., 0]
            entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=batch[..., 0], logits=logits)
            reconstruction = tf.reduce_sum(entropy * batch[..., 1], axis=(1, 2))
            code = 0.5 * tf.reduce_sum(tf.square(mean) + tf.exp(log_variance) - log_variance - 1, axis=1)
            loss = tf.reduce_mean(reconstruction + code_weight * code)
        gradients, _ = tf.clip_by_global_norm(tape.gradient(loss, weights), 200.0)
        optimizer.learning_rate.assign(rate)
        optimizer.apply(gradients, weights)
        return loss

    return lambda *arguments: step(*(tf.convert_to_tensor(each) for each in arguments))
