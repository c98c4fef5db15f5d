"""A learned generator: an order-agnostic autoregressive model of dies, taught on the wafers of one class.

A small U-Net (see `services.generator.network`) sees some dies of a wafer and says for each other die how probably it
failed (Hoogeboom et al., Autoregressive Diffusion Models, ICLR 2022; Uria et al., ICML 2014). It works die by die, on
the product's own grid, so that a scratch stays one die wide. It starts from a prior that was pretrained on wafers of
many classes and products, so that few steps are enough to adapt it to a class.

A new wafer starts from a training wafer, its parent: a legal variation of it is drawn, some of its dies are forgotten,
and the network fills them in again, in a few rounds, each round knowing what the rounds before made. Of the fails that
lie together, the pattern, few are forgotten: dies drawn in one round know nothing of each other, and a thin scratch of
which half is forgotten comes back full of holes. What is drawn anew is background, outline and gaps; place, turn and
strength of the pattern come from the variation. So a new wafer has a parent, a lot and a legal die grid, looks like the
class and is not the parent.

Everything random comes from (seed, step or wafer number), so that teaching goes on from a checkpoint exactly as if it
had never stopped, and the same seed gives the same wafers on the same machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from services.common.checkpoint import read_checkpoint, write_checkpoint
from services.common.wafer_map import FAIL, NO_DIE, PASS
from services.generator.canvas import ORIENTATIONS, Canvas, oriented, planes
from services.generator.domain import VariationOptions
from services.generator.network import load_prior, question, shown_patterns, train_step
from services.generator.real_wafers import even_places
from services.generator.variations import VariationMaker, settings_for

BATCH = 16
MOST_PARENTS = 4096
"""Most wafers that are taught; of more, an even sample."""
CHECKPOINT_STEPS = 50
"""Steps between two checkpoints."""
_LEARNING_RATE = 1e-3
_REMEMBERED, _KEPT = (0.5, 0.9), (0.75, 1.0)
"""Least and most shares of dies that a new wafer takes over from its variation, and of fails that lie together."""
_ROUNDS = 4
_AT_ONCE, _FEW = 128, 16
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
    return int(np.clip(40 + parents // 5, 50, 100))


class LearnedGenerator:
    """Learns one class and makes wafers of it.

    Args:
        parents: uint8 die grids of the class's training wafers.
        seed: Seed of everything random.
        pattern: Canonical name of the class's pattern, or ""; says which variations of a parent are legal.
    """

    def __init__(self, parents: Sequence[Dies], seed: int, pattern: str = "") -> None:
        self.parents = even_places(len(parents), MOST_PARENTS)
        """Positions of the parents that are taught and may be chosen in `make`."""
        self._seed = seed
        grids = [parents[index] for index in self.parents]
        self._canvas = Canvas(grids)
        self._drawn = self._canvas.draw(grids)
        self._variations = VariationMaker(grids, replace(settings_for(VariationOptions(), pattern), die_noise=0.0))
        self._shown = shown_patterns([pattern])
        self._network = load_prior()
        self._optimizer = keras.optimizers.Adam(_LEARNING_RATE)
        self._optimizer.build(self._network.trainable_variables)
        shown = tf.constant(np.tile(self._shown, (_AT_ONCE, 1)))
        self._answer = tf.function(
            lambda seen: self._network([seen, shown[: seen.shape[0]]], training=False), jit_compile=False
        )
        self._step = 0

    def teach(self, steps: int, report: Callable[[Taught], None], checkpoint: Path | None = None) -> None:
        """Teaches up to a number of steps in all; goes on from the checkpoint where there is one.

        Args:
            steps: Steps in all.
            report: Called after every 5 steps and at the end; may raise to stop.
            checkpoint: File to save to every 50 steps. None: nowhere.
        """
        if checkpoint is not None:
            self._load(checkpoint)
        step = train_step(self._network, self._optimizer)
        shown = np.tile(self._shown, (BATCH, 1))
        losses: list[float] = []
        while self._step < steps:
            rng = np.random.default_rng((self._seed, _TEACH_STREAM, self._step))
            chosen = self._drawn[rng.integers(0, len(self._drawn), BATCH)]
            drawn = oriented(chosen, rng.integers(0, ORIENTATIONS, BATCH))
            seen, failed, asked = question(drawn, rng)
            rate = _LEARNING_RATE * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * self._step / steps)))
            losses.append(step(seen, shown, failed, asked, rate))
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
        """Forgets many dies of (n, side, side) canvases and draws them anew, about as many fails as before."""
        count = len(drawn)
        valid = drawn != NO_DIE
        order = rng.random(drawn.shape, dtype=np.float32)
        noise, pattern = (rng.uniform(*each, (count, 1, 1)).astype(np.float32) for each in (_REMEMBERED, _KEPT))
        remembered = np.where(_clustered(drawn == FAIL), pattern, noise)
        known = order < remembered
        wanted = (drawn == FAIL).sum(axis=(1, 2)) * np.exp(rng.normal(0, 0.08, count))
        wafers = np.where(known, drawn, np.minimum(drawn, PASS))
        for round_ in range(1, _ROUNDS + 1):
            unknown = valid & ~known
            missing = wanted - (known & (wafers == FAIL)).sum(axis=(1, 2))
            logits = self._logits(planes(wafers, known, missing / np.maximum(unknown.sum(axis=(1, 2)), 1)))
            probability = _matched(logits, unknown, missing)
            drawn_now = order < remembered + (1 - remembered) * (round_ / _ROUNDS)
            drawn_now &= unknown
            fails = drawn_now & (rng.random(drawn.shape, dtype=np.float32) < probability)
            wafers[fails] = FAIL
            known |= drawn_now
        return wafers

    def _logits(self, seen: Floats) -> Floats:
        """Returns the network's (n, side, side) answers. Batches have one of two sizes: two graphs serve all."""
        padded = np.zeros((_FEW if len(seen) <= _FEW else _AT_ONCE, *seen.shape[1:]), np.float32)
        padded[: len(seen)] = seen
        answers: Floats = keras.ops.convert_to_numpy(self._answer(padded))
        return answers[: len(seen), ..., 0]

    def _state(self) -> list[keras.Variable]:
        return [*self._network.trainable_variables, *self._optimizer.variables]

    def _save(self, path: Path) -> None:
        """Writes all weights and the optimizer."""
        arrays = {f"v{index}": value.value.numpy() for index, value in enumerate(self._state())}
        write_checkpoint(path, {"step": self._step}, arrays)

    def _load(self, path: Path) -> None:
        saved = read_checkpoint(path)
        if saved is None:
            return
        for index, value in enumerate(self._state()):
            value.assign(saved.arrays[f"v{index}"])
        self._step = saved.facts["step"]


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


def _clustered(failed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns which failed dies of (n, side, side) canvases have two failed ones or more among eight neighbours."""
    padded = np.pad(failed, ((0, 0), (1, 1), (1, 1))).astype(np.uint8)
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    among = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    return np.asarray(failed & (among >= 3))


def _sigmoid(logits: Floats) -> Floats:
    curve: Floats = np.tanh(0.5 * logits)
    return 0.5 + 0.5 * curve
