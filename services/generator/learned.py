"""A learned generator: an order-agnostic autoregressive model of dies, taught on the wafers of one class.

A small U-Net (Ronneberger et al., MICCAI 2015) sees some dies of a wafer and says for each other die how probably it
failed (Hoogeboom et al., Autoregressive Diffusion Models, ICLR 2022; Uria et al., ICML 2014). It works die by die, on
the product's own grid, so that a scratch stays one die wide.

A new wafer starts from a training wafer, its parent: a legal variation of it is drawn, most of its dies are forgotten,
and the network fills them in again, in a few rounds, each round knowing what the rounds before made. What was forgotten
is noise and outline and, the more is forgotten, place and shape of the pattern. So a new wafer has a parent, a lot and
a legal die grid, looks like the class and is not the parent.

Everything random comes from (seed, step or wafer number), so that teaching goes on from a checkpoint exactly as if it
had never stopped, and the same seed gives the same wafers on the same machine.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from services.common.wafer_map import FAIL, NO_DIE, PASS
from services.generator.canvas import ORIENTATIONS, STEP, Canvas, oriented, planes
from services.generator.domain import VariationOptions
from services.generator.realism import fail_fraction
from services.generator.variations import VariationMaker, settings_for

BATCH = 16
MOST_PARENTS = 4096
"""Most wafers that are taught; of more, an even sample."""
CHECKPOINT_STEPS = 50
"""Steps between two checkpoints."""
_LEARNING_RATE = 3e-3
_REMEMBERED = (0.2, 0.6)
_ROUNDS = 6
_AT_ONCE = 128
_TEACH_STREAM, _MAKE_STREAM = 11, 12

Floats = NDArray[np.float32]
Dies = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Taught:
    """Where teaching stands.

    Attributes:
        step: Steps done.
        steps: Steps to do.
        loss: Mean cross entropy of a die since the last report, nats.
    """

    step: int
    steps: int
    loss: float


def default_steps(parents: int) -> int:
    """Returns how many steps to teach for a number of wafers: more wafers have more to tell."""
    return int(np.clip(200 + parents // 2, 220, 360))


class LearnedGenerator:
    """Learns one class and makes wafers of it.

    Args:
        parents: uint8 die grids of the class's training wafers.
        seed: Seed of everything random.
        pattern: Canonical name of the class's pattern, or ""; says which variations of a parent are legal.
    """

    def __init__(self, parents: Sequence[Dies], seed: int, pattern: str = "") -> None:
        self.parents = np.unique(np.linspace(0, len(parents) - 1, min(len(parents), MOST_PARENTS)).astype(np.intp))
        """Positions of the parents that are taught and may be chosen in `make`."""
        self._seed = seed
        grids = [parents[index] for index in self.parents]
        self._canvas = Canvas(grids)
        self._drawn = self._canvas.draw(grids)
        self._variations = VariationMaker(grids, replace(settings_for(VariationOptions(), pattern), die_noise=0.0))
        keras.utils.set_random_seed(seed % 2**32)
        share = float(np.clip(np.mean([fail_fraction(grid) for grid in grids]), 0.01, 0.99))
        self._network = _network(self._canvas.side, math.log(share / (1 - share)))
        self._optimizer = keras.optimizers.Adam(_LEARNING_RATE)
        self._optimizer.build(self._network.trainable_variables)
        self._answer = tf.function(lambda seen: self._network(seen, training=False), jit_compile=False)
        self._step = 0

    def teach(self, steps: int, report: Callable[[Taught], None], checkpoint: Path | None = None) -> None:
        """Teaches up to a number of steps in all; goes on from the checkpoint where there is one.

        Args:
            steps: Steps in all.
            report: Called after every 5 steps and at the end; may raise to stop.
            checkpoint: File to save to every 50 steps. None: nowhere.
        """
        if checkpoint is not None and checkpoint.exists():
            self._load(checkpoint)
        train_step = _train_step(self._network, self._optimizer)
        losses: list[float] = []
        while self._step < steps:
            rng = np.random.default_rng((self._seed, _TEACH_STREAM, self._step))
            chosen = self._drawn[rng.integers(0, len(self._drawn), BATCH)]
            drawn = oriented(chosen, rng.integers(0, ORIENTATIONS, BATCH))
            known = rng.random(drawn.shape, dtype=np.float32) < rng.random((BATCH, 1, 1), dtype=np.float32)
            rate = _LEARNING_RATE * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * self._step / steps)))
            asked = (drawn != NO_DIE) & ~known
            losses.append(train_step(planes(drawn, known), drawn == FAIL, asked, rate))
            self._step += 1
            if self._step % 5 == 0 or self._step == steps:
                report(Taught(self._step, steps, float(np.mean(losses))))
                losses.clear()
            if checkpoint is not None and self._step % CHECKPOINT_STEPS == 0:
                self._save(checkpoint)

    def make(self, first: int, parents: NDArray[np.intp], attempt: int = 0) -> list[Dies]:
        """Makes one wafer for each given parent.

        Args:
            first: Number of the first wafer among all that are made; with the seed it fixes what is random.
            parents: (n,) positions of parents in `self.parents`.
            attempt: 1, 2, ... for other wafers instead of ones that were thrown out.
        """
        rng = np.random.default_rng((self._seed, _MAKE_STREAM, first, attempt))
        made: list[Dies] = []
        for start in range(0, len(parents), _AT_ONCE):
            varied = self._variations.make(parents[start : start + _AT_ONCE], rng)
            before = self._canvas.draw(varied)
            after = self._fill_in(before, rng)
            made.extend(map(self._canvas.transfer, before, after, varied))
        return made

    def _fill_in(self, drawn: Dies, rng: np.random.Generator) -> Dies:
        """Forgets most dies of (n, side, side) canvases and draws them anew, about as many fails as before."""
        count = len(drawn)
        valid = drawn != NO_DIE
        order = rng.random(drawn.shape, dtype=np.float32)
        remembered = rng.uniform(*_REMEMBERED, (count, 1, 1)).astype(np.float32)
        known = order < remembered
        wanted = (drawn == FAIL).sum(axis=(1, 2)) * np.exp(rng.normal(0, 0.08, count))
        wafers = np.where(known, drawn, np.minimum(drawn, PASS))
        for round_ in range(1, _ROUNDS + 1):
            unknown = valid & ~known
            logits = self._logits(planes(wafers, known))
            missing = wanted - (known & (wafers == FAIL)).sum(axis=(1, 2))
            probability = _matched(logits, unknown, missing)
            drawn_now = order < remembered + (1 - remembered) * (round_ / _ROUNDS)
            drawn_now &= unknown
            fails = drawn_now & (rng.random(drawn.shape, dtype=np.float32) < probability)
            wafers[fails] = FAIL
            known |= drawn_now
        return wafers

    def _logits(self, seen: Floats) -> Floats:
        """Returns the network's (n, side, side) answers. Batches always have one size, so that one graph serves all."""
        padded = np.zeros((_AT_ONCE, *seen.shape[1:]), np.float32)
        padded[: len(seen)] = seen
        answers: Floats = keras.ops.convert_to_numpy(self._answer(padded))
        return answers[: len(seen), ..., 0]

    def _state(self) -> list[keras.Variable]:
        return [*self._network.trainable_variables, *self._optimizer.variables]

    def _save(self, path: Path) -> None:
        """Writes all weights and the optimizer; renamed into place, so that a reader never sees half of it."""
        partial = path.with_suffix(".partial.npz")
        arrays = {f"v{index}": value.value.numpy() for index, value in enumerate(self._state())}
        np.savez(partial, step=self._step, **arrays)
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


def _matched(logits: Floats, unknown: NDArray[np.bool_], fails: NDArray[np.float64]) -> Floats:
    """Returns fail probabilities moved so that about the given number of unknown dies of each wafer fails.

    One shift of the logits a wafer, found by three Newton steps and held within 1.5, so that no pattern is forced onto
    a wafer that has none.
    """
    shift = np.zeros((len(logits), 1, 1), np.float32)
    for _ in range(3):
        probability = _sigmoid(logits + shift)
        expected = (probability * unknown).sum(axis=(1, 2))
        slope = (probability * (1 - probability) * unknown).sum(axis=(1, 2))
        step = np.clip((fails - expected) / np.maximum(slope, 1e-3), -1, 1)
        shift = np.clip(shift + step[:, None, None].astype(np.float32), -1.5, 1.5)
    return _sigmoid(logits + shift)


def _sigmoid(logits: Floats) -> Floats:
    curve: Floats = np.tanh(0.5 * logits)
    return 0.5 + 0.5 * curve


def _network(side: int, mean_logit: float) -> keras.Model:
    """(side, side, 4) planes to (side, side, 1) logits of failing; starts from the class's mean fail share.

    Two by two dies are folded into channels first: each die keeps its own channels, and no costly layer runs at full
    size.
    """
    layers = keras.layers
    half, coarse = side // 2, side // STEP
    seen = keras.Input((side, side, 4))
    x = _folded(seen, half)
    x = layers.Conv2D(24, 3, padding="same", activation="silu")(x)
    skips = []
    for channels in (40, 64):
        skips.append(x)
        x = layers.Conv2D(channels, 3, strides=2, padding="same", activation="silu")(x)
    # The whole wafer at once: what class-wide shape the known dies point to.
    whole = layers.Flatten()(layers.Conv2D(16, 1, activation="silu")(x))
    whole = layers.Dense(96, activation="silu")(whole)
    whole = layers.Dense(coarse * coarse * 16, activation="silu")(whole)
    x = layers.Concatenate()([x, layers.Reshape((coarse, coarse, 16))(whole)])
    x = layers.Conv2D(64, 3, padding="same", activation="silu")(x)
    for skip in reversed(skips):
        channels = skip.shape[-1]
        x = layers.Conv2DTranspose(channels, 2, strides=2)(x)
        x = layers.Add()([x, skip])
        x = layers.Conv2D(channels, 3, padding="same", activation="silu")(x)
    start = keras.initializers.Constant(mean_logit)
    x = layers.Conv2D(4, 1, kernel_initializer="zeros", bias_initializer=start)(x)
    return keras.Model(seen, _unfolded(x, half))


def _folded(x: keras.KerasTensor, half: int) -> keras.KerasTensor:
    """(2 half, 2 half, c) to (half, half, 4 c): each two by two cells become one with all their channels."""
    channels = x.shape[-1]
    x = keras.layers.Reshape((half, 2, half, 2 * channels))(x)
    x = keras.layers.Permute((1, 3, 2, 4))(x)
    return keras.layers.Reshape((half, half, 4 * channels))(x)


def _unfolded(x: keras.KerasTensor, half: int) -> keras.KerasTensor:
    """(half, half, 4) to (2 half, 2 half, 1), the reverse of `_folded`."""
    x = keras.layers.Reshape((half, half, 2, 2))(x)
    x = keras.layers.Permute((1, 3, 2, 4))(x)
    return keras.layers.Reshape((2 * half, 2 * half, 1))(x)


def _train_step(
    network: keras.Model, optimizer: keras.optimizers.Optimizer
) -> Callable[[Floats, NDArray[np.bool_], NDArray[np.bool_], float], float]:
    """Returns a compiled step that lowers the cross entropy of the dies that are asked for and returns it."""
    weights = network.trainable_variables

    def step(seen: tf.Tensor, failed: tf.Tensor, asked: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = network(seen, training=True)[..., 0]
            entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=failed, logits=logits)
            loss = tf.reduce_sum(entropy * asked) / tf.maximum(tf.reduce_sum(asked), 1.0)
        gradients, _ = tf.clip_by_global_norm(tape.gradient(loss, weights), 1.0)
        optimizer.learning_rate.assign(rate)
        optimizer.apply(gradients, weights)
        return loss

    compiled = tf.function(step, jit_compile=False)

    def run(seen: Floats, failed: NDArray[np.bool_], asked: NDArray[np.bool_], rate: float) -> float:
        arguments = (seen, failed.astype(np.float32), asked.astype(np.float32), np.float32(rate))
        return float(compiled(*(tf.convert_to_tensor(each) for each in arguments)))

    return run
